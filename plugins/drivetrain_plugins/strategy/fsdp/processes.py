"""The processes of FSDP: a group also where there is one process, and the mesh of replicas and shards."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from drivetrain.errors import ConfigurationError
from drivetrain_plugins import gloo
from drivetrain_plugins.strategy.fsdp.options import FSDPOptions, Settings

if TYPE_CHECKING:
    from drivetrain.run import Run

# A mesh makes process groups, which are not given back: one serves all runs of the same shape.
_meshes: dict[tuple[Any, ...], DeviceMesh] = {}


def ensure_group(run: Run) -> bool:
    """A group of this one process, where there is none. Returns whether it was made here.

    Raises:
        ConfigurationError: there are several processes and no group.
    """
    if dist.is_initialized():
        return False
    if run.processes.world_size > 1:
        raise ConfigurationError(
            "Strategy 'fsdp' needs a process group: start the script by torchrun --nproc-per-node 2 SCRIPT."
        )
    backend = "nccl" if run.device.type == "cuda" and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return True


def mesh_of(settings: Settings, options: FSDPOptions, device: torch.device) -> DeviceMesh:
    """All ranks in a row, or as replicas times shards.

    Raises:
        ConfigurationError: the processes cannot be dealt out so.
    """
    world = dist.get_world_size()
    shape: tuple[int, ...] = (world,)
    if settings.mode == "hybrid_shard":
        size = options.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", world))
        if world % size:
            sizes = ", ".join(str(number) for number in range(1, world + 1) if world % number == 0)
            raise ConfigurationError(
                f"fsdp='hybrid_shard' cannot deal {world} processes out in groups of {size}: set shard_size in "
                f"plugins={{'fsdp': {{...}}}} to one of {sizes}."
            )
        shape = (world // size, size)
    elif options.shard_size is not None:
        raise ConfigurationError(
            f"shard_size={options.shard_size} of the strategy 'fsdp' is of hybrid_shard alone: "
            "set fsdp='hybrid_shard', or leave it out."
        )
    elif settings.mode == "no_shard" and settings.version == 2:
        shape = (world, 1)  # a replica on each rank, shards of everything
    key = (dist.group.WORLD, device.type, shape)
    if key not in _meshes:
        names = ("replica", "shard") if len(shape) == 2 else ("shard",)
        _meshes[key] = init_device_mesh(device.type, shape, mesh_dim_names=names)
    return _meshes[key]


def end_group() -> None:
    """Ends a group of one process, and forgets its meshes."""
    for key in [key for key in _meshes if key[0] is dist.group.WORLD]:
        del _meshes[key]
    dist.destroy_process_group()
    gloo.settle()
