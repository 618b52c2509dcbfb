"""A restart by auto_find_batch_size leaves nothing of the attempt that failed: data, plugins, checkpoints, counters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import Toy, history, rows, trainer, weights_equal

from drivetrain import Trainer, hookimpl
from drivetrain.checkpoint import RandomState, checkpoints
from drivetrain.errors import DrivetrainError


class Greedy(Toy):
    """Asks torch's allocator for more than any machine has, for batches above a size, after some that fitted."""

    def __init__(self, rows: int = 4, dropout: float = 0.2, after: int = 3) -> None:
        super().__init__(dropout)
        self.rows, self.after, self.seen = rows, after, 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self.seen += self.training
        if self.training and len(x) > self.rows and self.seen > self.after:
            torch.empty(2**46)
        return super().forward(x, labels)

    def floating_point_ops(self, inputs: dict[str, Any], exclude_embeddings: bool = True) -> int:
        return 1000 * len(inputs["x"])


def run(folder: Path, **values: Any) -> Trainer:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "num_train_epochs": 1,
        "logging_steps": 2,
        "per_device_train_batch_size": 16,
        "auto_find_batch_size": True,
        **values,
    }
    if "model_init" not in settings:
        settings.setdefault("model", Greedy())
    made = trainer(folder, **settings)
    made.train()
    return made


def begun(folder: Path, **values: Any) -> Trainer:
    return run(folder, **{"per_device_train_batch_size": 4, "auto_find_batch_size": False, **values})


def same(one: Trainer, other: Trainer) -> None:
    assert one.state.global_step == other.state.global_step
    assert history(one) == history(other)
    assert weights_equal(one.model, other.model)


def test_counters_and_random_states(tmp_path: Path) -> None:
    found = run(tmp_path / "a")
    after = RandomState.capture()
    plain = begun(tmp_path / "b")
    same(found, plain)
    assert found.state.total_flos == plain.state.total_flos > 0
    now = RandomState.capture()
    assert torch.equal(after.torch_cpu, now.torch_cpu)
    assert after.python == now.python


class Stream(torch.utils.data.IterableDataset[Any]):
    """Goes on where it was, unless it is given its state back."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Any:
        data = rows(400)
        while True:
            self.at += 1
            yield data[self.at % 400]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def test_iterable_data_begin_where_they_began(tmp_path: Path) -> None:
    same(run(tmp_path / "a", data=Stream(), max_steps=9), begun(tmp_path / "b", data=Stream(), max_steps=9))


def test_a_model_that_is_built_anew(tmp_path: Path) -> None:
    same(run(tmp_path / "a", model_init=Greedy), begun(tmp_path / "b", model_init=Greedy))


def test_gradient_checkpointing_is_there_again(tmp_path: Path) -> None:
    def model() -> Greedy:
        torch.manual_seed(0)
        made = Greedy()
        made.blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(3, 3)) for _ in range(2))
        return made

    values: dict[str, Any] = {"gradient_checkpointing": True}
    same(
        run(tmp_path / "a", model=model(), **values),
        begun(tmp_path / "b", model=model(), **values),
    )


class Counting:
    """A plugin with a state, made before the run."""

    def __init__(self) -> None:
        self.steps = 0

    @hookimpl
    def on_step_end(self) -> None:
        self.steps += 1

    @hookimpl
    def save_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    @hookimpl
    def load_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def test_plugins_have_their_state_of_the_beginning(tmp_path: Path) -> None:
    one, other = Counting(), Counting()
    run(tmp_path / "a", plugins=[one])
    begun(tmp_path / "b", plugins=[other])
    assert one.steps == other.steps > 0


@pytest.mark.parametrize("background", [False, True])
def test_checkpoints_of_the_attempt_are_gone(
    tmp_path: Path, background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    values: dict[str, Any] = {"save_strategy": "steps", "save_steps": 0.5, "save_async": background}
    values |= {"evaluation_strategy": "steps", "eval_steps": 0.5, "load_best_model_at_end": True}
    first = begun(tmp_path / "a", max_steps=1, save_steps=1, num_train_epochs=1, save_strategy="steps")
    assert first.state.global_step == 1
    torch.manual_seed(0)
    found = run(tmp_path / "a", **values, model=Greedy(after=5))
    assert "checkpoints, of other batches than the run's, are removed: checkpoint-4." in caplog.text
    # 7 updates of 16 rows, 13 of 8, 26 of 4: half of them are 4, 7 and 13.
    assert [step for step, _ in checkpoints(str(tmp_path / "a"))] == [1, 13, 26]
    assert (found.state.save_steps, found.state.eval_steps, found.state.max_steps) == (13, 13, 26)
    torch.manual_seed(0)
    same(found, begun(tmp_path / "b", **values, model=Greedy()))


def test_a_resume_goes_on_with_what_was_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "num_train_epochs": 2}
    found = run(tmp_path / "a", **values)
    assert found._train_batch_size == 4
    caplog.clear()
    again = run(tmp_path / "a", **values, resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-30"))
    assert again._train_batch_size == 4
    assert "Out of memory" not in caplog.text
    same(again, found)
    # Who asks for another size means it.
    torch.manual_seed(0)
    other = trainer(
        tmp_path / "a", model=Toy(0.2), per_device_train_batch_size=8, auto_find_batch_size=True, **values
    )
    other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    assert other._train_batch_size == 8


def test_a_resume_that_runs_out_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    values: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2}
    begun(tmp_path / "a", **values, per_device_train_batch_size=16, model=Toy(0.2), max_steps=3)
    checkpoint = str(tmp_path / "a" / "checkpoint-3")
    ours = {**values, "resume_from_checkpoint": checkpoint, "output_dir": str(tmp_path / "b")}
    ours.pop("output_dir")
    found = run(tmp_path / "b", **ours)
    plain = begun(tmp_path / "c", **ours)
    same(found, plain)
    assert [step for step, _ in checkpoints(str(tmp_path / "b"))] == [
        step for step, _ in checkpoints(str(tmp_path / "c"))
    ]
    assert Path(checkpoint).is_dir()


def test_a_loader_that_does_not_follow_is_said(tmp_path: Path) -> None:
    class Own(Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(rows(64), batch_size=16)

    with pytest.raises(
        DrivetrainError, match="get_train_dataloader gives batches of 16 rows whatever is tried"
    ):
        run(tmp_path, cls=Own)


def test_a_loader_of_ones_own_that_follows(tmp_path: Path) -> None:
    class Own(Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(rows(64), batch_size=self._train_batch_size)

    assert run(tmp_path, cls=Own)._train_batch_size == 4
