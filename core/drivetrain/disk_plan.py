"""What a run asks of the disk, looked at before it begins: its folder can be made, and its checkpoints fit."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from drivetrain.checkpoint import checkpoints
from drivetrain.checkpoint.files import make_folder, size, tree_bytes
from drivetrain.errors import ConfigurationError
from drivetrain.evaluation_weights import trains_others
from drivetrain.saving import run_folder
from drivetrain.slots import Group, Model, OptimizerFactory

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")

# Of an optimizer that cannot be tried: two moments in single precision, which is what most have.
_GUESS = 8.0


@dataclass(slots=True)
class DiskPlan:
    """How many checkpoints a run will have at a time, against the space that is free.

    Attributes:
        folder: where they go.
        saves: how many are still to be written.
        limit: `save_total_limit`; None where all stay.
        best: whether the best is spared besides the latest.
        measured: the size of a checkpoint has been seen.
        said: it was said that they do not fit, and once is enough.
    """

    folder: str
    saves: int
    limit: int | None
    best: bool
    measured: bool = False
    said: bool = False

    def expect(self, needed: int) -> None:
        """Warns where checkpoints of about so many bytes will not fit."""
        self._check(needed, "about ")

    def written(self, checkpoint: str) -> None:
        """After each checkpoint: the first one's size says whether the others fit, if that was not said before."""
        self.saves -= 1
        if not self.measured:
            self.measured = True
            self._check(tree_bytes(checkpoint), "")

    def _check(self, needed: int, about: str) -> None:
        if self.said or self.saves <= 0 or needed <= 0:
            return
        try:
            free = shutil.disk_usage(_nearest(self.folder)).free
            there = [tree_bytes(path) for _, path in checkpoints(self.folder)]
        except OSError:
            return  # what is wrong with this folder the first save will say
        at_a_time, more = self.saves, self.saves * needed
        if self.limit is not None:
            # One more than stay, while the next is being written; it takes the room of those that go.
            stay = max(self.limit, 1 + self.best)
            at_a_time = min(max(stay, len(there)) + 1, len(there) + self.saves)
            more = max(needed, at_a_time * needed - sum(there))
        if more > free:
            self.said = True
            number = f"{at_a_time} at a time" if self.limit is not None else str(at_a_time)
            logger.warning(
                "The checkpoints of this run will not fit: %s of %s%s each need %s more in %s, where %s are free; %s, "
                "save less often, or free some space there.",
                *(number, about, size(needed), size(more), self.folder, size(free)),
                "lower save_total_limit" if self.limit is not None else "set save_total_limit",
            )


def plan(trainer: Trainer, optimizer: OptimizerFactory, checkpoint: str | None) -> DiskPlan | None:
    """Plans the checkpoints of a run, and warns where they will not fit. None where this process writes none.

    Args:
        trainer: about to train; its model is bare still, and its state says how long the run is.
        optimizer: what the optimizer will be built from.
        checkpoint: the one that the run goes on from.
    """
    args, run = trainer.args, trainer.run
    if not run.keeps_state or args.save_strategy == "no":
        return None
    limit = args.save_total_limit if args.save_total_limit and args.save_total_limit > 0 else None
    made = DiskPlan(
        run_folder(trainer), _saves(run, checkpoint), limit, best=args.metric_for_best_model is not None
    )
    made.expect(_model_bytes(run.model) + _optimizer_bytes(run, optimizer))
    return made


def make_output_dir(folder: str) -> None:
    """Makes the folder of a run.

    Raises:
        ConfigurationError: it cannot be made.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise ConfigurationError(
            f"output_dir={folder!r} cannot be made ({error.strerror}): choose another one."
        ) from error


def _saves(run: Run, checkpoint: str | None) -> int:
    """The checkpoints that the arguments ask for from here on."""
    state = run.state
    match = re.search(r"(\d+)$", os.path.basename(os.path.normpath(checkpoint))) if checkpoint else None
    done = min(int(match[1]), state.max_steps) if match else 0
    if run.args.save_strategy == "steps":
        return state.max_steps // state.save_steps - done // state.save_steps if state.save_steps > 0 else 0
    if state.num_train_epochs >= sys.maxsize:
        return 1  # data without a length: nobody knows how many epochs there will be
    return state.num_train_epochs - done * state.num_train_epochs // max(state.max_steps, 1)


def _elements(tensor: torch.Tensor) -> int:
    # An engine that has taken a parameter's data away keeps its length beside it.
    return int(getattr(tensor, "ds_numel", tensor.numel()))


def _model_bytes(model: Model) -> int:
    return sum(
        _elements(tensor) * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())
    )


def _optimizer_bytes(run: Run, optimizer: OptimizerFactory) -> int:
    """About what the optimizer's state takes after the first update, found out by an update of small parameters."""
    model, active = run.model, run.plan.slot("optimizer")
    groups: list[Group] = [{"params": list(model.parameters())}]
    tried = optimizer.finished is None and active is not None and active.name != "own"
    if tried and optimizer.groups is not None:
        groups = optimizer.groups(model)
    total = 0.0
    for group in groups:
        for matrix in (False, True):
            elements = sum(
                _elements(p) for p in group["params"] if p.requires_grad and (p.dim() >= 2) is matrix
            )
            if elements:
                total += elements * (_bytes_an_element(optimizer, group, matrix) if tried else _GUESS)
    return round(total)


def _bytes_an_element(optimizer: OptimizerFactory, group: Group, matrix: bool) -> float:
    parameter = torch.nn.Parameter(torch.zeros((96, 128) if matrix else (128,)))
    parameter.grad = torch.ones_like(parameter)
    try:
        made = optimizer.cls([{**group, "params": [parameter]}], **optimizer.kwargs)
        if callable(train := getattr(made, "train", None)):
            train()  # schedule-free ones step only in this mode
        made.step()
        state = made.state[parameter].values()
    except Exception:
        return _GUESS
    held = sum(v.numel() * v.element_size() for v in state if isinstance(v, torch.Tensor) and v.dim() > 0)
    aside = (
        parameter.element_size() if trains_others(made) else 0
    )  # the weights in training, beside those for evaluation
    return held / parameter.numel() + aside


def _nearest(folder: str) -> str:
    """The folder, or the nearest one above it that is there."""
    path = os.path.abspath(folder)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path
