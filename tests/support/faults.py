"""Errors at chosen places of a run: in the model, the data, a callback, the optimizer."""

from __future__ import annotations

from typing import Any

import torch

from drivetrain import TrainerCallback, hookimpl

SETTINGS: dict[str, Any] = {
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,  # 13 batches each: the odd one carries its gradient into the next epoch
    "logging_steps": 4,
    "save_steps": 500,
    "save_on_exception": True,
}


class Fault(Exception):
    """The error of these tests."""


class Backward(torch.autograd.Function):
    """Fails when it is asked for gradients."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise Fault


class Net(torch.nn.Module):
    """Has running means, draws random numbers, and fails at a call: `("forward", 17)`."""

    def __init__(self, fault: tuple[str, int] | None = None) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.dropout = torch.nn.Dropout(0.2)
        self.second = torch.nn.Linear(16, 3)
        self.fault, self.calls = fault, 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += self.training
        fails = self.fault[0] if self.fault is not None and self.fault[1] == self.calls else ""
        hidden = self.dropout(torch.relu(self.norm(self.first(x))))
        if fails == "forward":
            raise Fault
        if fails == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if fails == "weights":
            self.first.bias.data.add_(1)
            with torch.no_grad():
                self.second.bias.add_(1)
            raise Fault
        logits = self.second(Backward.apply(hidden) if fails == "backward" else hidden)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Rows(list):  # type: ignore[type-arg]
    """Fails at the n-th row that is read."""

    fails = 0
    count = 0

    def __getitem__(self, index: Any) -> Any:
        self.count += 1
        if self.count == self.fails:
            raise Fault
        return super().__getitem__(index)


class At(TrainerCallback):
    """Fails at an event of a step."""

    def __init__(self, event: str, step: int) -> None:
        self.step = step
        setattr(self, event, self.fail)

    def fail(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Fault


class Counts:
    """A plugin with a state that a step under way has changed already."""

    def __init__(self) -> None:
        self.begun = 0

    @hookimpl
    def on_step_begin(self) -> None:
        self.begun += 1

    @hookimpl
    def save_state(self) -> dict[str, Any]:
        return {"begun": self.begun}

    @hookimpl
    def load_state(self, state: dict[str, Any]) -> None:
        self.begun = state["begun"]


class BreaksInTheUpdate(torch.optim.SGD):
    """Fails when half is done."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        if self.param_groups[0].setdefault("steps", 0) == 3:
            raise Fault
        self.param_groups[0]["steps"] += 1
        return result
