"""A bound hook does what pluggy's own call does: the same calls, in the same order, with the same outcome."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pluggy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.binding import Events, bind, new_manager, trace
from drivetrain.hookspecs import EVENTS
from drivetrain.plugin import hookimpl

ARGUMENTS = {"on_log": ("run", "logs"), "on_step_end": ("run",), "on_exception": ("run", "error")}


@dataclass(frozen=True)
class Implementation:
    """How one plugin answers a hook.

    Attributes:
        form: "plain", "wrapper" (pluggy's new style), or "hookwrapper" (the old one).
        place: "", "tryfirst" or "trylast".
        takes: which of the spec's arguments it declares, by place.
        does: "return", "none", "raise"; wrappers also "replace", "swallow" and "early" (raise before the yield).
    """

    form: str
    place: str
    takes: tuple[int, ...]
    does: str


implementations = st.builds(
    Implementation,
    form=st.sampled_from(["plain", "plain", "plain", "wrapper", "hookwrapper"]),
    place=st.sampled_from(["", "", "tryfirst", "trylast"]),
    takes=st.sampled_from([(), (0,), (1,), (0, 1), (1, 0)]),
    does=st.sampled_from(["return", "return", "none", "raise", "replace", "swallow", "early"]),
)
plain_only = implementations.filter(lambda made: made.form == "plain")


class Trouble(Exception):
    """What an implementation raises."""


def plugin_of(made: Implementation, number: int, hook: str, calls: list[Any]) -> Any:
    """A plugin whose method declares exactly the arguments that `made` takes."""
    names = [ARGUMENTS[hook][place] for place in made.takes if place < len(ARGUMENTS[hook])]

    def plain(*values: Any) -> Any:
        calls.append((number, dict(zip(names, values, strict=True))))
        if made.does in ("raise", "early"):
            raise Trouble(f"plain {number}")
        return None if made.does == "none" else number

    def wrapper(*values: Any) -> Any:
        calls.append((number, "before", dict(zip(names, values, strict=True))))
        if made.does == "early":
            raise Trouble(f"early {number}")
        try:
            result = yield
        except Trouble as error:
            calls.append((number, "saw", str(error)))
            if made.does != "swallow":
                raise
            result = [f"swallowed {number}"]
        if made.does == "raise":
            raise Trouble(f"late {number}")
        calls.append((number, "after", result))
        return [f"replaced {number}"] if made.does == "replace" else result

    def hookwrapper(*values: Any) -> Any:
        calls.append((number, "before", dict(zip(names, values, strict=True))))
        if made.does == "early":
            raise Trouble(f"early {number}")
        outcome = yield
        calls.append((number, "after", str(outcome.exception)))
        if made.does == "replace":
            outcome.force_result([f"replaced {number}"])
        elif made.does == "swallow" and outcome.exception is not None:
            outcome.force_result([f"swallowed {number}"])
        elif made.does == "raise":
            outcome.force_exception(Trouble(f"late {number}"))

    inner = {"plain": plain, "wrapper": wrapper, "hookwrapper": hookwrapper}[made.form]
    space: dict[str, Any] = {"inner": inner}
    listed = ", ".join(names)
    body = f"return inner({listed})" if made.form == "plain" else f"return (yield from inner({listed}))"
    exec(f"def {hook}(self{', ' if names else ''}{listed}):\n    {body}", space)
    marker = hookimpl(
        tryfirst=made.place == "tryfirst",
        trylast=made.place == "trylast",
        wrapper=made.form == "wrapper",
        hookwrapper=made.form == "hookwrapper",
    )
    return type(f"P{number}", (), {hook: marker(space[hook])})()


def outcome(call: Any, calls: list[Any]) -> tuple[list[Any], Any]:
    """Calls made, and what came out: a result, or an exception's type and text."""
    calls.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pluggy.PluggyTeardownRaisedWarning)
            result = call()
    except (Trouble, RuntimeError) as error:
        return list(calls), (type(error), str(error))
    return list(calls), result


def call_bound(bound: tuple[Any, ...], values: tuple[Any, ...]) -> Any:
    """What the loop does; with the results, which it does not look at."""
    results = [call(*values) for call in bound]
    if len(bound) == 1 and getattr(bound[0], "__name__", "") == "through_pluggy":
        return results[0]
    return [result for result in results if result is not None]


@settings(max_examples=300, deadline=None)
@given(
    made=st.lists(implementations, max_size=6), hook=st.sampled_from(sorted(ARGUMENTS)), traced=st.booleans()
)
def test_bound_equals_pluggy(made: list[Implementation], hook: str, traced: bool) -> None:
    calls: list[Any] = []
    manager = new_manager()
    for number, one in enumerate(made):
        manager.register(plugin_of(one, number, hook, calls), name=f"p{number}")
    values = ("RUN", "OTHER")[: len(ARGUMENTS[hook])]
    keywords = dict(zip(ARGUMENTS[hook], values, strict=True))
    by_pluggy = outcome(lambda: getattr(manager.hook, hook)(**keywords), calls)
    lines: list[str] = []
    if traced:
        trace(manager, lines.append)
    bound = bind(manager, hook, traced=traced)
    assert outcome(lambda: call_bound(bound, values), calls) == by_pluggy
    if traced and made:
        assert hook in lines[0]
        assert all(f"p{number}" in lines[0] for number in range(len(made)))


@settings(max_examples=100, deadline=None)
@given(made=st.lists(plain_only, max_size=6), hook=st.sampled_from(sorted(ARGUMENTS)))
def test_without_wrappers_a_bound_hook_is_the_functions_themselves(
    made: list[Implementation], hook: str
) -> None:
    manager = new_manager()
    for number, one in enumerate(made):
        manager.register(plugin_of(one, number, hook, []), name=f"p{number}")
    bound = bind(manager, hook)
    assert len(bound) == len(made)
    assert all(call.__name__ != "through_pluggy" for call in bound)


def test_an_event_nobody_listens_to_is_an_empty_tuple() -> None:
    events = Events(new_manager())
    assert all(getattr(events, name) == () for name in EVENTS)


def test_a_full_signature_is_bound_as_it_is() -> None:
    class Listener:
        @hookimpl
        def on_step_end(self, run: Any) -> None: ...

    manager, listener = new_manager(), Listener()
    manager.register(listener)
    assert bind(manager, "on_step_end") == (listener.on_step_end,)


def test_an_argument_that_no_hook_has_is_refused_at_registration() -> None:
    class Listener:
        @hookimpl
        def on_step_end(self, run: Any, losses: Any) -> None: ...

    with pytest.raises(pluggy.PluginValidationError, match="losses"):
        new_manager().register(Listener())


def test_trace_prints_to_stderr_who_answers_and_what_a_slot_gave(capsys: pytest.CaptureFixture[str]) -> None:
    class Slot:
        @hookimpl
        def make_precision(self, run: Any) -> Any:
            return {"made": True}

    class Broken:
        @hookimpl
        def on_log(self, logs: Any) -> None:
            raise Trouble("no")

    manager = new_manager()
    manager.register(Slot(), name="precision:mine")
    manager.register(Broken(), name="logger:broken")
    trace(manager)
    manager.hook.make_precision(run=None)
    with pytest.raises(Trouble):
        bind(manager, "on_log", traced=True)[0](None, {})
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert "make_precision" in lines[0]
    assert "precision:mine" in lines[0]
    assert "make_precision gave dict" in lines[1]
    assert "on_log" in lines[2]
    assert "logger:broken" in lines[2]
    assert "on_log raised Trouble('no')" in lines[3]
