"""A run that is resumed ends, bit for bit, as the run that never stopped: from every checkpoint of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.toy import Toy, accuracy, history, rows, trainer, weights_equal

from drivetrain import EarlyStoppingCallback, PrecisionPolicy, Trainer, TrainerCallback, hookimpl


class Lengths(torch.utils.data.Dataset[Any]):
    """Rows of many lengths, for group_by_length."""

    def __init__(self) -> None:
        self.rows = [row | {"input_ids": [0] * (1 + (7 * i) % 13)} for i, row in enumerate(rows(45))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]


class Stream(torch.utils.data.IterableDataset[Any]):
    """Rows in an order that every pass draws anew from torch's generator; split over workers."""

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(45).tolist()
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            order = list(range(45))[worker.id :: worker.num_workers]
        data = rows(45)
        for i in order:
            yield data[i]


class Counted(Stream):
    """A stream that knows its length."""

    def __len__(self) -> int:
        return 45


def noisy(features: list[Any]) -> dict[str, torch.Tensor]:
    """A collator that draws from all three generators."""
    x = torch.stack([feature["x"] for feature in features])
    x = x + 0.1 * torch.randn(x.shape) + 0.1 * np.random.rand() + 0.1 * random.random()
    return {"x": x, "labels": torch.tensor([feature["labels"] for feature in features])}


class Memory(TrainerCallback):
    """A callback with a state of its own that decides what is trained."""

    def __init__(self) -> None:
        self.seen = 0

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.seen += 1
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.01 * self.seen

    def save_state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Averaged:
    """A plugin whose state holds tensors: an average of the weights, which it puts in place at the end."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        for name, value in run.model.state_dict().items():
            self.average[name] = 0.9 * self.average.get(name, value) + 0.1 * value

    @hookimpl
    def on_train_end(self, run: Any) -> None:
        run.model.load_state_dict(self.average)

    @hookimpl
    def save_state(self) -> dict[str, Any]:
        return {"average": self.average}

    @hookimpl
    def load_state(self, state: dict[str, Any]) -> None:
        self.average = dict(state["average"])


class Scaling:
    """A precision with a loss scale that grows at every other update, and decides what is trained."""

    policy = PrecisionPolicy("scaling", loss_scale={"init_scale": 2.0**10, "growth_interval": 2})

    @hookimpl
    def make_precision(self, run: Any) -> Any:
        return self

    def setup(self, run: Any) -> None: ...

    def autocast(self, device_type: str) -> Any:
        return nullcontext()

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        for group in run.optimizer.param_groups:
            group["weight_decay"] = run.strategy.scaler.get_scale() / 2**18

    def close(self) -> None: ...


class Looking(Trainer):
    """A trainer whose loader a script made."""

    def get_train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(5)
        return torch.utils.data.DataLoader(
            self.train_dataset, batch_size=8, shuffle=True, generator=generator, collate_fn=noisy
        )


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: {},
    "dropout": lambda: {"dropout": 0.3},
    "accumulation with an uneven end": lambda: {"gradient_accumulation_steps": 4, "dropout": 0.2},
    "accumulation longer than an epoch": lambda: {"gradient_accumulation_steps": 9},
    "accumulation with drop_last": lambda: {"gradient_accumulation_steps": 3, "dataloader_drop_last": True},
    "group_by_length": lambda: {"data": Lengths(), "group_by_length": True, "dropout": 0.1},
    "data_seed": lambda: {"data_seed": 7, "dropout": 0.1},
    "random collator": lambda: {"collator": noisy, "dropout": 0.1},
    "random collator and accumulation": lambda: {"collator": noisy, "gradient_accumulation_steps": 4},
    "a script's loader": lambda: {"cls": Looking, "dropout": 0.1},
    "iterable": lambda: {"data": Stream(), "max_steps": 9},
    "iterable with a length": lambda: {"data": Counted(), "gradient_accumulation_steps": 4},
    "iterable and random collator": lambda: {"data": Stream(), "max_steps": 9, "collator": noisy, "dropout": 0.1},
    "fractional epochs": lambda: {"num_train_epochs": 1.5},
    "max_steps beyond the data": lambda: {"max_steps": 15},
    "saved at the ends of epochs": lambda: {"save_strategy": "epoch", "dropout": 0.1, "gradient_accumulation_steps": 4},
    "logged and evaluated at the ends of epochs": lambda: {
        "logging_strategy": "epoch", "evaluation_strategy": "epoch", "dropout": 0.1,
    },
    "evaluated on the way": lambda: {"evaluation_strategy": "steps", "eval_steps": 2, "dropout": 0.1, "collator": noisy},
    "logged seldom": lambda: {"logging_steps": 5, "logging_first_step": True},
    "early stopping": lambda: {
        "callbacks": [EarlyStoppingCallback(2)], "load_best_model_at_end": True, "learning_rate": 0.5,
        "evaluation_strategy": "steps", "eval_steps": 1, "compute_metrics": accuracy, "metric_for_best_model": "accuracy",
        "num_train_epochs": 3,
    },
    "best model": lambda: {
        "load_best_model_at_end": True, "evaluation_strategy": "steps", "eval_steps": 1, "learning_rate": 0.3,
    },
    "a callback's state": lambda: {"callbacks": [Memory()]},
    "loss scale": lambda: {"plugins": [Scaling()], "dropout": 0.1},
    "a plugin's state": lambda: {"plugins": [Averaged()]},
    "reduce_lr_on_plateau": lambda: {
        "lr_scheduler_type": "reduce_lr_on_plateau", "evaluation_strategy": "steps", "eval_steps": 1, "learning_rate": 0.5,
        "lr_scheduler_kwargs": {"patience": 1},
    },
    "cosine with restarts": lambda: {"lr_scheduler_type": "cosine_with_restarts", "warmup_steps": 2},
    "sgd with momentum": lambda: {"optim": "sgd", "optim_args": "momentum=0.9"},
    "adafactor": lambda: {"optim": "adafactor"},
    "label smoothing": lambda: {"label_smoothing_factor": 0.1, "dropout": 0.1},
    "bf16": lambda: {"bf16": True, "dropout": 0.1},
    "two workers": lambda: {"dataloader_num_workers": 2, "dropout": 0.1},
    "two workers of a stream": lambda: {"dataloader_num_workers": 2, "data": Stream(), "max_steps": 8},
}  # fmt: skip


def build(folder: Path, values: dict[str, Any]) -> Any:
    values = dict(values)
    collator = values.pop("collator", None)
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "data": rows(45),
        "eval_dataset": rows(30, seed=1),
    }
    made = trainer(folder, **{**settings, **values})
    if collator is not None:
        made.data_collator = collator
    return made


def optimizer_state(made: Any) -> Any:
    return made.optimizer.state_dict()


def same(one: Any, other: Any) -> bool:
    """Equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def alike(one: Path, other: Path) -> bool:
    """Whether two runs have written the same checkpoints, but for where they lie and what the clock says."""
    names = sorted(path.name for path in one.glob("checkpoint-*"))
    assert names == sorted(path.name for path in other.glob("checkpoint-*"))
    for name in names:
        files = sorted(path.name for path in (one / name).iterdir())
        assert files == sorted(path.name for path in (other / name).iterdir())
        for file in files:
            a, b = ((folder / name / file).read_bytes() for folder in (one, other))
            if file in ("trainer_state.json", "run.json"):
                assert _timeless(a, one) == _timeless(b, other), (name, file)
            elif file not in ("training_args.json", "manifest.json"):
                assert a == b, (name, file)
    return bool(names)


