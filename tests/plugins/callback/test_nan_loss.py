"""`on_nan_loss`: a NaN or infinite loss is said, ends the run, or leaves its update out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import Toy, rows, trainer, weights_equal

from drivetrain import NonFiniteError, TrainerCallback, hookimpl

BATCH = 8


def poisoned(*updates: int, value: float = float("nan"), accumulation: int = 1) -> list[dict[str, Any]]:
    """Rows in order, of which the last micro-batch of some updates has a row that spoils its loss."""
    data = rows(BATCH * 12 * accumulation)
    for update in updates:
        data[(update * accumulation - 1) * BATCH]["x"] = torch.full((8,), value)
    return data


class Stream(torch.utils.data.IterableDataset[Any]):
    def __init__(self, data: list[dict[str, Any]]) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


def build(folder: Path, data: list[dict[str, Any]], steps: int, **values: Any) -> Any:
    settings: dict[str, Any] = {"lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no"}
    return trainer(folder, data=Stream(data), max_steps=steps, **{**settings, **values})


def state_of(made: Any) -> dict[str, torch.Tensor]:
    return {
        f"{index} {key}": value
        for index, entry in made.optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def test_by_default_nothing_is_done(tmp_path: Path) -> None:
    """As in 4.34.0: the weights are spoilt, and the log's filter hides it."""
    made = build(tmp_path, poisoned(3), 6)
    made.train()
    assert not torch.isfinite(next(made.model.parameters())).all()
    assert all(math.isfinite(row["loss"]) for row in made.state.log_history if "loss" in row)


def test_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = build(tmp_path, poisoned(3), 10, on_nan_loss="warn")
    made.train()
    said = [record.message for record in caplog.records if "of update" in record.message]
    assert [sentence.split(" is nan")[0] for sentence in said] == [
        f"The loss of update {number}"
        for number in (3, 4, 6, 10)  # all after the third are spoilt
    ]
    assert "It is the 4th such update." in said[2]
    assert "NaN or infinite in 8 of 10 updates" in caplog.text


def test_stop(tmp_path: Path) -> None:
    """No checkpoint holds what a spoilt update made, though one is due after it; and the run goes on from the last."""
    for when, value in ((6, float("nan")), (7, float("inf"))):
        folder = tmp_path / str(when)
        values = {"on_nan_loss": "stop", "save_strategy": "steps", "save_steps": 2}
        made = build(folder, poisoned(when, value=value), 10, **values)
        with pytest.raises(
            NonFiniteError, match=rf"The loss of update {when} is nan\. on_nan_loss='stop' ends the run"
        ):
            made.train()
        assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
            "checkpoint-2",
            "checkpoint-4",
        ] + (["checkpoint-6"] if when == 7 else [])
        again = build(folder, poisoned(), 10, **values)
        again.train(resume_from_checkpoint=True)
        assert all(bool(torch.isfinite(weight).all()) for weight in again.model.parameters())


@pytest.mark.parametrize("saving", ["epoch", "no"])
def test_stop_at_the_last_update(tmp_path: Path, saving: str) -> None:
    """After which nothing comes that would read it."""
    made = build(tmp_path, poisoned(10), 10, on_nan_loss="stop", save_strategy=saving)
    with pytest.raises(NonFiniteError, match="update 10 "):
        made.train()
    assert not list(tmp_path.glob("checkpoint-*"))


