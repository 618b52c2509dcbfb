"""Changes that would corrupt a run that goes on from a checkpoint, without anybody seeing it: each is an error.

What takes effect from here on as it was asked for (a longer run, another precision, label smoothing) is no error; it
is said (`drivetrain.changes`). Decision 34 lists what is which.
"""

from __future__ import annotations

import logging
import weakref
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch.optim.lr_scheduler import LambdaLR

from drivetrain.checkpoint import CheckpointContents, plain
from drivetrain.data.samplers import LengthGroupedSampler, SeededRandomSampler, has_length
from drivetrain.data.source import ITERABLE, MAP, kind_of
from drivetrain.errors import ConfigurationError
from drivetrain.gathering import broadcast

if TYPE_CHECKING:
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")

_JUMP = 0.01  # a learning rate that moves by less, as a share of it, does not jump
_ALLOW = ", or allow it by allow_resume_changes=True."
_digests: weakref.WeakKeyDictionary[LengthGroupedSampler, str] = weakref.WeakKeyDictionary()


def facts_of(run: Run) -> dict[str, Any]:
    """What a checkpoint tells of its run, beside the arguments, so that a resume can see whether it still fits.

    No row is fetched for it: that may be slow, may draw random numbers, and may change the data set's own state.
    """
    loader = run.train_dataloader
    kind = kind_of(loader)
    dataset = getattr(loader, "dataset", None)
    facts: dict[str, Any] = {
        "kind": kind,
        "rows": len(dataset) if dataset is not None and kind == MAP and has_length(dataset) else None,
        "workers": getattr(loader, "num_workers", 0) if kind == ITERABLE else None,
    }
    if kind == MAP:
        batches = loader.batch_sampler
        sampler = getattr(batches, "sampler", None) or batches or loader.sampler
        facts["sampler"] = type(sampler).__name__
        if isinstance(sampler, (SeededRandomSampler, LengthGroupedSampler)):
            facts["data_seed"] = sampler.seed
        if isinstance(sampler, LengthGroupedSampler):
            facts["lengths"] = _digest(sampler)
            facts["rows_an_update"] = sampler.batch_size
    scheduler = run.lr_scheduler
    return {
        "data": facts,
        "model": model_class(run.model),
        "scheduler": type(scheduler).__name__ if scheduler is not None else None,
    }


def model_class(model: torch.nn.Module) -> str:
    """The class of a model by its import string; of one that FSDP shards, the class beneath that it puts on top."""
    kinds = (kind for kind in type(model).__mro__ if not kind.__module__.startswith("torch.distributed"))
    kind = next(kinds)
    return f"{kind.__module__}:{kind.__qualname__}"


def _digest(sampler: LengthGroupedSampler) -> str:
    if sampler not in _digests:
        _digests[sampler] = xxhash.xxh3_64_hexdigest(array("q", map(int, sampler.lengths)).tobytes())
    return _digests[sampler]


def check_changes(run: Run, contents: CheckpointContents, folder: str) -> None:
    """Refuses to go on where that would corrupt the run, unless `allow_resume_changes` is set. A collective.

    Raises:
        ConfigurationError: every such change: what it was, what it is, and why it matters.
    """
    problems = broadcast(list(_problems(run, contents)) if run.is_main_process else None, run.processes)
    if not problems:
        return
    if not run.args.allow_resume_changes:
        raise ConfigurationError([f"{folder}: {problem}{_ALLOW}" for problem in problems])
    if run.is_main_process:
        for problem in problems:
            logger.warning("%s: %s; allow_resume_changes=True lets it pass.", folder, problem)


def _problems(run: Run, contents: CheckpointContents) -> Iterator[str]:
    now = plain(run.args.to_dict())
    before = contents.args
    if in_an_epoch(contents) and not run.args.ignore_data_skip:
        yield from _of_data(contents.configuration.get("data") or {}, facts_of(run)["data"])
    assert contents.train_state is not None
    if contents.train_state.gradients and before.get("loss_reduction") not in (None, now["loss_reduction"]):
        yield (
            f"loss_reduction was {before['loss_reduction']!r} and is {now['loss_reduction']!r}, and the checkpoint "
            "carries gradients of an unfinished update, which would be the sum of both: keep it"
        )
    yield from _of_schedule(run, contents, now)
    yield from _of_best(contents, now)


def in_an_epoch(contents: CheckpointContents) -> bool:
    """Whether a checkpoint lies in the middle of an epoch, so that the order of its rows goes on."""
    where = contents.position or {}
    data = where.get("data") or {}
    ended = any(part.get("ended") for part in (data, *(data.get("ranks") or ())))
    return bool(data.get("batch")) and not where.get("epoch_ended") and not ended


