"""What listens in a run of the contract: it notes what it hears and sees, and asks for checkpoints."""

from __future__ import annotations

import signal
from collections.abc import Callable
from os import getpid, kill
from pathlib import Path
from typing import Any

import torch

from drivetrain.hookspecs import EVENTS
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.testing.measuring import classes, held
from drivetrain.testing.scenario import LAST, LEFT_OVER, MID_EPOCH, Report, Scenario

UNHEARD = ("on_gradients_ready", "on_prediction_step")
"""A strategy may be unable to show gradients; batches of an evaluation are as many as there are processes for them."""


class Planned(RuntimeError):
    """The error of a rank that is to fail."""


class Listener:
    """Notes every event, the engine at work, and the state that was restored.

    Args:
        scenario: of the run.
        report: filled.
        rank: of this process.
    """

    name = "contract"

    def __init__(self, scenario: Scenario, report: Report, rank: int) -> None:
        self.scenario, self.report, self.rank = scenario, report, rank

    def heard(self, event: str, run: Run) -> None:
        """Notes an event."""
        self.report.events.append(f"{event} {run.state.global_step}")
        if (do := getattr(self, f"at_{event}", None)) is not None:
            do(run)

    def at_on_train_begin(self, run: Run) -> None:
        """Keeps what the strategy says of the state that was just set."""
        if self.scenario.resume is None:
            return
        state = run.strategy.state_out()
        if self.rank == 0 or state.spread:
            parts = {part: getattr(state, part) for part in ("weights", "optimizer", "groups", "gradients")}
            torch.save(_on_host(parts), Path(self.scenario.folder) / f"restored-{self.rank}.pt")

    def at_on_step_end(self, run: Run) -> None:
        """Notes the update, and at the first one what the engine is."""
        report, step = self.report, run.state.global_step
        report.began = True
        if (update := run.update) is not None:
            told = update.stepped and update.grad_norm is not None
            report.norms.append(float(update.grad_norm) if told else None)  # type: ignore[arg-type]
            report.stepped.append(update.stepped)
        if not report.strategy:
            active = run.plan.slot("strategy")
            report.strategy = active.name if active is not None else ""
            report.shows_gradients = run.strategy.shows_gradients
            report.classes, report.held = classes(run), held(run)
        if self.scenario.saves and step in (MID_EPOCH, LAST):
            run.request_save()

    def at_on_epoch_end(self, run: Run) -> None:
        """A micro-batch is left over here."""
        if self.scenario.saves and run.state.global_step == LEFT_OVER:
            run.request_save()

    def fail_if_due(self) -> None:
        """Ends the last rank, where that is to be."""
        if self.rank == self.scenario.world - 1:
            if self.scenario.act == "raise":
                raise Planned(planned(self.rank))
            if self.scenario.act == "kill":
                kill(getpid(), signal.SIGKILL)


def planned(rank: int) -> str:
    """What a rank says that is to fail."""
    return f"rank {rank} fails because the contract wants to see it"


class Halving:
    """Reads the gradients of the first update, and halves those of each."""

    name = "contract_gradients"

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    @hookimpl
    def on_gradients_ready(self, run: Run) -> None:
        """Reads, and changes in place."""
        for name, parameter in run.model.named_parameters():
            if parameter.grad is None:
                continue
            if run.state.global_step == 0:
                self.gradients[name] = _whole(parameter.grad)
            parameter.grad.mul_(0.5)


def _whole(gradient: Any) -> torch.Tensor:
    """A gradient that is spread over the processes is put together."""
    whole: torch.Tensor = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return whole.detach().cpu().clone()


def _on_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_host(entry) for key, entry in value.items()}
    return [_on_host(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _hook(event: str) -> Callable[..., None]:
    def heard(self: Listener, run: Run) -> None:
        self.heard(event, run)

    heard.__name__, heard.__doc__ = event, f"Notes {event}."
    return hookimpl(heard)


for _event in EVENTS:
    if _event not in UNHEARD:
        setattr(Listener, _event, _hook(_event))
