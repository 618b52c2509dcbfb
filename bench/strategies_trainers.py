"""The trainers that drive the engines: drivetrain, and beside it accelerate and Lightning where they can.

Each does the work of the loops in `strategies_hand.py`, in its own idiom, and says in the end what ran. Where a
library does not drive an engine on a CPU it raises by itself, or `Unable` says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from strategies_hand import HAND, Log
from strategies_seen import Unable, described
from strategies_work import LEARNING_RATE, MAX_NORM, WEIGHT_DECAY, Clock, Work, adamw, linear, zero_2

Driver = Callable[[str, Work, Clock], dict[str, Any]]


def by_hand(strategy: str, work: Work, clock: Clock) -> dict[str, Any]:
    return described(strategy, *HAND[strategy](work, clock))


def drivetrain(strategy: str, work: Work, clock: Clock) -> dict[str, Any]:
    from drivetrain import Trainer, TrainerCallback, TrainingArguments

    wraps = {
        "fsdp": "full_shard auto_wrap",
        "fsdp_config": {"transformer_layer_cls_to_wrap": [work.block.__name__]},
    }
    engine: dict[str, Any] = {
        "ddp": {"ddp_find_unused_parameters": False},
        "fsdp2": {"fsdp_version": 2, **wraps},
        "fsdp1": {"fsdp_version": 1, **wraps},
        "zero2": {"deepspeed": zero_2(work)},
        "oss": {"sharded_ddp": "simple"},
    }[strategy]
    seen: list[dict[str, Any]] = []

    class Look(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(described(strategy, trainer.model_wrapped, trainer.optimizer))

    args = TrainingArguments(
        output_dir=str(work.folder),
        max_steps=clock.total,
        per_device_train_batch_size=work.batch,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_NORM,
        logging_steps=work.log_every,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **engine,
    )
    trainer = Trainer(
        model=work.model(clock),
        args=args,
        data_collator=lambda batch: batch,
        train_dataset=work.dataset(),
        callbacks=[Look()],
    )
    trainer.train()
    return seen[0]


def accelerate(strategy: str, work: Work, clock: Clock) -> dict[str, Any]:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    if strategy == "oss":
        raise Unable("accelerate has no fairscale.")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    more: dict[str, Any] = {"cpu": True}
    if strategy in ("fsdp1", "fsdp2"):
        from accelerate import FullyShardedDataParallelPlugin

        more["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=int(strategy[-1]),
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[work.block.__name__],
        )
    elif strategy == "zero2":
        from accelerate import DeepSpeedPlugin

        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # what `accelerate launch --use_deepspeed` sets
        more = {"deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=zero_2(work))}
    accelerator = Accelerator(**more)
    bare = work.model(clock)
    client = adamw(bare)
    model, optimizer, loader, scheduler = accelerator.prepare(
        bare, client, work.loader(spread=False), linear(client, clock)
    )
    # Its scheduler is stepped once for each process, to count steps of one.
    log = Log(work.log_every)
    model.train()
    while True:
        for batch in loader:
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            log.add(loss, scheduler)
            if log.step == clock.total:
                return described(strategy, model, optimizer)


def lightning(strategy: str, work: Work, clock: Clock) -> dict[str, Any]:
    import lightning as L
    from lightning.pytorch import strategies

    if strategy == "oss":
        raise Unable("Lightning has no fairscale since its version 2.")
    sharding = strategy == "fsdp2"

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.model(clock)

        def configure_model(self) -> None:
            if not sharding:
                return
            from torch.distributed.fsdp import FSDPModule, fully_shard

            if isinstance(self.model, FSDPModule):
                return
            mesh = self.device_mesh["data_parallel"]
            for module in self.model.modules():
                if isinstance(module, work.block):
                    fully_shard(module, mesh=mesh)
            fully_shard(self.model, mesh=mesh)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss: torch.Tensor = self.model(**batch)["loss"]
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = adamw(self.model)
            schedule = {"scheduler": linear(optimizer, clock), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    made: Any = {
        "ddp": lambda: strategies.DDPStrategy(find_unused_parameters=False),
        "fsdp2": lambda: strategies.ModelParallelStrategy(
            data_parallel_size=dist.get_world_size(), tensor_parallel_size=1
        ),
        "fsdp1": lambda: strategies.FSDPStrategy(auto_wrap_policy={work.block}, use_orig_params=True),
        "zero2": lambda: strategies.DeepSpeedStrategy(config=zero_2(work)),
    }[strategy]()
    seen: list[dict[str, Any]] = []

    class Look(L.Callback):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            model = module.model if sharding else trainer.strategy.model
            seen.append(described(strategy, model, trainer.optimizers[0]))

    trainer = L.Trainer(
        max_steps=clock.total,
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=made,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=MAX_NORM,
        log_every_n_steps=work.log_every,
        callbacks=[Look()],
        default_root_dir=str(Path(work.folder)),
    )
    trainer.fit(Module(), work.loader(spread=False))
    return seen[0]


DRIVERS: dict[str, Driver] = {
    "hand": by_hand,
    "control": by_hand,  # the same loop once more: how far two equal drivers differ in this run
    "drivetrain": drivetrain,
    "accelerate": accelerate,
    "lightning": lightning,
}