def _of_data(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """The order of rows is drawn anew from the same seed; over other data, or by another sampler, it is another."""
    where = "and the checkpoint lies in the middle of an epoch"
    for key, what, why in (
        ("kind", "the training data's loader", "whose rows cannot be found again"),
        (
            "rows",
            "the number of training rows",
            "whose other rows would be drawn anew: some twice, some never",
        ),
        ("sampler", "the sampler", "whose other rows would come in another order: some twice, some never"),
        ("data_seed", "data_seed", "whose other rows would come in another order: some twice, some never"),
        (
            "rows_an_update",
            "the number of rows of an update",
            "whose rows are grouped by length an update at a time: some would be seen twice, some never",
        ),
        (
            "workers",
            "dataloader_num_workers",
            "whose rows are dealt to the workers: some would be seen twice, some never",
        ),
    ):
        if key in before and key in now and before[key] != now[key]:
            yield (
                f"{what} was {before[key]} and is {now[key]}, {where}, {why}; resume with what it was, or from a "
                "checkpoint of an epoch's end, or begin the epoch anew by ignore_data_skip=True"
            )
            if key in ("kind", "sampler"):
                return  # the rest follows from it
    if before.get("lengths") != now.get("lengths") and before.get("rows") == now.get("rows"):
        yield (
            "the lengths by which rows are grouped (length_column_name, or the data) are others now, "
            f"{where}, whose other rows would come in another order: some twice, some never; resume with what they "
            "were, or from a checkpoint of an epoch's end"
        )


def _of_schedule(run: Run, contents: CheckpointContents, now: dict[str, Any]) -> Iterator[str]:
    state = contents.trainer_state
    assert isinstance(state, dict)
    step, end = int(state.get("global_step") or 0), run.state.max_steps
    if step > end:
        yield (
            f"the run has come to step {step} and is to end at {end} now (it was {state.get('max_steps')}), so the "
            "learning rate's schedule is over and nothing is trained: raise max_steps or num_train_epochs"
        )
        return
    rates = rates_of(run, contents)
    moved = "" if rates is None else f": the learning rate would jump from {rates[0]:.3g} to {rates[1]:.3g}"
    kept, given = _scheduler_of(contents), _scheduler_now(run)
    if kept is not None and kept != given:
        yield (
            f"the scheduler was {kept} and is {given}, which goes on from the other's state{moved}; resume with the "
            "scheduler that it was"
        )
        return
    jumps = rates is not None and abs(rates[1] - rates[0]) > _JUMP * max(rates)
    names = ("warmup_steps", "warmup_ratio", "lr_scheduler_kwargs")
    changed = [name for name in names if name in contents.args and contents.args[name] != now[name]]
    if changed and jumps:
        clauses = " and ".join(f"{name} was {contents.args[name]!r} and is {now[name]!r}" for name in changed)
        yield f"{clauses}{moved} at step {step}; resume with what it was"


def _scheduler_of(contents: CheckpointContents) -> str | None:
    """The scheduler of a checkpoint: its plugin, and the class of what that made."""
    named = [key.partition(":")[2] for key in contents.plugins if key.startswith("scheduler:")]
    kind = contents.configuration.get("scheduler")
    return f"{named[0]} ({kind})" if named and kind else None


def _scheduler_now(run: Run) -> str:
    named = [name for kind, name, _, _ in run.plan.describe() if kind == "scheduler"]
    return f"{named[0] if named else None} ({type(run.lr_scheduler).__name__})"


def rates_of(run: Run, contents: CheckpointContents) -> tuple[float, float] | None:
    """The first group's learning rate at the checkpoint's step: by its own schedule, and by the one of this run.

    None where a scheduler is no function of the step.
    """
    saved, live = contents.scheduler or {}, run.lr_scheduler
    if not isinstance(live, LambdaLR) or not saved.get("base_lrs") or not saved.get("_last_lr"):
        return None
    multiple = live.lr_lambdas[0](int(saved["last_epoch"]))
    return float(saved["_last_lr"][0]), float(saved["base_lrs"][0] * multiple)


def _of_best(contents: CheckpointContents, now: dict[str, Any]) -> Iterator[str]:
    state, before = contents.trainer_state, contents.args
    assert isinstance(state, dict)
    if state.get("best_metric") is None:
        return
    for name in ("metric_for_best_model", "greater_is_better"):
        if name in before and before[name] != now[name]:
            yield (
                f"{name} was {before[name]!r} and is {now[name]!r}, and the best model so far ({state['best_metric']}) "
                "was chosen by the former, so that no comparison with it is true: keep it"
            )
            return
