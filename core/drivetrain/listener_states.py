"""The states of plugins and callbacks, for a checkpoint and from one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from drivetrain.errors import CheckpointError
from drivetrain.trust import alike, taken_from_checkpoint

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")


def plugin_states(run: Run) -> dict[str, Any]:
    """The state of each plugin that gives one, by its name."""
    states: dict[str, Any] = {}
    for name, ask in _one_by_one(run, "save_state"):
        for state in ask(run=run):
            states[name] = state
    return states


def _one_by_one(run: Run, hook: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The hook of each plugin by itself: its name, and what calls it through pluggy."""
    manager = run.plan.manager
    plugins = manager.get_plugins()
    for found in getattr(manager.hook, hook).get_hookimpls():
        others = [plugin for plugin in plugins if plugin is not found.plugin]
        yield found.plugin_name, manager.subset_hook_caller(hook, others)


def callback_states(trainer: Trainer) -> dict[str, Any]:
    """The state of each callback that tells one, by place and class: by `save_state`, or as transformers' do."""
    states: dict[str, Any] = {}
    for place, callback in enumerate(trainer.callback_handler.callbacks):
        state = None
        if hasattr(callback, "save_state"):
            state = callback.save_state()
        elif callable(getattr(callback, "state", None)):
            state = callback.state()["attributes"]
        if state is not None:
            states[f"{place}:{type(callback).__name__}"] = state
    return states


def restore_plugin_states(run: Run, states: dict[str, Any]) -> None:
    """Gives each plugin its state back; says which states nobody wanted."""
    left = dict(states)
    for name, give in _one_by_one(run, "load_state"):
        if name in left:
            with taken_from_checkpoint(f"The state of the plugin {name!r}"):
                give(run=run, state=left.pop(name))
    for name in left:
        logger.warning("The checkpoint holds a state of the plugin %r, which is not active now.", name)


def restore_callback_states(trainer: Trainer, states: dict[str, Any]) -> None:
    """Gives callbacks their state back, to those of the same class in the same order; says which nobody wanted."""
    waiting: dict[str, list[Any]] = {}
    for key, state in states.items():
        waiting.setdefault(key.partition(":")[2], []).append(state)
    for callback in trainer.callback_handler.callbacks:
        found = waiting.get(type(callback).__name__)
        if not found:
            continue
        with taken_from_checkpoint(f"The state of the callback {type(callback).__name__}"):
            if hasattr(callback, "load_state"):
                callback.load_state(found.pop(0))
            elif callable(getattr(callback, "state", None)):
                _set_attributes(callback, found.pop(0))
    for name in (name for name, left in waiting.items() if left):
        logger.warning("The checkpoint holds a state of the callback %r, which no callback takes now.", name)


def _set_attributes(callback: Any, saved: dict[str, Any]) -> None:
    """Sets the attributes that the callback itself tells of, and no others."""
    own = callback.state()["attributes"]
    for name, value in saved.items():
        if name not in own or not alike(own[name], value):
            raise CheckpointError(
                f"The checkpoint's state of the callback {type(callback).__name__} has {str(name)[:50]!r} as the "
                "callback has not; resume with the callback that was saved, or from an earlier checkpoint."
            )
    for name, value in saved.items():
        setattr(callback, name, value)
