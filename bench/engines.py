"""One function an engine: train the workload's model until the clock has seen all its steps.

All of them do the same work, each in the engine's own idiom: AdamW, clipping by the global norm, a linear learning
rate stepped at every update, the loss summed and logged every `LOG_EVERY` steps. An engine that is not installed
raises ImportError.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from workload import (
    BATCH,
    LEARNING_RATE,
    LOG_EVERY,
    MAX_NORM,
    WEIGHT_DECAY,
    Classifier,
    Clock,
    Workload,
    endless,
)

Engine = Callable[[Workload, Clock], None]


def parts(clock: Clock, fused: bool | None = None) -> tuple[Classifier, torch.optim.Optimizer, Any]:
    """The model, AdamW and LambdaLR, as one writes them by hand."""
    model = Classifier(clock)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused
    )
    total = clock.total
    return (
        model,
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total)),
    )


def by_hand(workload: Workload, clock: Clock, fused: bool | None = None) -> None:
    model, optimizer, scheduler = parts(clock, fused)
    loader, history, summed, step = workload.loader(), [], torch.tensor(0.0), 0
    model.train()
    while step < clock.total:
        for batch in loader:
            loss = model(**batch)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            summed += loss.detach()
            step += 1
            if step % LOG_EVERY == 0:
                history.append(
                    {"loss": summed.item() / LOG_EVERY, "lr": scheduler.get_last_lr()[0], "step": step}
                )
                print(history[-1])
                summed.zero_()
            if step == clock.total:
                break


def by_hand_fused(workload: Workload, clock: Clock) -> None:
    by_hand(workload, clock, fused=True)


def a_trainer(module: str, workload: Workload, clock: Clock, **more: Any) -> None:
    """drivetrain and transformers, which take the same script."""
    library = importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        args = library.TrainingArguments(
            output_dir=folder,
            max_steps=clock.total,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_NORM,
            logging_steps=LOG_EVERY,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            **more,
        )
        collate = {} if workload.collate is None else {"data_collator": workload.collate}
        library.Trainer(model=Classifier(clock), args=args, train_dataset=workload.dataset, **collate).train()


def drivetrain(workload: Workload, clock: Clock) -> None:
    a_trainer("drivetrain", workload, clock, disable_tqdm=True)


def drivetrain_with_bar(workload: Workload, clock: Clock) -> None:
    a_trainer("drivetrain", workload, clock, disable_tqdm=False)


def transformers(workload: Workload, clock: Clock) -> None:
    # Its column filter reads rows one by one, and cannot take a batch that comes whole.
    more = {"remove_unused_columns": False} if workload.name == "batches" else {}
    a_trainer("transformers", workload, clock, disable_tqdm=True, **more)


def lightning(workload: Workload, clock: Clock) -> None:
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer, self.scheduler = parts(clock)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss: torch.Tensor = self.model(**batch)["loss"]
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return {
                "optimizer": self.optimizer,
                "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"},
            }

    trainer = L.Trainer(
        max_steps=clock.total,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=MAX_NORM,
        log_every_n_steps=LOG_EVERY,
    )
    trainer.fit(Module(), workload.loader())


def fabric(workload: Workload, clock: Clock) -> None:
    import lightning as L

    engine = L.Fabric(accelerator="cpu", devices=1)
    bare, optimizer, scheduler = parts(clock)
    model, optimizer = engine.setup(bare, optimizer)
    loader, summed = engine.setup_dataloaders(workload.loader()), torch.tensor(0.0)
    model.train()
    for step, batch in enumerate(endless(loader), 1):
        loss = model(**batch)["loss"]
        engine.backward(loss)
        engine.clip_gradients(model, optimizer, max_norm=MAX_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        summed += loss.detach()
        if step % LOG_EVERY == 0:
            engine.log_dict({"loss": summed.item() / LOG_EVERY, "lr": scheduler.get_last_lr()[0]}, step)
            summed.zero_()
        if step == clock.total:
            break


def ignite(workload: Workload, clock: Clock) -> None:
    from ignite.engine import Engine as IgniteEngine
    from ignite.engine import Events

    model, optimizer, scheduler = parts(clock)
    summed = torch.tensor(0.0)

    def update(_: Any, batch: Any) -> torch.Tensor:
        model.train()
        loss = model(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        summed.add_(loss.detach())
        return loss.detach()

    def log(engine: Any) -> None:
        print(
            {
                "loss": summed.item() / LOG_EVERY,
                "lr": scheduler.get_last_lr()[0],
                "step": engine.state.iteration,
            }
        )
        summed.zero_()

    engine = IgniteEngine(update)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: scheduler.step())
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=LOG_EVERY), log)
    loader = workload.loader()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=clock.total), engine.terminate)
    engine.run(loader, max_epochs=-(-clock.total // len(loader)))


def accelerate(workload: Workload, clock: Clock) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader, scheduler = accelerator.prepare(*parts(clock)[:2], workload.loader(), None)
    scheduler = accelerator.prepare(
        torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: max(0.0, 1 - step / clock.total))
    )
    summed = torch.tensor(0.0)
    model.train()
    for step, batch in enumerate(endless(loader), 1):
        with accelerator.accumulate(model):
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        summed += loss.detach()
        if step % LOG_EVERY == 0:
            accelerator.log({"loss": summed.item() / LOG_EVERY, "lr": scheduler.get_last_lr()[0]}, step=step)
            summed.zero_()
        if step == clock.total:
            break


ENGINES: dict[str, Engine] = {
    "hand": by_hand,
    "hand-fused": by_hand_fused,
    "drivetrain": drivetrain,
    "drivetrain-bar": drivetrain_with_bar,
    "ignite": ignite,
    "fabric": fabric,
    "accelerate": accelerate,
    "lightning": lightning,
    "transformers": transformers,
}

PACKAGES = {"ignite": "pytorch-ignite", "fabric": "lightning", "drivetrain-bar": "drivetrain"}


def quiet() -> None:
    """Peers warn about the number of workers and the like; here their advice is beside the point."""
    warnings.simplefilter("ignore")
    import logging

    for name in (
        "lightning",
        "lightning.pytorch",
        "lightning.fabric",
        "ignite",
        "accelerate",
        "transformers",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
