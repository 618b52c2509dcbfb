"""`auto_find_batch_size`: halve the batch after an out-of-memory error, and start again cleanly."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from drivetrain.checkpoint import RandomState
from drivetrain.errors import DrivetrainError
from drivetrain.host_copies import copied
from drivetrain.listener_states import (
    callback_states,
    plugin_states,
    restore_callback_states,
    restore_plugin_states,
)

if TYPE_CHECKING:
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")

T = TypeVar("T")

# torch raises OutOfMemoryError on devices; the host's allocator and cuDNN say it in words alone.
_WORDS = (
    "CUDA out of memory.",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def halving(trainer: Trainer, train: Callable[[], T]) -> T:
    """Calls `train`; after each out-of-memory error again with half the batch, from the same beginning.

    Weights, the optimizer that was handed in, the states of callbacks and plugins, and random states are copied
    to the host before the first attempt and put back before each further one.

    Raises:
        DrivetrainError: one row does not fit either.
    """
    model = trainer.model
    weights = copied(dict(model.state_dict()))
    optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
    optimizer_state = copied(optimizer.state_dict()) if optimizer is not None else None
    scheduler_state = copied(scheduler.state_dict()) if scheduler is not None else None
    callbacks, plugins = copied(callback_states(trainer)), copied(plugin_states(trainer.run))
    random = RandomState.capture()
    while True:
        try:
            return train()
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
            failed = trainer._train_batch_size
        # Outside of the handler: the error's traceback holds the tensors of the step that failed.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if failed <= 1:
            raise DrivetrainError(
                "auto_find_batch_size: out of memory even with one row a device; use a smaller model, "
                "gradient_checkpointing=True or bf16=True."
            )
        trainer._train_batch_size = failed // 2
        logger.warning("Out of memory with %d rows a device: starting again with %d.", failed, failed // 2)
        trainer.optimizer, trainer.lr_scheduler = optimizer, scheduler
        model.load_state_dict(weights)
        for parameter in model.parameters():
            parameter.grad = None
        if optimizer is not None and optimizer_state is not None:
            optimizer.load_state_dict(copied(optimizer_state))
        if scheduler is not None and scheduler_state is not None:
            scheduler.load_state_dict(copied(scheduler_state))
        restore_callback_states(trainer, copied(callbacks))
        restore_plugin_states(trainer.run, copied(plugins))
        random.restore()
