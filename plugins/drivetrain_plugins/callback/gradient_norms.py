"""Norms of the gradients, written beside the log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drivetrain.plugin import hookimpl
from drivetrain.run import Run


@dataclass(frozen=True)
class GradientNormsOptions:
    """Options of `gradient_norms`.

    Attributes:
        every: updates from one measurement to the next; a measurement waits for the device.
        top: how many parameters are listed by name, those with the largest gradients first.
        file: where the rows go, one JSON object a line; a name without a folder stands in `output_dir`.
            Empty for no file.
    """

    every: int = 10
    top: int = 0
    file: str = "gradient_norms.jsonl"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1.")
        if self.top < 0:
            raise ValueError(f"top={self.top} must not be negative.")


class GradientNorms:
    """Measures the L2 norm of all gradients together and of each parameter group, before clipping.

    Under a loss scale the norms are those of the unscaled gradients. They go to `run.figures`
    (`gradient_norm`, `gradient_norm/GROUP`), and with the step to the file.
    """

    def __init__(self, options: GradientNormsOptions | None = None) -> None:
        self.options = options or GradientNormsOptions()
        self._file: Path | None = None

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Opens the file: a resumed run goes on in it, a fresh one begins it anew."""
        if self.options.file and run.is_main_process:
            self._file = Path(run.args.output_dir) / self.options.file
            self._file.parent.mkdir(parents=True, exist_ok=True)
            kept: list[str] = []
            if self._file.exists():
                # Updates after the checkpoint are done again, so their rows go.
                rows = self._file.read_text(encoding="utf-8").splitlines()
                kept = [row for row in rows if json.loads(row)["step"] <= run.state.global_step]
            self._file.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")

    @hookimpl
    def on_gradients_ready(self, run: Run) -> None:
        """Measures on every `every`-th update, and on the first."""
        step = run.state.global_step + 1  # the update that these gradients make
        if (step != 1 and step % self.options.every) or not run.is_main_process:
            return
        row = self._measure(run)
        for name, value in row.items():
            if isinstance(value, float):
                run.figures[name] = value
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")

    def _measure(self, run: Run) -> dict[str, Any]:
        assert run.optimizer is not None
        scale = _loss_scale(run)
        groups: dict[str, torch.Tensor] = {}
        for position, group in enumerate(run.optimizer.param_groups):
            grads = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if grads:
                groups[str(group.get("name", position))] = _norm(grads)
        if not groups:
            return {"gradient_norm": 0.0}
        total = torch.linalg.vector_norm(torch.stack(list(groups.values())))
        row: dict[str, Any] = {"gradient_norm": float(total) / scale}
        row.update({f"gradient_norm/{name}": float(norm) / scale for name, norm in groups.items()})
        if self.options.top:
            named = [
                (name, found.grad) for name, found in run.model.named_parameters() if found.grad is not None
            ]
            norms = torch.stack([_norm([grad]).float() for _, grad in named]).tolist()
            largest = sorted(zip(norms, (name for name, _ in named), strict=True), reverse=True)
            row["largest"] = {name: value / scale for value, name in largest[: self.options.top]}
        return row


def _norm(grads: list[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of tensors taken together."""
    norms = torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads])
    total: torch.Tensor = torch.linalg.vector_norm(norms)
    return total


def _loss_scale(run: Run) -> float:
    """The factor that the gradients still carry; 1 without a loss scaler."""
    scaler = getattr(run.strategy, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0