class Explodes(Toy):
    """A finite loss, whose gradients have no finite norm when told so."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        outputs = super().forward(x, labels)
        if bool((x[0] == 77).all()):
            weight = self.second.weight
            outputs["loss"] = outputs["loss"] + (weight * 1e30).sum() - (weight * 1e30).sum().detach()
        return outputs


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_the_norm_of_the_gradients(tmp_path: Path, action: str, caplog: pytest.LogCaptureFixture) -> None:
    data = poisoned(3, value=77.0)
    made = build(tmp_path, data, 6, model=Explodes(), on_nan_loss=action)
    said = "The norm of the gradients of update 3 is inf, of a finite loss."
    if action == "stop":
        with pytest.raises(NonFiniteError, match=said):
            made.train()
    else:
        assert made.train().metrics["train_skipped_updates"] == 1
        assert said in caplog.text


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_update_leaves_no_trace(tmp_path: Path, optim: str, accumulation: int) -> None:
    """Weights, optimizer, scheduler: bit for bit those of a run without the batches that were skipped."""
    values = {"optim": optim, "gradient_accumulation_steps": accumulation, "weight_decay": 0.1}
    if optim == "sgd":
        values["plugins"] = {"sgd": {"momentum": 0.9}}
    data = poisoned(3, 4, 8, accumulation=accumulation)
    rest = BATCH * accumulation
    clean = [row for number, row in enumerate(data) if number // rest not in (2, 3, 7)]
    made = build(tmp_path / "skip", data, 10, on_nan_loss="skip", **values)
    metrics = made.train().metrics
    without = build(tmp_path / "without", clean, 7, **values)
    without.train()
    assert metrics["train_skipped_updates"] == 3
    assert made.state.global_step == 10
    assert made.lr_scheduler.last_epoch == without.lr_scheduler.last_epoch == 7
    assert weights_equal(made.model, without.model)
    one, other = state_of(made), state_of(without)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])), key


class Normed(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = torch.nn.BatchNorm1d(8)
        self.register_buffer("constant", torch.ones(2))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return super().forward(self.batch_norm(x), labels)


def test_running_means_are_put_back(tmp_path: Path) -> None:
    data = poisoned(3)
    torch.manual_seed(0)
    made = build(tmp_path / "skip", data, 6, model=Normed(), on_nan_loss="skip")
    made.train()
    torch.manual_seed(0)
    clean = data[: 2 * BATCH] + data[3 * BATCH :]
    without = build(tmp_path / "without", clean, 5, model=Normed())
    without.train()
    assert weights_equal(made.model, without.model)  # buffers too


def test_the_number_is_shown_and_goes_on_after_a_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[float] = []

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, run: Any = None, **kwargs: Any) -> None:
            seen.append(run.figures.get("skipped_updates", 0))

    values = {"on_nan_loss": "skip", "save_strategy": "steps", "save_steps": 4}
    build(tmp_path, poisoned(3, 6), 8, callbacks=[Watch()], **values).train()
    assert seen[:8] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert "The loss of update 3 is nan. It is skipped; skipped so far: 1." in caplog.text
    again = build(tmp_path, poisoned(3, 6), 8, **values)
    result = again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert result.metrics["train_skipped_updates"] == 2
    assert again.train().metrics["train_skipped_updates"] == 2  # a run of its own begins at none


def test_what_does_not_go_away_ends_the_run(tmp_path: Path) -> None:
    made = build(
        tmp_path, poisoned(*range(3, 13)), 12, on_nan_loss="skip", plugins={"nan_skip": {"most_in_a_row": 4}}
    )
    with pytest.raises(NonFiniteError, match=r"The loss of update 6 is nan. 4 updates in a row were skipped"):
        made.train()


def test_a_listener_may_skip(tmp_path: Path) -> None:
    """`run.request_skip` is anybody's: here an update whose gradients are far larger than usual."""

    class Spikes:
        name = "spikes"

        @hookimpl
        def on_gradients_ready(self, run: Any) -> None:
            if run.state.global_step == 2:
                run.request_skip("of a spike")

        @hookimpl
        def on_step_end(self, run: Any) -> None:
            stepped.append(run.update.stepped)

    stepped: list[bool] = []
    made = build(tmp_path, poisoned(), 5, plugins=[Spikes()])
    made.train()
    assert stepped == [True, True, False, True, True]
    clean = poisoned()
    without = build(tmp_path, clean[: 2 * BATCH] + clean[3 * BATCH :], 4)
    without.train()
    assert weights_equal(made.model, without.model)
