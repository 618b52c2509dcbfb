"""TEST ONLY: lets FairScale's FullyShardedDataParallel, which is written for CUDA, run on the CPU over gloo.

CUDA's streams become no-ops, and the strategy's own probe for a CUDA device is told that there is one. With it the
strategy's logic is tested on real FairScale code in real processes; what only a GPU can show is left to the tests
marked gpu. Nothing of the product uses this.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch


class _Stream:
    def wait_stream(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    __hash__ = object.__hash__


_STREAM = _Stream()


class _Streams(dict):  # type: ignore[type-arg]
    def __missing__(self, key: str) -> _Stream:
        return _STREAM


def install() -> None:
    """Patches torch and FairScale for the rest of this process."""
    os.environ["ENABLE_NCCL_BASE_COLLECTIVES"] = "0"
    from fairscale.nn.data_parallel import FullyShardedDataParallel

    from drivetrain_plugins.strategy.fairscale import info

    cuda: Any = torch.cuda
    cuda.current_stream = cuda.Stream = lambda *_, **__: _STREAM
    cuda.stream = lambda *_: contextlib.nullcontext()
    cuda.synchronize = lambda *_, **__: None
    tensor: Any = torch.Tensor
    tensor.record_stream = lambda self, stream: None
    tensor.cuda = lambda self, *_, **__: self
    tensor.pin_memory = lambda self, *_, **__: self
    engine: Any = FullyShardedDataParallel
    reset = engine._reset_lazy_init

    def reset_with_streams(self: Any) -> None:
        reset(self)
        self._streams = _Streams()

    engine._reset_lazy_init = reset_with_streams
    info.has_cuda = lambda args: True
