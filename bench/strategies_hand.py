"""Each engine driven by a loop written by hand: what drivetrain is measured against.

The loops do what `strategies_trainers.py` asks of the trainers, and no more: AdamW (fused) in two groups,
clipping by the global norm, a schedule stepped at every update, the loss summed on the device and read, as the
mean over processes, every `log_every` steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from strategies_work import LEARNING_RATE, MAX_NORM, Clock, Work, adamw, groups, linear, zero_2
from torch import nn


class Log:
    """The loss since the last row, read where a row is due."""

    def __init__(self, every: int) -> None:
        self.every, self.step, self.summed = every, 0, torch.tensor(0.0)
        self.history: list[dict[str, Any]] = []

    def add(self, loss: torch.Tensor, scheduler: Any) -> None:
        self.summed += loss.detach()
        self.step += 1
        if self.step % self.every == 0:
            dist.all_reduce(self.summed)
            mean = self.summed.item() / self.every / dist.get_world_size()
            self.history.append({"loss": mean, "lr": scheduler.get_last_lr()[0], "step": self.step})
            if dist.get_rank() == 0:
                print(self.history[-1])
            self.summed.zero_()


def loop(
    work: Work, clock: Clock, model: nn.Module, optimizer: Any, clip: Callable[[], Any], **clear: bool
) -> None:
    """The loop of every engine but DeepSpeed. `clear` is handed to `zero_grad`."""
    scheduler, loader, log, epoch = linear(optimizer, clock), work.loader(), Log(work.log_every), 0
    model.train()
    while True:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            loss = model(**batch)["loss"]
            loss.backward()
            clip()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(**clear)
            log.add(loss, scheduler)
            if log.step == clock.total:
                return
        epoch += 1


def ddp(work: Work, clock: Clock) -> tuple[Any, Any]:
    model = nn.parallel.DistributedDataParallel(work.model(clock))
    optimizer = adamw(model)
    loop(work, clock, model, optimizer, lambda: nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM))
    return model, optimizer


def fsdp2(work: Work, clock: Clock) -> tuple[Any, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = work.model(clock)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, work.block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = adamw(model)
    loop(work, clock, model, optimizer, lambda: nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM))
    return model, optimizer


def fsdp1(work: Work, clock: Clock) -> tuple[Any, Any]:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    model = FullyShardedDataParallel(
        work.model(clock),
        auto_wrap_policy=ModuleWrapPolicy({work.block}),
        device_id=torch.device("cpu"),
        use_orig_params=True,
    )
    optimizer = adamw(model)
    loop(work, clock, model, optimizer, lambda: model.clip_grad_norm_(MAX_NORM))
    return model, optimizer


def zero2(work: Work, clock: Clock) -> tuple[Any, Any]:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    bare = work.model(clock)
    client = adamw(bare)
    engine, optimizer, _, scheduler = deepspeed.initialize(
        model=bare, optimizer=client, lr_scheduler=linear(client, clock), config=zero_2(work)
    )
    loader, log, epoch = work.loader(), Log(work.log_every), 0
    engine.train()
    while True:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            loss = engine(**batch)["loss"]
            engine.backward(loss)
            engine.step()  # clips, schedules and clears
            log.add(loss, scheduler)
            if log.step == clock.total:
                return engine, optimizer
        epoch += 1


def oss(work: Work, clock: Clock) -> tuple[Any, Any]:
    from fairscale.nn.data_parallel import ShardedDataParallel
    from fairscale.optim import OSS

    bare = work.model(clock)
    optimizer = OSS(params=groups(bare), optim=torch.optim.AdamW, lr=LEARNING_RATE, fused=True)
    model = ShardedDataParallel(bare, optimizer)
    # Gradients are views of the reduce buckets, so they must not be dropped.
    loop(work, clock, model, optimizer, lambda: optimizer.clip_grad_norm(MAX_NORM), set_to_none=False)
    return model, optimizer


HAND: dict[str, Callable[[Work, Clock], tuple[Any, Any]]] = {
    "ddp": ddp,
    "fsdp2": fsdp2,
    "fsdp1": fsdp1,
    "zero2": zero2,
    "oss": oss,
}
