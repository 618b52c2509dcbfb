"""save_async in several processes: run by test_save_async_ranks.py under torchrun, with a folder and what to do."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support.toy import history, rows, trainer, weights_equal

from drivetrain import CheckpointError, ProcessError, Trainer, TrainerCallback, TrainingArguments, saving
from drivetrain.checkpoint import spread, validate
from drivetrain.processes import current
from drivetrain_plugins import gloo

SPREAD = {"fsdp": "full_shard", "fsdp_config": {"state_dict_type": "sharded_state_dict"}}
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"fsdp": "full_shard"},
    "fsdp1": {"fsdp": "full_shard", "fsdp_version": 1},
    "fsdp, each its part": SPREAD,
    "zero1": {"deepspeed": {"zero_optimization": {"stage": 1}}},
    "zero3": {"deepspeed": {"zero_optimization": {"stage": 3}}},
    "oss": {"sharded_ddp": "simple"},
}
SETTINGS: dict[str, Any] = {
    "max_steps": 9,
    "save_steps": 2,
    "logging_steps": 1,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 4,
    "dropout": 0.1,
    "evaluation_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
}


class Own(Trainer):
    """What it overrides is called for every checkpoint but those that each process writes a part of."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        Path(output_dir or "", "own.txt").touch()


class Told(TrainerCallback):
    """At which step the listeners are told, and of how many whole checkpoints there were then."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


def everywhere(value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def made(folder: Path, **values: Any) -> tuple[Trainer, Told]:
    told = Told()
    settings = {**SETTINGS, **values}
    callbacks = [told, *settings.pop("callbacks", ())]
    return trainer(folder, data=rows(53), callbacks=callbacks, **settings), told


@contextlib.contextmanager
def later_than_training() -> Iterator[None]:
    """Threads begin to write when the next update is done: what they were given must not have changed with it."""
    write = saving._write

    def waits(trained: Trainer, *rest: Any) -> None:
        begun, deadline = trained.state.global_step, time.monotonic() + 30
        while trained.state.global_step == begun and time.monotonic() < deadline:
            time.sleep(0.001)
        write(trained, *rest)

    saving._write = waits
    yield
    saving._write = write


def both_forms(output: Path, name: str) -> None:
    """Writing in a thread changes nothing of what is trained, written, told, and resumed."""
    engine = ENGINES[name]
    plain, _ = made(output / "sync", **engine)
    plain.train()
    other, told = made(output / "async", save_async=True, cls=Own, **engine)
    with later_than_training():
        other.train()
    assert weights_equal(plain.model, other.model)
    assert history(plain) == history(other)
    assert len(told.steps) == 4, told.steps
    assert everywhere(told.steps) == [told.steps] * 2, "told at different steps"
    for step in (2, 4, 6, 8):
        folder = output / "async" / f"checkpoint-{step}"
        assert validate(str(folder)) is None
        files = {path.name for path in folder.iterdir()}
        assert ("own.txt" in files) == (name != "fsdp, each its part")
        assert files - {"own.txt"} == {path.name for path in (output / "sync" / folder.name).iterdir()}
        assert "random-1.json" in files
        assert ("optimizer-1.json" in files) == (name == "fsdp, each its part")
    for step, form in ((4, False), (6, True)):
        again, _ = made(output / f"from-{step}", save_async=form, **engine)
        again.train(resume_from_checkpoint=str(output / "async" / f"checkpoint-{step}"))
        assert weights_equal(plain.model, again.model), step
        ours, theirs = history(again), history(plain)
        assert ours == theirs, (ours, theirs)


class Limit(TrainerCallback):
    """From update 3 to update 5 one process cannot write files of any size.

    `apart` fills with how many of the groups are not of the training.
    """

    def __init__(self, culprit: int) -> None:
        self.culprit = culprit
        self.apart: set[int] = set()
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._writer is not None:  # type: ignore[attr-defined]
            self.trainer._writer.join()  # type: ignore[attr-defined]  # of the checkpoint before
        self.apart.add(len(gloo.groups()) - len(gloo.groups_in_training()))
        if dist.get_rank() == self.culprit and state.global_step in (3, 5):
            soft = 100 if state.global_step == 3 else self.before[0]
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, self.before[1]))


def one_cannot_write(output: Path, name: str, culprit: int) -> None:
    """The failure of one rank ends the run on both, or is a warning on both, and the other checkpoints are there."""
    for form in (False, True):
        for on_error in ("stop", "warn"):
            folder = output / f"{name}-{culprit}-{on_error}-{form}"
            limit = Limit(culprit)
            broken, told = made(
                folder,
                callbacks=[limit],
                save_async=form,
                on_save_error=on_error,
                logging_steps=50,
                learning_rate=1e-3,
                **ENGINES[name],
            )
            limit.trainer = broken  # type: ignore[attr-defined]
            refused = None
            try:
                broken.train()
            except CheckpointError as error:
                refused = str(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit.before)
            # Another process's failure must not break off what the threads exchange.
            assert max(limit.apart) == (form and name == "fsdp, each its part")
            assert len(set(everywhere(broken.state.global_step))) == 1
            there = sorted(path.name for path in folder.iterdir() if "checkpoint" in path.name)
            assert len({tuple(steps) for steps in everywhere(told.steps)}) == 1
            assert len(set(everywhere(broken.state.best_model_checkpoint))) == 1
            if on_error == "stop":
                assert refused is not None
                assert "limits the size of files" in refused
                assert refused.startswith(f"Rank {culprit}: ") == (dist.get_rank() != culprit), refused
                assert there == ["checkpoint-2"], there
                assert len(told.steps) == 1
                assert broken.state.best_model_checkpoint == str(folder / "checkpoint-2")
            else:
                assert refused is None, refused
                assert there == ["checkpoint-2", "checkpoint-6", "checkpoint-8"], there
                assert len(told.steps) == 3
                assert broken.state.best_model_checkpoint != str(folder / "checkpoint-4")


def killed(output: Path, resumes: bool) -> None:
    """One process is killed in the middle of its part, while the thread of the other waits for it."""
    if resumes:
        again, _ = made(output, save_async=True, **SPREAD)
        again.train(resume_from_checkpoint=True)
        plain, _ = made(output / "plain", **SPREAD)
        plain.train()
        assert weights_equal(plain.model, again.model)
        return
    write, calls = spread.write_packed, []

    def dies(folder: str, *rest: Any) -> Any:
        calls.append(folder)
        if len(calls) == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(folder, *rest)

    spread.write_packed = dies  # type: ignore[attr-defined]
    broken, _ = made(output, save_async=True, **SPREAD)
    try:
        broken.train()
    except ProcessError:
        print("rank 0 has noticed", flush=True)
        raise


def main() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("default", module="deepspeed|fairscale|torch")
    output, task = Path(sys.argv[1]), sys.argv[2]
    current(TrainingArguments(str(output), use_cpu=True))
    torch.manual_seed(0)
    if task == "both":
        for name in sys.argv[3].split(";"):
            both_forms(output / name, name)
            if dist.get_rank() == 0:
                print(f"{name}: fine", flush=True)
    elif task == "limit":
        one_cannot_write(output, "ddp", 0)
        one_cannot_write(output, "fsdp, each its part", 0)
        one_cannot_write(output, "fsdp, each its part", 1)
        print(f"rank {dist.get_rank()}: fine", flush=True)
    else:
        killed(output, task == "resume")


if __name__ == "__main__":
    main()
