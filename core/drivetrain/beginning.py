"""The state that a run begins with, copied to the host, so that it can begin once more as if it had never begun."""

from __future__ import annotations

import copy
import logging
import os
from typing import TYPE_CHECKING, Any

from drivetrain.checkpoint import RandomState
from drivetrain.checkpoint.files import remove_tree
from drivetrain.data.stream import is_stateful
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


class Beginning:
    """What `train()` finds: weights, the optimizer that was handed in, states of listeners and data, random states.

    Args:
        trainer: whose run begins; its plugins are resolved, so that all who tell a state are there.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        trainer._open_session()
        self._model = trainer.model
        # A model that is built anew is not put back, but it is not the place to copy it either: it may be large.
        self._weights = None if trainer.model_init is not None else copied(dict(trainer.model.state_dict()))
        self._trained = [parameter.requires_grad for parameter in trainer.model.parameters()]
        self._updating = trainer.optimizer, trainer.lr_scheduler
        self._updating_states = [copied(part.state_dict()) if part else None for part in self._updating]
        self._listeners = copied(callback_states(trainer)), copied(plugin_states(trainer.run))
        self._data = data_state(trainer.train_dataset)
        self._flos = trainer.current_flos
        self._random = RandomState.capture()
        trainer._checkpoints_written = set()

    def let_go(self) -> None:
        """Refers no longer to what an attempt has made, so that its memory can be used again."""
        trainer, run, handler = self.trainer, self.trainer.run, self.trainer.callback_handler
        trainer._session = None
        trainer.optimizer, trainer.lr_scheduler = handler.optimizer, handler.lr_scheduler = self._updating
        run.optimizer = run.lr_scheduler = run.update = run.train_dataloader = None
        run.strategy = None  # type: ignore[assignment]  # the next attempt makes its own
        trainer._batches = trainer._past = trainer._last_update = trainer._snapshot = None
        if trainer.model_init is not None:
            trainer.model = trainer.model_wrapped = run.model = run.model_wrapped = self._model
        for parameter in trainer.model.parameters():
            parameter.grad = None

    def put_back(self) -> None:
        """Puts everything back, and removes the checkpoints that the attempt has written."""
        trainer, run = self.trainer, self.trainer.run
        if self._weights is not None:
            self._model.load_state_dict(self._weights)
            for parameter, trained in zip(self._model.parameters(), self._trained, strict=True):
                parameter.requires_grad_(trained)
        for part, state in zip(self._updating, self._updating_states, strict=True):
            if part is not None:
                part.load_state_dict(copied(state))
        restore_callback_states(trainer, copied(self._listeners[0]))
        restore_plugin_states(run, copied(self._listeners[1]))
        put_data_back(trainer.train_dataset, self._data)
        trainer.current_flos = self._flos
        run.batch_rows, run.stop_reason = 0, None
        self._remove_checkpoints()
        self._random.restore()

    def _remove_checkpoints(self) -> None:
        trainer = self.trainer
        written, trainer._checkpoints_written = sorted(trainer._checkpoints_written or ()), set()
        standing = [folder for folder in written if os.path.isdir(folder)]
        if not standing or not trainer.run.keeps_state:
            return
        for folder in standing:
            remove_tree(folder)
        logger.warning(
            "The attempt's checkpoints, of other batches than the run's, are removed: %s.",
            ", ".join(os.path.basename(folder) for folder in standing),
        )


def data_state(dataset: Any) -> Any:
    """The state that a data set tells of itself; None where it tells none."""
    return copy.deepcopy(dataset.state_dict()) if is_stateful(dataset) else None


def put_data_back(dataset: Any, state: Any) -> None:
    """Gives a data set the state back that it told."""
    if state is not None:
        dataset.load_state_dict(copy.deepcopy(state))
