"""save_on_each_node on two nodes: run by test_save_on_each_node.py, with a folder and what to do."""

from __future__ import annotations

import filecmp
import logging
import os
import resource
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
from support.toy import history, rows, trainer, weights_equal

from drivetrain import CheckpointError, ConfigurationError, Trainer, TrainerCallback
from drivetrain.checkpoint import checkpoints, validate

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"fsdp": "full_shard"},
    "fsdp1": {"fsdp": "full_shard", "fsdp_version": 1},
    "zero1": {"deepspeed": {"zero_optimization": {"stage": 1}}},
    "zero3": {"deepspeed": {"zero_optimization": {"stage": 3}}},
    "oss": {"sharded_ddp": "simple"},
}
SETTINGS: dict[str, Any] = {
    "max_steps": 7,
    "save_steps": 2,
    "logging_steps": 1,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "dropout": 0.1,
    "save_on_each_node": True,
}
NODES = ("node0", "node1")
NODE = f"node{os.environ['GROUP_RANK']}"
# Each node writes its own arguments, output folder among them; the manifest has their checksums.
OWN = {"training_args.json", "trainer_state.json", "manifest.json"}
UNLIMITED = resource.getrlimit(resource.RLIMIT_FSIZE)
said: list[str] = []


class Saying(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        said.append(record.getMessage())


class Saves(Trainer):
    """Counts the models that this process writes."""

    models = 0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        self.models += 1


class Counts(TrainerCallback):
    """Knows something on rank 0 alone, as what logs to a server does."""

    def __init__(self) -> None:
        self.known = "nothing"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if dist.get_rank() == 0 and self.known == "nothing":
            self.known = "where it logs to"

    def save_state(self) -> dict[str, str]:
        return {"known": self.known}

    def load_state(self, state: dict[str, str]) -> None:
        self.known = state["known"]


class Limit(TrainerCallback):
    """From update 3 to update 5 the second node's processes cannot write files of any size."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if NODE == "node1" and state.global_step in (3, 5):
            if self.trainer._writer is not None:  # type: ignore[attr-defined]
                self.trainer._writer.join()  # type: ignore[attr-defined]  # of the checkpoint before
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (100, UNLIMITED[1]) if state.global_step == 3 else UNLIMITED
            )


def everywhere(value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def made(folder: Path, **values: Any) -> Trainer:
    settings = {**SETTINGS, **values}
    callbacks = [Counts(), *settings.pop("callbacks", ())]
    trained = trainer(folder, data=rows(61), callbacks=callbacks, **settings)
    for callback in callbacks:
        callback.trainer = trained
    return trained


def steps(folder: Path) -> list[int]:
    return [step for step, path in checkpoints(str(folder)) if validate(path) is None]


def first() -> bool:
    return os.environ["LOCAL_RANK"] == "0"


def copied(base: Path, name: str, new: str, last: int) -> Path:
    """Each node's own folder, up to a step, copied."""
    if first():
        for step, path in checkpoints(str(base / NODE / name)):
            if step <= last:
                shutil.copytree(path, base / NODE / new / f"checkpoint-{step}")
    dist.barrier()
    return base / NODE / new


def fails(kind: type[Exception], folder: Path, *, resume: Any = True, **values: Any) -> str:
    """The error that training ends with on every rank, alike."""
    text = ""
    try:
        made(folder, **values).train(resume_from_checkpoint=resume)
    except kind as error:
        text = str(error)
    assert text, "no error"
    told = everywhere(text)
    assert all(told), told
    return text


def engine(base: Path, name: str, save_async: bool) -> None:
    """Both folders have the same checkpoints, and a run from them ends as the one that was never stopped."""
    values = {**ENGINES[name], "save_async": save_async}
    whole = made(base / NODE / name, save_total_limit=3, **values)
    whole.train()
    dist.barrier()
    assert whole.run.writers == (0, 2), whole.run.writers
    for step in (2, 4, 6):
        folders = [base / node / name / f"checkpoint-{step}" for node in NODES]
        assert [validate(str(folder)) for folder in folders] == [None, None]
        files = {path.name for path in folders[0].iterdir()}
        assert {path.name for path in folders[1].iterdir()} == files
        assert {f"random-{rank}.json" for rank in range(4)} <= files
        alike = filecmp.cmpfiles(*folders, sorted(files - OWN), shallow=False)
        assert alike[1:] == ([], []), alike
    assert not list((base / NODE / name).glob(".*")), "something is left"

    again = made(copied(base, name, f"{name}-again", 4), **values)
    again.train(resume_from_checkpoint=True)
    assert again._resumed_from == str(base / NODE / f"{name}-again" / "checkpoint-4")
    assert weights_equal(whole.model, again.model)
    assert history(whole) == history(again)
    again.save_model()
    dist.barrier()
    one, other = (base / node / f"{name}-again" / "model.safetensors" for node in NODES)
    assert filecmp.cmp(one, other, shallow=False)


def ddp(base: Path) -> None:
    engine(base, "ddp", False)
    whole = made(base / NODE / "whole", **ENGINES["ddp"])
    whole.train()

    # What is damaged on one node is passed over on both; and one that the other node lacks.
    folder = copied(base, "whole", "damaged", 6)
    if first():
        lost = {"node0": 6, "node1": 4}[NODE]
        with open(folder / f"checkpoint-{lost}" / "optimizer.json", "a") as file:
            file.write(" ")
    dist.barrier()
    said.clear()
    again = made(folder, **ENGINES["ddp"])
    again.train(resume_from_checkpoint=True)
    assert again._resumed_from == str(folder / "checkpoint-2")
    assert weights_equal(whole.model, again.model)
    if first():
        lines = [line for line in said if "is passed over" in line]
        assert sorted(line.partition("checkpoint-")[2][0] for line in lines) == ["4", "6"], lines
    assert steps(folder) == [2, 4, 6]

    # Of another run: the same step, but not the same numbers.
    folder = copied(base, "whole", "other", 2)
    other = made(base / NODE / "stranger", seed=7, max_steps=4, **ENGINES["ddp"])
    other.train()
    if first() and NODE == "node1":
        shutil.copytree(base / NODE / "stranger" / "checkpoint-4", folder / "checkpoint-4")
    elif first():
        shutil.copytree(base / NODE / "whole" / "checkpoint-4", folder / "checkpoint-4")
    dist.barrier()
    text = fails(CheckpointError, folder, resume=str(folder / "checkpoint-4"), **ENGINES["ddp"])
    assert "is not the same checkpoint on every node" in text
    again = made(folder, **ENGINES["ddp"])
    again.train(resume_from_checkpoint=True)
    assert again._resumed_from == str(folder / "checkpoint-2")

    # None on one node.
    folder = copied(base, "whole", "lost", 2)
    if NODE == "node1" and first():
        shutil.rmtree(folder)
    dist.barrier()
    text = fails(CheckpointError, folder, **ENGINES["ddp"])
    assert "(as its last one rank 0 has checkpoint-2, rank 2 has none)" in text, text
    text = fails(CheckpointError, folder, resume=str(folder / "checkpoint-2"), **ENGINES["ddp"])
    assert "Rank 2 does not see the checkpoint" in text, text
    text = fails(CheckpointError, base / NODE / "nothing", **ENGINES["ddp"])
    assert "found no valid checkpoint" in text, text

    # Without the argument the second node has none to go on from.
    alone = {**ENGINES["ddp"], "save_on_each_node": False}
    os.chdir(base / NODE)  # where one name is another folder on each
    made(Path("alone"), **alone, max_steps=2).train()
    assert steps(Path("alone")) == ([2] if NODE == "node0" else [])
    dist.barrier()
    text = fails(CheckpointError, Path("alone"), **alone)
    assert "Rank 2 does not see the checkpoint" in text, text
    assert "save_on_each_node=True" in text
    if NODE == "node1" and first():
        shutil.copytree("stranger/checkpoint-4", "alone/checkpoint-2")
    dist.barrier()
    text = fails(CheckpointError, Path("alone"), **alone)
    assert "is not the same checkpoint on every node" in text, text

    # One folder: rank 0 alone writes, and says so once.
    said.clear()
    shared = made(base / "shared", cls=Saves, **ENGINES["ddp"], max_steps=2)
    shared.train()
    shared.save_model()
    dist.barrier()
    assert shared.run.writers == (0,)
    told = sum(("is one folder for the nodes of ranks 0 and 2, so rank 0 alone" in line) for line in said)
    assert everywhere(told) == [1, 0, 0, 0]
    assert everywhere(shared.models) == [2, 0, 0, 0]
    assert sorted(path.name for path in (base / "shared").iterdir()) == [
        *("checkpoint-2", "drivetrain-record.jsonl", "model.safetensors")
    ]

    # A failure on one node is one on all, at the same point; what they have in common is not rotated away.
    for form in (False, True):
        folder = base / NODE / f"failing-{form}"
        values = {**ENGINES["ddp"], "save_async": form, "save_total_limit": 1, "max_steps": 6}
        text = fails(CheckpointError, folder, resume=None, callbacks=[Limit()], **values)
        resource.setrlimit(resource.RLIMIT_FSIZE, UNLIMITED)
        assert "checkpoint-4 was not written" in text, text
        assert ("Rank 2: " in text) == (os.environ["RANK"] != "2"), text
        dist.barrier()
        assert [steps(base / node / folder.name) for node in NODES] == [[2, 4], [2]]
        # As a warning, the run goes on: the next one is written everywhere, and the older ones go.
        again = made(folder, on_save_error="warn", callbacks=[Limit()], **values)
        again.train(resume_from_checkpoint=True)
        assert again._resumed_from == str(folder / "checkpoint-2")
        dist.barrier()
        assert [steps(base / node / folder.name) for node in NODES] == [[6], [6]]


def fsdp(base: Path) -> None:
    engine(base, "fsdp", True)
    spread = {"fsdp": "full_shard", "fsdp_config": {"state_dict_type": "sharded_state_dict"}}
    text = fails(ConfigurationError, base / NODE / "spread", resume=None, **spread)
    assert "choose state_dict_type='full_state_dict', or one output_dir" in text
    made(base / "one", max_steps=2, **spread).train()
    assert (base / "one" / "checkpoint-2" / "optimizer-3.json").exists()


def main() -> None:
    warnings.simplefilter("ignore")
    base, what = Path(sys.argv[1]), sys.argv[2].split(";")
    logging.getLogger("drivetrain").addHandler(Saying())
    for name in what:
        if name == "ddp":
            ddp(base)
        elif name == "fsdp":
            fsdp(base)
        else:
            engine(base, name, False)
        print(f"{name}: fine", flush=True)


if __name__ == "__main__":
    main()
