"""NaN and what is measured, in several processes: run by test_debugging_ranks.py, with a folder and engines."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support import fairscale_shim
from support.toy import rows, trainer
from torch import Tensor, nn

from drivetrain import ConfigurationError, NonFiniteError

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"fsdp": "full_shard"},
    "fsdp1": {"fsdp": "full_shard", "fsdp_version": 1},
    "zero2": {"deepspeed": {"zero_optimization": {"stage": 2}}},
    "zero3": {"deepspeed": {"zero_optimization": {"stage": 3}}},
    "oss": {"sharded_ddp": "simple"},
    "sharded": {"sharded_ddp": "zero_dp_2"},
}
NAN = float("nan")
BATCH = 4


class Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float) -> Tensor:  # type: ignore[override]
        ctx.by = by
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.by, None


class Stretch(nn.Module):
    """The identity, times a number; its gradient, times another."""

    def __init__(self) -> None:
        super().__init__()
        self.by = self.back = 1.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Bad.apply(x * self.by, self.back)
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16)
        self.stretch = Stretch()
        self.second = nn.Linear(16, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.seen += x.mean()
        logits = self.second(torch.relu(self.stretch(self.first(x))))
        return {"loss": nn.functional.cross_entropy(logits, labels)}


class At:
    """A callback that changes the model before an update, on some ranks."""

    def __init__(self, step: int, change: Any, ranks: tuple[int, ...] = (0, 1)) -> None:
        self.step, self.change, self.ranks = step, change, ranks

    def on_step_begin(self, args: Any, state: Any, control: Any, run: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step and dist.get_rank() in self.ranks:
            self.change(run.model)


class Data(torch.utils.data.IterableDataset[Any]):
    def __init__(self, found: list[Any]) -> None:
        self.found = found

    def __iter__(self) -> Any:
        return iter(self.found)


def data(*spoilt: int, left_out: bool = False) -> Data:
    """Rows of seven updates, of which some have NaN in a row of rank 1; or are left out."""
    update = 2 * BATCH
    found = rows(7 * update)
    for number in spoilt:
        found[number * update - 1]["x"] = torch.full((8,), NAN)
    kept = [row for place, row in enumerate(found) if not left_out or place // update + 1 not in spoilt]
    return Data(kept)


def made(folder: Path, engine: str, found: Data, steps: int, **values: Any) -> Any:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": BATCH,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return trainer(
        folder, model=Net(), data=found, max_steps=steps, **{**settings, **ENGINES[engine], **values}
    )


def ends(trained: Any, error: type[BaseException] = NonFiniteError) -> str:
    try:
        trained.train()
    except error as found:
        return str(found)
    raise AssertionError("the run has ended without an error")


def same(one: Any, other: Any) -> bool:
    a, b = one.model.state_dict(), other.model.state_dict()
    return all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-7) for name in a)


def whole(folder: Path, engine: str) -> None:
    """Every scenario that all ranks live through."""
    sentence = ends(made(folder, engine, data(3), 7, on_nan_loss="stop"))
    assert sentence.startswith("The loss of update 3 is nan on rank 1. on_nan_loss='stop' ends the run"), (
        sentence
    )

    if engine.startswith("zero"):
        sentence = ends(made(folder, engine, data(3), 7, on_nan_loss="skip"), ConfigurationError)
        assert (
            "Strategy 'deepspeed' cannot skip an update, which was asked for: on_nan_loss='skip'" in sentence
        ), sentence
    else:
        skipped = made(folder, engine, data(3, 5), 7, on_nan_loss="skip")
        assert skipped.train().metrics["train_skipped_updates"] == 2
        without = made(folder, engine, data(3, 5, left_out=True), 5)
        without.train()
        assert same(skipped, without)

    for name, said in (
        (
            "by",
            "NaN began in stretch (Stretch): in its output, from inputs and weights that are finite, update 3",
        ),
        (
            "back",
            "NaN began in the backward pass of stretch (Stretch): in the gradient of its input[0]",
        ),
    ):
        spoil = At(2, lambda model, name=name: setattr(model.stretch, name, NAN))
        sentence = ends(made(folder, engine, data(), 7, debug="underflow_overflow", callbacks=[spoil]))
        assert sentence.startswith(said), sentence
        assert f", on rank {dist.get_rank()}." in sentence
        report = (folder / f"underflow_overflow-rank{dist.get_rank()}.txt").read_text()
        for told in ("first (Linear)", "weight", "bias", "output"):
            assert told in report, (told, report)


def alone(folder: Path, engine: str) -> None:
    """Rank 1 alone has a fault: all ranks end after the same micro-batch, before the update."""
    for name in ("by", "back"):
        spoil = At(2, lambda model, name=name: setattr(model.stretch, name, NAN), (1,))
        sentence = ends(made(folder, engine, data(), 7, debug="underflow_overflow", callbacks=[spoil]))
        if dist.get_rank() == 1:
            assert "stretch (Stretch)" in sentence, sentence
            assert "update 3, micro-batch 2, on rank 1." in sentence, sentence
        else:
            assert sentence.startswith(
                "NaN or infinity was found on rank 1, and not on rank 0: see the report "
            ), sentence


def measured(folder: Path, engine: str) -> None:
    """Each rank measures itself."""
    plugins = {
        "profiler": {"wait": 1, "warmup": 1, "active": 2, "ranks": "all", "top": 3},
        "flops": {"every": 3},
    }
    run = made(folder, engine, data(), 7, plugins=plugins, skip_memory_metrics=False)
    metrics = run.train().metrics
    assert (folder / "profile" / f"rank{dist.get_rank()}-updates-3-4.pt.trace.json.gz").exists()
    # Four rows a rank: the first layer's product twice, since its input has no gradient, the second's three times.
    assert metrics["train_flops_per_update"] == 2 * BATCH * (2 * 8 * 16 + 3 * 16 * 3), metrics
    assert metrics["train_mem_cpu_peaked_delta"] >= 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    fairscale_shim.install()
    for chosen in sys.argv[2:]:
        whole(Path(sys.argv[1]) / chosen, chosen)
        alone(Path(sys.argv[1]) / chosen, chosen)
        if chosen == "ddp":
            measured(Path(sys.argv[1]) / chosen, chosen)
        print(f"rank {dist.get_rank()} is whole: {chosen}")
