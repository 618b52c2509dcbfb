"""What a difference usually means: the sentence that an author of a strategy would like to be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from drivetrain.testing.comparing import Finding
from drivetrain.testing.scenario import ROWS_OF_A_BATCH, Outcome, Scenario

OF_STATE = {
    "weights": "state_in() must set every weight by the bare model's names, and state_out() give all of them back.",
    "buffers": "Buffers belong to the bare model's state_dict(): state_out() must give them, and state_in() set them.",
    "optimizer": "state_in() must hand the optimizer's state to whatever updates the weights, step counters included, "
    "and state_out() give it back whole, by the parameters' names.",
    "gradients": "Gradients of an unfinished accumulation belong to the state: state_out() gives them averaged over "
    "the processes, and state_in() puts them back where the next micro-batch adds to them.",
    "groups": "state_in() must set the options of the parameter groups (the learning rate among them), and "
    "state_out() give the groups with names in the place of parameters.",
    "scheduler": "The scheduler must step once an update that stepped, on every process.",
}


def of_run(found: Outcome, wanted: Outcome, findings: Sequence[Finding]) -> str:
    """Of a run that is not the one it must be equal to."""
    first = {finding.part: finding for finding in reversed(findings)}
    if len({rank.weights for rank in found.ranks}) > 1:
        return (
            "The processes end with different weights: gradients (or weights) are not brought together in every "
            "update, or not for every parameter."
        )
    if "losses" in first and first["losses"].first == 0:
        return (
            "The very first loss differs, before any update: prepare() changes the weights or the model's mode, or "
            "training_step() gets another batch."
        )
    if "stepped" in first:
        return (
            "An update whose gradients overflow on any process is skipped on all of them, the schedule with it, and "
            "the loss scale falls; any other steps."
        )
    if "schedule" in first:
        return "The learning rate is not that of the schedule, which must step once for each update that stepped."
    if "norms" in first:
        return _of_norms(found, wanted, first)
    if "losses" in first or "weights" in first:
        return _of_updates(found.scenario, wanted.ranks[0].norms, first)
    if "order" in first:
        return of_order(found)
    if "buffers" in first:
        return (
            "Every process's own buffers count its own micro-batches: they are neither summed nor reset, and the ones "
            "of rank 0 are kept."
        )
    if "log" in first or "training loss" in first:
        return (
            "The updates are right and the log is not: its loss is the mean over all processes of what collect() "
            "gives, so collect() must give every rank's tensors to every rank."
        )
    if "predictions" in first or "metrics" in first:
        return (
            "The weights are right and what they predict is not: collect() must leave rows as they are, and the "
            "wrapped model be the same in evaluation."
        )
    return ""


def _of_norms(found: Outcome, wanted: Outcome, first: dict[str, Finding]) -> str:
    here, there = found.ranks[0].norms, wanted.ranks[0].norms[-len(found.ranks[0].norms) :]
    update = first["norms"].first
    a, b = (here[update], there[update]) if update < min(len(here), len(there)) else (None, None)
    if a is None or b is None:
        return "update() must tell the norm over all gradients before clipping, once for each update."
    if not {"losses", "weights"} & first.keys():
        limit = _max_norm(found.scenario)
        if limit is not None and a <= limit * 1.001 < b:
            return "The updates are right: the norm is taken after clipping, and must be that from before."
        return (
            "The updates are right and the norm is not: it must be that of the whole gradient, and so be taken after "
            "the processes' gradients are brought together, over all parameters, wherever their parts lie."
        )
    scenario = found.scenario
    if update == min(n for n, b in enumerate(there) if b is not None) and (
        known := of_factor(a / b, scenario)
    ):
        return known
    return _of_updates(scenario, there, first)


def of_factor(ratio: float, scenario: Scenario) -> str:
    """Of gradients, or of a norm of them, that are a known number of times too large; "" of any other number."""
    world, accumulation = scenario.world, int(scenario.arguments["gradient_accumulation_steps"])
    if not 0 < ratio < math.inf:
        return ""
    causes = []

    def near(value: float) -> bool:
        return value != 1 and abs(ratio / value - 1) < 0.02

    if near(world):
        causes.append("gradients are summed over the processes where they should be averaged")
    if near(1 / world):
        causes.append(
            "gradients are divided by the number of processes twice, or only one process's are counted"
        )
    if near(accumulation):
        causes.append("backward() does not divide the loss by the accumulation (`run.accumulation`)")
    if near(1 / accumulation):
        causes.append("the loss is divided by the accumulation twice: the Trainer leaves that to backward()")
    if near(math.sqrt(world)):
        causes.append("the squares of a norm are summed over processes which each have the whole gradient")
    if near(1 / math.sqrt(world)):
        causes.append("the norm is that of one process's part of the gradient")
    if scenario.scaled and abs(math.log2(ratio)) > 5:
        causes.append(
            "gradients still carry the loss scale: unscale before the norm is taken and before clipping"
        )
    if not causes:
        return ""
    batches = "1 micro-batch" if accumulation == 1 else f"{accumulation} micro-batches"
    how = f"{ratio:.3g} times as large, with {world} processes and {batches} an update: "
    return how + ", or ".join(causes) + "."


def _of_updates(scenario: Scenario, norms: Sequence[float | None], first: dict[str, Finding]) -> str:
    """By what is special about the update after which runs part."""
    accumulation = int(scenario.arguments["gradient_accumulation_steps"])
    batches = -(-scenario.rows // ROWS_OF_A_BATCH)
    if "norms" in first:
        update = first["norms"].first  # its own gradients are wrong, or the update before it was
    elif "losses" in first:
        update = first["losses"].first // accumulation
    else:
        return (
            "Losses and norms agree to the end: what differs has no part in the loss, or is changed after the last "
            "update, in close() perhaps."
        )
    of_update = range(update * accumulation, (update + 1) * accumulation)
    short = bool(scenario.rows % ROWS_OF_A_BATCH) and any(m % batches == batches - 1 for m in of_update)
    spans = any(m % batches == 0 for m in of_update[1:])
    limit = _max_norm(scenario)
    before = norms[update - 1] if 0 < update <= len(norms) else None
    where = f"The runs part at update {update + 1}"
    if "norms" in first and spans:
        return (
            f"{where}, the first to begin in one epoch and end in the next: gradients of the micro-batches that "
            "were left over must be kept, and counted once."
        )
    if "norms" in first and short:
        return (
            f"{where}, the first with a short batch: processes have different numbers of rows there (one may have "
            "none), so backward() must multiply the loss by `run.batch_weight`."
        )
    if "norms" in first and accumulation > 1 and update == 0:
        return (
            f"{where}, already in its gradients: those of all its micro-batches must be added up, each divided by the "
            "accumulation, and brought together at the last."
        )
    if "norms" in first and update == 0:
        return (
            f"{where}, already in its gradients: not all are brought together, or prepare() changes weights."
        )
    if limit is not None and before is not None and before > limit:
        return (
            f"{where}, after one whose gradients ({before:.3g}) are longer than max_grad_norm ({limit:g}): clipping "
            "must be by the norm of the whole gradient, once, after gradients are brought together, before the step."
        )
    return (
        f"{where}; its gradients were right until then, so the step is not: the optimizer's options, its state, the "
        "schedule, or how often they step."
    )


def of_order(found: Outcome) -> str:
    """Of predictions that are not those of the rows in order."""
    order = found.tensors["predictions"]["numbers"].flatten().tolist()
    if sorted(set(order)) != list(range(len(set(order)))) or len(order) != len(set(order)):
        return (
            "Rows are missing or there twice: collect() must give every rank's rows to every rank, each once."
        )
    return (
        "All rows are there, in another order: collect() must put the ranks' tensors one after another along dimension "
        "0, rank 0's first."
    )


def of_resume(found: Outcome, findings: Sequence[Finding]) -> str:
    """Of a run that goes on from a checkpoint, and not as the run that was never interrupted."""
    first = {finding.part: finding for finding in reversed(findings)}
    if len({rank.weights for rank in found.ranks}) > 1:
        return "The processes go on with different weights: state_in() must set the same on each."
    if "losses" in first and first["losses"].first == 0:
        return "The first loss after the resume differs: weights or buffers were not restored (see test_restores)."
    if {"losses", "weights", "norms"} & first.keys():
        return (
            "It begins right and parts later: the optimizer's state, the schedule, gradients that are carried, or what "
            "the strategy itself keeps (in its plugin's save_state) were not restored (see test_restores)."
        )
    return OF_STATE.get(next(iter(first), ""), "")


def of_state(findings: Sequence[Finding]) -> str:
    """Of a state that is not the one that was set, or should have been written."""
    return " ".join(dict.fromkeys(OF_STATE[f.part] for f in findings if f.part in OF_STATE))


def _max_norm(scenario: Scenario) -> float | None:
    value: Any = scenario.arguments.get("max_grad_norm")
    return float(value) if value else None
