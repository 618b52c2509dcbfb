"""Flyte: a task that trains, run by flytekit on this machine; its deck and its checkpoint are read back."""

from __future__ import annotations

from pathlib import Path

from support.trackers import library, logged

flytekit = library("flytekit")


def test_a_task_has_the_log_as_a_deck_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    from flytekit.core.checkpointer import SyncCheckpoint
    from flytekit.core.context_manager import FlyteContextManager

    kept = tmp_path / "kept"
    kept.mkdir()

    @flytekit.task(enable_deck=True)
    def train() -> int:
        current = flytekit.current_context()
        # A cluster gives a task its checkpoint; here is none.
        current._checkpoint = SyncCheckpoint(checkpoint_dest=str(kept))
        made = logged(tmp_path, "flyte", save_strategy="steps", save_steps=4)
        made.train()
        decks = {
            deck.name: deck.html for deck in FlyteContextManager.current_context().user_space_params.decks
        }
        table = decks["Log History"]
        assert all(str(row["loss"]) in table for row in made.state.log_history if "loss" in row)
        return int(made.state.global_step)

    assert train() == 8
    assert any(path.is_file() for path in kept.rglob("*"))
