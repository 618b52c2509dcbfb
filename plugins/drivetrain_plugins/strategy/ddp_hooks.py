"""How DDP brings gradients together: its communication hooks, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power_sgd
from torch.nn.parallel import DistributedDataParallel

from drivetrain.errors import ConfigurationError, did_you_mean
from drivetrain.plugin import import_string

COMPRESSING: dict[str, Any] = {
    "fp16_compress": default_hooks.fp16_compress_hook,
    "bf16_compress": default_hooks.bf16_compress_hook,
}
POWER_SGD = "powerSGD"
NAMES = (*COMPRESSING, POWER_SGD)
_OF_DTYPE = {torch.float16: "fp16_compress", torch.bfloat16: "bf16_compress"}


def check_hook(name: str, options: Mapping[str, Any]) -> None:
    """Says what is wrong with the options `comm_hook` and `comm_hook_options`.

    Raises:
        ValueError: an unknown name, or options that the hook does not take.
    """
    if not name:
        if options:
            raise ValueError("option 'comm_hook_options' needs comm_hook.")
    elif name == "batched_powerSGD":
        raise ValueError(
            "comm_hook 'batched_powerSGD' is broken in torch, which asks three dimensions of two: use 'powerSGD'."
        )
    elif name == POWER_SGD:
        known = [
            known
            for known in inspect.signature(power_sgd.PowerSGDState).parameters
            if known != "process_group"
        ]
        for key in options:
            if key not in known:
                raise ValueError(
                    f"comm_hook {name!r} has no option {key!r}.{did_you_mean(key, known)} It has: {', '.join(known)}."
                )
    elif name in COMPRESSING:
        if options:
            raise ValueError(f"comm_hook {name!r} takes no comm_hook_options.")
    elif ":" not in name:
        raise ValueError(
            f"unknown comm_hook {name!r}.{did_you_mean(name, NAMES)} Choices: {', '.join(NAMES)}, or 'module:function'."
        )


def register_hook(
    ddp: DistributedDataParallel, name: str, options: Mapping[str, Any], reduce: torch.dtype | None
) -> None:
    """Registers the hook that the options name, or the one that reduces in the precision's dtype.

    Args:
        ddp: the wrapped model.
        name: of a hook, `"module:function"`, or empty.
        options: PowerSGD's, or what a function of the user's gets as its first argument.
        reduce: dtype of gradient reductions, as the precision's policy says.

    Raises:
        ConfigurationError: the function cannot be imported; torch refuses the hook or its options; none reduces in
            the dtype.
    """
    if not name:
        if reduce is None or reduce == torch.float32:
            return
        if reduce not in _OF_DTYPE:
            raise ConfigurationError(
                f"Strategy 'ddp' cannot reduce gradients in {reduce}: choose a precision that reduces in float16, "
                "bfloat16 or float32."
            )
        name = _OF_DTYPE[reduce]
    state: Any
    try:
        if name in COMPRESSING:
            state, hook = None, COMPRESSING[name]
        elif name == POWER_SGD:
            state, hook = power_sgd.PowerSGDState(process_group=None, **options), power_sgd.powerSGD_hook
            if dist.get_backend(ddp.process_group) != "nccl":
                hook = _in_turn(hook)
        else:
            state, hook = dict(options), _function(name)
        ddp.register_comm_hook(state, hook)
    except (TypeError, ValueError) as error:  # torch says of which device or option the hook is
        if isinstance(error, ConfigurationError):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigurationError(
            f"comm_hook={name!r} of the strategy 'ddp' cannot be here: {reason}."
        ) from error


def _in_turn(hook: Any) -> Any:
    """The hook, at its end before the backward pass goes on.

    PowerSGD calls its second and third reduction from the callbacks of the one before, which gloo runs in threads
    of its own. Meanwhile the reducer calls reductions too: the next bucket's, and that of the parameters that
    were used. Ranks that call them in another order wait for each other for ever.
    """

    def waiting(state: Any, bucket: Any) -> Any:
        future = hook(state, bucket)
        future.wait()
        return future

    waiting.__annotations__, waiting.__qualname__ = {}, hook.__qualname__
    return waiting


def _function(name: str) -> Any:
    try:
        found = import_string(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"comm_hook={name!r} of the strategy 'ddp' cannot be imported: {error}."
        ) from error
    if not callable(found):
        raise ConfigurationError(
            f"comm_hook={name!r} of the strategy 'ddp' is no function: name one that is."
        )

    def hook(state: Any, bucket: Any) -> Any:
        return found(state, bucket)

    # DDP reads annotations, and refuses those that a module keeps as text.
    hook.__annotations__, hook.__qualname__ = {}, name
    return hook
