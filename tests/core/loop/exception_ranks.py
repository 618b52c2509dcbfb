"""save_on_exception in several processes, of which one fails, or all: run by test_save_on_exception_ranks.py.

`exception_ranks.py FOLDER STRATEGY [PART]`. Prints `SCENARIO: fine on rank N`; of the part `said` what rank 0 is told, and
of `killed`, in which rank 1 is, what it is told then.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.faults import SETTINGS, At, BreaksInTheUpdate, Counts, Fault, Net, Rows
from support.toy import history, rows, trainer, weights_equal

from drivetrain import TrainerCallback
from drivetrain.errors import ProcessError
from drivetrain.processes import current

folder, strategy = Path(sys.argv[1]), sys.argv[2]
said: list[str] = []
DATA = rows(102)  # at least two rows for each rank in the last batch, of which the model takes means


class Waits(TrainerCallback):
    """Waits for the others at the end of an update, of which one does not come: what is due is not done here either."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            dist.barrier()


class Notes(logging.Handler):
    """Keeps what is said."""

    def emit(self, record: logging.LogRecord) -> None:
        said.append(record.getMessage())


def make(name: str, fault: tuple[str, int] | None = None, **more: Any) -> Any:
    torch.manual_seed(1)
    settings = (
        SETTINGS
        | {"per_device_train_batch_size": 4, "num_train_epochs": 4, "strategy": strategy, "data": DATA}
        | more
    )
    return trainer(folder / name, model=Net(fault), plugins=[Counts()], **settings)


def failing(
    name: str,
    which: tuple[int, ...],
    fault: tuple[str, int] | None = None,
    others: dict[str, Any] | None = None,
    **more: Any,
) -> list[str]:
    """Trains until some ranks fail; `others` are the settings of those that do not.

    Returns:
        names of the checkpoints.
    """
    said.clear()
    mine = rank in which
    made = make(name, fault, **more) if mine else make(name, **(others or {}))
    with pytest.raises(Fault if mine else ProcessError) as caught:
        made.train()
    assert mine or f"has failed: rank {which[0]} by Fault" in str(caught.value)
    dist.barrier()
    return sorted(path.name for path in (folder / name).glob("checkpoint-*"))


def fine(name: str) -> None:
    print(f"{name}: fine on rank {rank}", flush=True)


def said_part() -> None:
    """What is told of the argument where it has no effect."""
    if strategy == "own group":
        dist.init_process_group("gloo")
    made = make("said", strategy={"own group": "ddp"}.get(strategy, strategy), max_steps=1)
    made.train()
    if made.is_world_process_zero():
        print("SAID:", *[line for line in said if line.startswith("save_on_exception")], flush=True)
    dist.barrier()


def killed_part() -> None:
    """The other has no process to meet."""

    class Dies(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    made = make("killed", callbacks=[Dies()])
    rank = made.args.process_index
    # The agent, which has lost one, ends the other too.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with pytest.raises(ProcessError, match="rank 1, without a word"):
        made.train()
    assert not list((folder / "killed").glob("checkpoint-*"))
    print("KILLED:", *[line for line in said if line.startswith("save_on_exception")], flush=True)


logging.getLogger("drivetrain").addHandler(Notes())
if len(sys.argv) > 3:
    {"said": said_part, "killed": killed_part}[sys.argv[3]]()
    sys.exit()
whole = make("whole")
rank = current(whole.args).rank
last = current(whole.args).world_size - 1
whole.train()

rows_of_one = Rows(DATA)
rows_of_one.fails = 24
cases: dict[str, tuple[tuple[int, ...], tuple[str, int] | None, dict[str, Any], int | None]] = {
    "forward": ((last,), ("forward", 12), {}, 5),
    "backward": ((0,), ("backward", 12), {}, 5),
    "second epoch": ((last,), ("backward", 31), {}, 15),
    "async": ((last,), ("forward", 11), {"save_async": True}, 5),
    "everybody": (tuple(range(last + 1)), ("forward", 12), {}, 5),
    "data": ((last,), None, {"data": rows_of_one}, None),
    "callback": ((last,), None, {"callbacks": [At("on_step_begin", 7)]}, 7),
}
for name, (which, fault, more, step) in cases.items():
    found = failing(name, which, fault, **more)
    assert len(found) == 1, (name, found, said)
    assert step is None or found == [f"checkpoint-{step}"], (name, found)
    if rank == 0:
        assert [line for line in said if line.startswith("save_on_exception")] == [
            f"save_on_exception: {folder / name / found[0]}, of the last update, is written."
        ], said
    resumed = make(name)
    resumed.train(resume_from_checkpoint=True)
    assert history(resumed) == history(whole), name
    assert weights_equal(resumed.model, whole.model), name
    assert resumed._plugins[0].begun == whole._plugins[0].begun
    fine(name)

refused: dict[str, tuple[tuple[str, int] | None, dict[str, Any], str]] = {
    "begun": (("forward", 1), {}, "no update has been done since training began"),
    "due": (
        None,
        {"callbacks": [At("on_step_end", 3)], "others": {"callbacks": [Waits()]}},
        f"all that was due after the update was done in rank {last}",
    ),
    "weights": (("weights", 8), {}, f"the weights have been changed since the update in rank {last}"),
    "update": (None, {"optim": BreaksInTheUpdate}, "in the middle of an update"),
}
for name, (fault, more, why) in refused.items():
    which = (last,) if name != "update" else tuple(range(last + 1))
    assert failing(name, which, fault, **more) == []
    assert rank != 0 or any(why in line for line in said), (name, said)
    fine(name)
