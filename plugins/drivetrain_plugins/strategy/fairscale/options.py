"""Options of the strategy `fairscale`; light."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FairscaleOptions:
    """Options of the strategy `fairscale`, as `plugins={"fairscale": {"reduce_buffer_size": 0}}`.

    Attributes:
        reduce_buffer_size: of `simple`: how many gradient elements are put into one reduction for each rank; those
            that do not fit are reduced one by one, and with 0 all are.
        reduce_fp16: of `simple`: gradients are reduced in float16; goes with reduce_buffer_size=0 alone.
        broadcast_buffers: of `simple`: the first rank's buffers are sent to all before a forward pass.
        find_unused_parameters: of `simple`: ranks may leave out different parameters in one step. Gradients are
            then reduced after the backward pass, in a fixed order.
        min_num_params: of `auto_wrap`: modules of so many parameters get a shard of their own.
        bucket_cap_mb: of `zero_dp_2` and `zero_dp_3`: small gradients are reduced together up to this size, in MiB;
            0 for one by one.
    """

    reduce_buffer_size: int = 2**23
    reduce_fp16: bool = False
    broadcast_buffers: bool = True
    find_unused_parameters: bool = False
    min_num_params: int = 10**8
    bucket_cap_mb: int = 25

    def __post_init__(self) -> None:
        for name in ("reduce_buffer_size", "bucket_cap_mb"):
            if getattr(self, name) < 0:
                raise ValueError(f"option {name!r} must be at least 0, and is {getattr(self, name)}.")
        if self.min_num_params < 1:
            raise ValueError(f"option 'min_num_params' must be at least 1, and is {self.min_num_params}.")
        if self.reduce_fp16 and self.reduce_buffer_size:
            raise ValueError(
                "option 'reduce_fp16' needs reduce_buffer_size=0, since FairScale's buffers are not cast."
            )