def _timeless(content: bytes, folder: Path) -> Any:
    tree = json.loads(content.decode().replace(str(folder), "RUN"))
    for row in tree.get("log_history", ()):
        for key in [key for key in row if "runtime" in key or "per_second" in key]:
            del row[key]
    return tree


def disturb() -> None:
    """Another process has other random states."""
    torch.manual_seed(999)
    np.random.seed(999)
    random.seed(999)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_resumed_from_everywhere(tmp_path: Path, scenario: str) -> None:
    """Written at once, or in a thread: the checkpoints are the same, and so is what they are resumed to."""
    values = SCENARIOS[scenario]
    whole = build(tmp_path / "whole", values())
    whole.train()
    drawn = torch.get_rng_state()
    states = optimizer_state(whole)
    checkpoints = sorted(
        (tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    assert len(checkpoints) >= 2
    beside = build(tmp_path / "beside", {**values(), "save_async": True})
    beside.train()
    assert history(beside) == history(whole)
    assert alike(tmp_path / "whole", tmp_path / "beside")
    if "workers" in scenario:
        checkpoints = checkpoints[1::3]  # starting workers takes its time
    if scenario == "early stopping":
        assert whole.state.global_step < whole.state.max_steps
        checkpoints.pop()  # that of the stop: who resumes it wants to go on past it
    for checkpoint in checkpoints:
        again = build(tmp_path / f"again-{checkpoint.name}", values())
        disturb()
        again.train(resume_from_checkpoint=str(checkpoint))
        assert history(again) == history(whole), checkpoint.name
        assert again.state.global_step == whole.state.global_step, checkpoint.name
        assert weights_equal(again.model, whole.model), checkpoint.name
        assert same(optimizer_state(again), states), checkpoint.name
        assert torch.equal(torch.get_rng_state(), drawn), checkpoint.name


def test_resumed_twice(tmp_path: Path) -> None:
    """A resumed run's own checkpoints are those of the whole run."""
    values = SCENARIOS["accumulation with an uneven end"]() | {"collator": noisy, "max_steps": 6}
    whole = build(tmp_path / "whole", values)
    whole.train()
    first = build(tmp_path / "first", values)
    first.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    second = build(tmp_path / "second", values)
    second.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-4"))
    assert weights_equal(second.model, whole.model)
    assert history(second) == history(whole)


class Interrupt(TrainerCallback):
    """Raises after an update, or between two micro-batches, once."""

    def __init__(self, event: str, step: int) -> None:
        self.event, self.step = event, step

    def _maybe(self, event: str, state: Any) -> None:
        if event == self.event and state.global_step == self.step:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._maybe("on_step_end", state)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._maybe("on_substep_end", state)


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize(("event", "step"), [("on_step_end", 2), ("on_substep_end", 2), ("on_step_end", 3)])
def test_the_same_trainer_goes_on_after_an_interruption(
    tmp_path: Path, event: str, step: int, form: bool
) -> None:
    values = SCENARIOS["accumulation with an uneven end"]() | {"max_steps": 5, "save_async": form}
    whole = build(tmp_path / "whole", values)
    whole.train()
    broken = build(tmp_path / "broken", {**values, "callbacks": [Interrupt(event, step)]})
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    broken.pop_callback(Interrupt)
    broken.train(resume_from_checkpoint=True)
    assert weights_equal(broken.model, whole.model)
    assert history(broken) == history(whole)


class Big(torch.utils.data.Dataset[Any]):
    """Eight million rows that are made when they are asked for, and counted."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 8_000_080

    def __getitem__(self, i: int) -> Any:
        self.asked += 1
        x = torch.full((8,), (i % 97) / 97.0)
        return {"x": x, "labels": i % 3}


def test_nothing_that_was_seen_is_loaded_at_batch_one_million(tmp_path: Path) -> None:
    """The position is a number: a checkpoint of batch 4 told to be of batch 1,000,000 goes on there."""
    data = Big()
    settings: dict[str, Any] = {"data": data, "max_steps": 4, "save_steps": 4, "save_strategy": "steps"}
    first = trainer(tmp_path / "out", per_device_train_batch_size=8, **settings)
    first.train()
    assert data.asked <= 5 * 8
    # The documented attributes of the position, as the loop keeps them.
    contents = first._batches.position()
    json.dumps(contents)
    from drivetrain.data import EpochIterator

    data.asked = 0
    at = {**contents, "batch": 1_000_000, "row": 8_000_000}
    iterator = EpochIterator(
        first.run.train_dataloader, args=first.args, processes=first.run.processes, epoch=0, position=at
    )
    rest = list(iterator)
    assert len(rest) == 10
    assert data.asked == 80


def test_a_resume_loads_the_rest_alone(tmp_path: Path) -> None:
    data = Big()
    settings: dict[str, Any] = {
        "data": data,
        "save_steps": 4,
        "save_strategy": "steps",
        "per_device_train_batch_size": 8,
    }
    trainer(tmp_path / "out", max_steps=4, **settings).train()
    data.asked = 0
    made = trainer(tmp_path / "out", max_steps=6, **settings)
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 6
    # Two batches are trained on; one is fetched ahead, twice, since the one ahead at the save is fetched again.
    assert data.asked <= 8 * 4


def test_ignore_data_skip_begins_the_epoch_anew(tmp_path: Path) -> None:
    values: dict[str, Any] = {"num_train_epochs": 2}
    build(tmp_path / "whole", values).train()
    made = build(tmp_path / "again", {**values, "ignore_data_skip": True})
    made.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert made.state.global_step == 12


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "whole", {"max_steps": 2}).train()

    class Wider(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.second = torch.nn.Linear(16, 4)

    made = build(tmp_path / "again", {"max_steps": 2, "model": Wider()})
    with pytest.raises(Exception, match=r"second\.weight"):
        made.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
