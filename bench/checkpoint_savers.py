"""What saves in `checkpoint.py`: the same training, saved every few steps by each saver in its own way."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, BATCH, WARM_UP = 1024, 4, 6


class Missing(Exception):
    """A saver that is not here, and why."""


@dataclass(frozen=True)
class Plan:
    """How much is trained and saved.

    Attributes:
        layers: of the model, 1.05 million parameters each.
        saves: how many.
        every: steps between two of them.
    """

    layers: int
    saves: int
    every: int

    @property
    def total(self) -> int:
        """Steps of the run; a step follows the last save."""
        return WARM_UP + (self.saves - 1) * self.every + 2

    def is_due(self, step: int) -> bool:
        """Whether a save follows this step, counted from 1."""
        return step >= WARM_UP and (step - WARM_UP) % self.every == 0 and step < self.total


class Timeline:
    """When each forward pass began."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.began = plan, []

    def tick(self) -> None:
        self.began.append(time.perf_counter())

    def _gap(self, step: int) -> float:
        """Seconds from the forward pass of a step, from 1, to that of the next."""
        return self.began[step] - self.began[step - 1]

    def base(self) -> float:
        """Seconds of a step before the first save; the very first is left out."""
        return statistics.median(self._gap(step) for step in range(2, WARM_UP))

    def stalls(self) -> list[float]:
        """Seconds that each save added to its step."""
        due = [step for step in range(1, len(self.began)) if self.plan.is_due(step)]
        return [self._gap(step) - self.base() for step in due]

    def between(self) -> float:
        """Steps after the first save that have none, by those before it: 1.0 where nothing slows them."""
        steps = range(WARM_UP + 1, len(self.began))
        gaps = [self._gap(step) for step in steps if not self.plan.is_due(step)]
        return statistics.mean(gaps) / self.base()


class Net(nn.Module):
    """Layers of a million parameters; its forward pass tells the timeline."""

    def __init__(self, plan: Plan, timeline: Timeline) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(plan.layers))
        self.timeline = timeline

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.timeline.tick()
        for layer in self.layers:
            x = x + torch.tanh(layer(x)) / 8
        return {"loss": nn.functional.mse_loss(x[:, 0], labels)}


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random rows."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.labels = torch.randn(count, WIDTH, generator=generator), torch.zeros(count)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def parts(plan: Plan) -> tuple[Timeline, Net, torch.optim.Optimizer, Any]:
    """What every saver trains."""
    torch.manual_seed(0)
    timeline = Timeline(plan)
    model = Net(plan, timeline)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / plan.total))
    return timeline, model, optimizer, schedule


def batches(plan: Plan) -> Iterator[dict[str, Tensor]]:
    return iter(torch.utils.data.DataLoader(Rows(plan.total * BATCH), BATCH))


def by_hand(plan: Plan, folder: Path, sync: bool) -> Timeline:
    """A loop with torch.save, into one file that is replaced."""
    timeline, model, optimizer, schedule = parts(plan)
    path = folder / "checkpoint.pt"
    for step, batch in enumerate(batches(plan), 1):
        model(**batch)["loss"].backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if plan.is_due(step):
            new = folder / "new.pt"
            states = {"model": model, "optimizer": optimizer, "schedule": schedule}
            with new.open("wb") as file:
                torch.save({name: part.state_dict() for name, part in states.items()}, file)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            new.rename(path)
    return timeline


def drivetrain(plan: Plan, folder: Path, in_background: bool) -> Timeline:
    from drivetrain import Trainer, TrainerCallback, TrainingArguments

    logging.getLogger("drivetrain").setLevel(logging.ERROR)

    class When(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = plan.is_due(state.global_step)

    timeline, model, optimizer, schedule = parts(plan)
    arguments = TrainingArguments(
        str(folder),
        max_steps=plan.total,
        per_device_train_batch_size=BATCH,
        max_grad_norm=0.0,
        save_strategy="no",
        save_total_limit=1,
        save_async=in_background,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    rows = Rows(plan.total * BATCH)
    Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, schedule), callbacks=[When]).train()
    return timeline


def accelerate(plan: Plan, folder: Path) -> Timeline:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)
    timeline, *made = parts(plan)
    model, optimizer, schedule = accelerator.prepare(*made)
    for step, batch in enumerate(batches(plan), 1):
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if plan.is_due(step):
            accelerator.save_state(str(folder / "checkpoint"))
    return timeline


def lightning(plan: Plan, folder: Path) -> Timeline:
    import lightning as L

    timeline, net, optimizer, schedule = parts(plan)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if plan.is_due(trainer.global_step):
                trainer.save_checkpoint(folder / "checkpoint.ckpt")

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    L.Trainer(
        accelerator="cpu",
        max_steps=plan.total,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Save()],
        default_root_dir=folder,
    ).fit(Module(), torch.utils.data.DataLoader(Rows(plan.total * BATCH), BATCH))
    return timeline


SAVE: dict[str, Callable[[Plan, Path], Timeline]] = {
    "torch": lambda plan, folder: by_hand(plan, folder, sync=False),
    "torch-fsync": lambda plan, folder: by_hand(plan, folder, sync=True),
    "drivetrain": lambda plan, folder: drivetrain(plan, folder, in_background=False),
    "drivetrain-async": lambda plan, folder: drivetrain(plan, folder, in_background=True),
    "accelerate": accelerate,
    "lightning": lightning,
}
