"""Devices, processes, and the engines that share a model among them."""

from dataclasses import dataclass

from drivetrain.arguments.checks import (
    backend,
    deepspeed_config,
    fsdp_config,
    fsdp_options,
    sharded_ddp_options,
)
from drivetrain.arguments.field import FileOrDict, Flags, argument


@dataclass
class Distributed:
    """The arguments about devices, processes and engines."""

    use_cpu: bool = argument(False, "Use the CPU even where there is an accelerator.")
    local_rank: int = argument(
        -1, "This process's number on its node; the launcher sets it.", owner="strategy"
    )
    ddp_backend: str | None = argument(
        None,
        "How processes talk: nccl, gloo, mpi, ccl, hccl; by default what suits the device.",
        owner="strategy",
        check=backend,
    )
    tpu_num_cores: int | None = argument(None, "How many XLA devices to use.", owner="strategy:xla", least=1)
    sharded_ddp: Flags = argument(
        "",
        "FairScale's sharding: simple, or zero_dp_2 or zero_dp_3 with offload and auto_wrap as you like.",
        owner="strategy:fairscale",
        check=sharded_ddp_options,
        accepts="words, a list of words, or True for simple",
    )
    fsdp: Flags = argument(
        "",
        "PyTorch's fully sharded data parallelism: full_shard, shard_grad_op, hybrid_shard or no_shard,"
        " with offload and"
        " auto_wrap as you like.",
        owner="strategy:fsdp",
        check=fsdp_options,
        accepts="words, a list of words, or True for full_shard",
    )
    fsdp_config: FileOrDict = argument(
        None,
        "Options of FSDP: a JSON file's name, or in Python a dict.",
        owner="strategy:fsdp",
        check=fsdp_config,
        accepts="a file's name, or a dict",
    )
    deepspeed: FileOrDict = argument(
        None,
        "DeepSpeed's configuration: a JSON file's name, or in Python a dict.",
        owner="strategy:deepspeed",
        check=deepspeed_config,
        accepts="a file's name, or a dict",
    )
    ddp_find_unused_parameters: bool | None = argument(
        None, "Whether DDP looks for parameters that had no part in the loss.", owner="strategy:ddp"
    )
    ddp_bucket_cap_mb: int | None = argument(
        None, "The size of DDP's gradient buckets, in MiB.", owner="strategy:ddp", least=1
    )
    ddp_broadcast_buffers: bool | None = argument(
        None, "Whether DDP sends the first rank's buffers to all before each forward.", owner="strategy:ddp"
    )
    ddp_timeout: int | None = argument(
        1800, "Seconds that a collective call may take.", owner="strategy:ddp", least=1
    )
