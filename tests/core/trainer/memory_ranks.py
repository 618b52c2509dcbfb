"""auto_find_batch_size in two processes, of which the second alone has too little memory: run by test_memory_ranks.py."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.toy import Toy, history, rows, trainer, weights_equal

from drivetrain import ConfigurationError, TrainerCallback
from drivetrain.checkpoint import RandomState
from drivetrain.errors import DrivetrainError
from drivetrain.processes import current

HARD = resource.getrlimit(resource.RLIMIT_AS)[1]


class Wide(Toy):
    """Takes 4 MB a row, half of it for a sine, in training, or in evaluation; has buffers that DDP brings together."""

    def __init__(self, when: str, dropout: float = 0.2) -> None:
        super().__init__(dropout)
        self.when = when
        self.batch_norm = torch.nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if self.when == ("train" if self.training else "eval"):
            x = x + 0 * x.repeat(1, 65_536).sin().mean(1, keepdim=True)
        return super().forward(self.batch_norm(x), labels)


class Counts(TrainerCallback):
    """A state of a listener's."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1

    def save_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


@contextlib.contextmanager
def limited(rank: int, megabytes: int, who: int = 1) -> Iterator[None]:
    """Within it one process may map no more than this beyond what it has mapped."""
    if rank == who:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + megabytes * 2**20, HARD))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (HARD, HARD))


def made(folder: Path, when: str, **values: Any) -> tuple[Any, Counts]:
    counts = Counts()
    settings: dict[str, Any] = {
        "max_steps": 4,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "save_strategy": "no",
        "strategy": "ddp",
        "data": rows(201),
        "callbacks": [counts],
    }
    torch.manual_seed(0)
    settings.update(values)
    return trainer(folder, model=settings.pop("model", None) or Wide(when), **settings), counts


def same_random_states(one: RandomState, other: RandomState) -> bool:
    return one.python == other.python and torch.equal(one.torch_cpu, other.torch_cpu)


def training(folder: Path, rank: int) -> None:
    """One runs out in the forward pass; both begin anew, as a run that began with what fits."""
    values = {"evaluation_strategy": "steps", "eval_steps": 2, "gradient_accumulation_steps": 2}
    found, counted = made(
        folder / "a", "train", per_device_train_batch_size=64, auto_find_batch_size=True, save_steps=1,
        **{**values, "save_strategy": "steps"},
    )  # fmt: skip
    before = dist.group.WORLD
    with limited(rank, 120):
        found.train()
    after = RandomState.capture()
    assert dist.group.WORLD is not before, "a process group of their own"
    size = found._train_batch_size
    assert size in (8, 16, 32), size
    begun, reference = made(folder / "b", "train", per_device_train_batch_size=size, **values)
    begun.train()
    assert weights_equal(found.model, begun.model)
    assert history(found) == history(begun)
    assert counted.steps == reference.steps == 4
    assert same_random_states(after, RandomState.capture())

    # A resume begins with what was found.
    again, _ = made(
        folder / "a", "train", per_device_train_batch_size=64, auto_find_batch_size=True, save_steps=1,
        **{**values, "save_strategy": "steps"},
    )  # fmt: skip
    before = dist.group.WORLD
    again.train(resume_from_checkpoint=str(folder / "a" / "checkpoint-2"))
    assert dist.group.WORLD is before
    assert again._train_batch_size == size
    assert weights_equal(found.model, again.model)


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(rows(301))


def parts(folder: Path, rank: int) -> None:
    """The first runs out, on iterable data, and the rows of an update stay; a metric is fed batch by batch."""
    values: dict[str, Any] = {
        "per_device_train_batch_size": 64,
        "evaluation_strategy": "steps",
        "eval_steps": 2,
        "data": Stream(),
    }

    def model() -> Wide:
        torch.manual_seed(0)
        made = Wide("train", dropout=0.0)
        made.batch_norm = torch.nn.Identity()  # it would see the parts
        return made

    fed: list[tuple[int, bool]] = []

    def count(prediction: Any, compute_result: bool) -> dict[str, float]:
        fed.append((len(prediction.label_ids), compute_result))
        return {"rows": sum(rows for rows, _ in fed)}

    found, _ = made(
        folder / "p", "", model=model(), auto_find_batch_size=True, keep_effective_batch_size=True,
        compute_metrics=count, batch_eval_metrics=True, **values,
    )  # fmt: skip
    with limited(rank, 120, who=0):
        found.train()
    assert found._parts in (2, 4, 8), found._parts
    assert found._train_batch_size == 64
    assert sum(rows for rows, _ in fed) == 301 * sum(last for _, last in fed)
    whole, _ = made(folder / "q", "", model=model(), **values)
    whole.train()
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], weight, rtol=2e-5, atol=2e-5)


def late(folder: Path, rank: int) -> None:
    """One runs out when the others are done with their last step (an error made by hand)."""
    left = [rank == 1]

    class AtTheEnd(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if left[0]:
                left[0] = False
                raise MemoryError

    found, _ = made(
        folder / "late", "never", per_device_train_batch_size=8, auto_find_batch_size=True, callbacks=[AtTheEnd()]
    )  # fmt: skip
    found.train()
    assert found._train_batch_size == 4
    begun, _ = made(folder / "late-begun", "never", per_device_train_batch_size=4)
    begun.train()
    assert weights_equal(found.model, begun.model)


def one_row(folder: Path, rank: int) -> None:
    """Not even one row fits, which is an error of both."""

    class Greedy(Toy):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            if rank == 1:
                torch.empty(2**46)
            return super().forward(x, labels)

    found, _ = made(
        folder / "one", "", model=Greedy(), per_device_train_batch_size=2, auto_find_batch_size=True
    )
    with pytest.raises(DrivetrainError, match="out of memory even with one row a device"):
        found.train()


def evaluation(folder: Path, rank: int) -> None:
    """One runs out in an evaluation in the midst of training, and in one by itself; training goes on."""
    values: dict[str, Any] = {"evaluation_strategy": "steps", "eval_steps": 2}
    found, _ = made(folder / "c", "eval", per_device_eval_batch_size=64, auto_find_batch_size=True, **values)
    with limited(rank, 120):
        found.train()
        size = found._eval_batch_size
        assert size in (8, 16, 32), size
        assert found._train_batch_size == 2
    begun, _ = made(folder / "d", "eval", per_device_eval_batch_size=size, **values)
    begun.train()
    assert weights_equal(found.model, begun.model)
    assert history(found) == history(begun)

    found._found = None
    with limited(rank, 120):
        predicted = found.predict(rows(140, seed=3))
        size = found._eval_batch_size
        assert size in (8, 16, 32), size
    begun.args.per_device_eval_batch_size = size
    plain = begun.predict(rows(140, seed=3))
    assert np.array_equal(predicted.predictions, plain.predictions)
    assert predicted.metrics["test_loss"] == plain.metrics["test_loss"]


def refused(folder: Path, rank: int) -> None:
    """A strategy whose forward pass has collectives says what to do instead."""
    found, _ = made(folder / "e", "never", strategy="fsdp", auto_find_batch_size=True)
    for work in (found.train, found.evaluate):
        with pytest.raises(
            ConfigurationError, match="not there for several processes under the strategy 'fsdp'"
        ):
            work()


def main() -> None:
    folder = Path(sys.argv[1])
    made(folder / "first", "never")[0].train()  # what torch maps at its first use is mapped now
    for scenario in (training, parts, late, one_row, evaluation, refused):
        scenario(folder, dist.get_rank())
        print(f"{scenario.__name__}: fine on rank {current(None).rank}", flush=True)


main()
