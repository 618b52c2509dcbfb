"""Hooks bound once, so that calling them in a step costs what a function costs.

A bound hook is the tuple of functions that pluggy would call, in pluggy's order, each taking the
arguments of the spec by position. Where an implementation is a wrapper, or hooks are traced, the tuple
holds one function that goes through pluggy. That both are equal is a property test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeAlias

import pluggy

from drivetrain.hookspecs import EVENTS, SPECS
from drivetrain.plugin import PROJECT

if TYPE_CHECKING:
    from drivetrain.timing import Timing

CORE = "core:"  # begins the names of the core's own listeners

Bound: TypeAlias = tuple[Callable[..., object], ...]


def new_manager() -> pluggy.PluginManager:
    """A plugin manager that knows drivetrain's hooks, and no plugin."""
    manager = pluggy.PluginManager(PROJECT)
    for spec in SPECS:
        manager.add_hookspecs(spec)
    return manager


def bind(
    manager: pluggy.PluginManager, hook: str, *, traced: bool = False, timing: Timing | None = None
) -> Bound:
    """What to call for a hook, in order; empty where nobody listens.

    Args:
        manager: with every plugin registered; later registrations are not seen.
        hook: the hook's name.
        traced: call through pluggy whatever the implementations are.
        timing: notes what each plugin's implementation takes, or all together that go through pluggy.
    """
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    implementations = caller.get_hookimpls()
    if not implementations:
        return ()
    assert caller.spec is not None
    names = caller.spec.argnames
    if traced or any(found.hookwrapper or found.wrapper for found in implementations):

        def through_pluggy(*arguments: Any) -> object:
            return caller(**dict(zip(names, arguments, strict=True)))

        owners = [found.plugin_name for found in implementations if not found.plugin_name.startswith(CORE)]
        if timing is None or not owners:
            return (through_pluggy,)
        return (timing.timed(through_pluggy, " + ".join(map(_short, reversed(owners)))),)
    # pluggy calls the last registered first, and get_hookimpls lists the first registered first.
    bound = []
    for found in reversed(implementations):
        function = _positional(found, names)
        if timing is not None and not found.plugin_name.startswith(CORE):
            function = timing.timed(function, _short(found.plugin_name))
        bound.append(function)
    return tuple(bound)


def _short(plugin_name: str) -> str:
    """A plugin's name without its kind."""
    return plugin_name.partition(":")[2] or plugin_name


def _positional(implementation: pluggy.HookImpl, names: tuple[str, ...]) -> Callable[..., object]:
    """The implementation as a function of the spec's arguments, by position."""
    function: Callable[..., object] = implementation.function
    wanted = tuple(implementation.argnames)
    if wanted == names:
        return function
    if not wanted:
        return lambda *_: function()
    places = tuple(names.index(name) for name in wanted)
    if len(places) == 1:
        place = places[0]
        return lambda *arguments: function(arguments[place])
    return lambda *arguments: function(*[arguments[place] for place in places])


class Events:
    """Every event of a run, bound: `events.on_step_end` is a tuple of functions."""

    __slots__ = EVENTS

    on_init_end: Bound
    on_stage_begin: Bound
    on_stage_end: Bound
    on_train_begin: Bound
    on_epoch_begin: Bound
    on_step_begin: Bound
    on_micro_batch: Bound
    on_substep_end: Bound
    on_gradients_ready: Bound
    on_step_end: Bound
    on_log: Bound
    on_evaluate: Bound
    on_predict: Bound
    on_prediction_step: Bound
    on_save: Bound
    on_epoch_end: Bound
    on_train_end: Bound
    on_exception: Bound

    def __init__(
        self, manager: pluggy.PluginManager, *, traced: bool = False, timing: Timing | None = None
    ) -> None:
        for name in EVENTS:
            setattr(self, name, bind(manager, name, traced=traced, timing=timing))


def trace(manager: pluggy.PluginManager, write: Callable[[str], object] | None = None) -> None:
    """Prints every hook call, who answers it, and what a slot's hook returned (`--trace-hooks`)."""

    def show(line: str) -> None:
        if write is None:
            print(line, file=sys.stderr, flush=True)
        else:
            write(line)

    def before(hook: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
        run = arguments.get("run")
        step = getattr(getattr(run, "state", None), "global_step", "-")
        callers = ", ".join(found.plugin_name for found in reversed(implementations))
        show(f"[hooks] step {step:>6}  {hook:<20} {callers}")

    def after(
        outcome: pluggy.Result[Any],
        hook: str,
        implementations: Sequence[pluggy.HookImpl],
        arguments: Mapping[str, Any],
    ) -> None:
        if outcome.exception is not None:
            show(f"[hooks]              {hook} raised {outcome.exception!r}")
        elif hook.startswith("make_"):
            show(f"[hooks]              {hook} gave {type(outcome.get_result()).__name__}")

    manager.add_hookcall_monitoring(before, after)


def name_culprit(
    error: BaseException, manager: pluggy.PluginManager, callbacks: Iterable[tuple[str, Any]] = ()
) -> None:
    """Adds a note to an error that passed through a plugin: which plugin, and which hook.

    The step itself pays nothing for it: the traceback tells which implementation was running.

    Args:
        error: with its traceback.
        manager: every plugin, by name.
        callbacks: name and object of plugins that are documented callbacks, which pluggy does not know.
    """
    owners: dict[CodeType, list[tuple[Any, str, str]]] = {}
    for name, plugin in manager.list_name_plugin():
        for caller in manager.get_hookcallers(plugin) or []:
            for found in caller.get_hookimpls():
                if found.plugin is plugin and not name.startswith(CORE):
                    _note_owner(owners, found.function, plugin, name, caller.name)
    for name, callback in callbacks:
        for event in EVENTS:
            _note_owner(owners, getattr(callback, event, None), callback, name, event)
    note = None
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        candidates = owners.get(frame.f_code, [])
        # Objects of one class share their code: the one whose method ran is among the frame's own names.
        running = [
            owner for owner in candidates if any(value is owner[0] for value in frame.f_locals.values())
        ]
        for _, name, hook in (running or candidates)[:1]:
            note = f"Raised by the plugin {name!r} in its hook {hook}."
        traceback = traceback.tb_next
    if note is not None and note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _note_owner(
    owners: dict[CodeType, list[tuple[Any, str, str]]], function: Any, plugin: Any, name: str, hook: str
) -> None:
    code = getattr(function, "__code__", None)
    if code is not None:
        owners.setdefault(code, []).append((plugin, name, hook))
