"""Kills training runs, over and over: at every call of a save in turn, and at random moments.

`nox -s kills` is the long form; `python -m durability --kills 20`, in tests/, a short one, which the tests run.
After each kill the run is started again, as a user would, and what it ends with is compared with a run that was
never killed: weights, optimizer, scheduler, log, best model, random state, and every file of every checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from durability import faults
from durability.checking import PLACES, Whole, differences, fell, what_is_left
from durability.forks import Child, Place, warm_up
from durability.ranks import Fresh, Group, under_torchrun

_ONE: dict[str, Any] = {"save_total_limit": 1, "save_steps": 1, "eval_steps": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "sync": {},
    "async": {"save_async": True},
    "one kept": _ONE,
    "one kept, async": {**_ONE, "save_async": True},
    "2 ranks": {},
    "2 ranks, async": {"save_async": True},
    "2 ranks, sharded": {"fsdp": "full_shard", "fsdp_config": {"state_dict_type": "sharded_state_dict"}},
    "fresh": {},
    "fresh, async": {"save_async": True},
}
"""The forms of the run that is killed, beside the settings that all have (training.py)."""


Kill: TypeAlias = Callable[[], None]


@dataclass
class Row:
    """What became of the kills of one kind."""

    kills: int = 0
    fell: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    anew: int = 0
    mismatches: int = 0


@dataclass
class Known:
    """A form of the run, never killed: what it ends with, the calls that it makes, and the seconds it takes."""

    whole: Whole
    calls: list[faults.Call]
    seconds: float


class Soak:
    """The kills, and what became of them.

    Args:
        root: a folder for all runs; those that went well are removed.
        seed: of the random moments.
    """

    def __init__(self, root: str, seed: int) -> None:
        self.root = root
        self.draw = random.Random(seed)
        self.rows: dict[str, Row] = {}
        self.failures: list[str] = []
        self._known: dict[str, Known] = {}
        self._places = 0

    def place(self, prepared: str | None = None) -> Place:
        self._places += 1
        return Place(self.root, f"{self._places:05d}", prepared)

    def start(self, place: Place, variant: str) -> Child | Group | Fresh:
        if "ranks" in variant:
            return Group(place, SETTINGS[variant], self.draw)
        return Fresh(place, SETTINGS[variant]) if "fresh" in variant else Child(place, SETTINGS[variant])

    def known(self, variant: str) -> Known:
        if variant not in self._known:
            place = self.place()
            began = time.perf_counter()
            child = self.start(place, variant)
            began = time.perf_counter() if isinstance(child, Fresh) else began
            assert child.ends_well(), place.last_words()
            seconds = time.perf_counter() - began
            self._known[variant] = Known(Whole.of(place), place.control.calls(), seconds)
            place.remove()
        return self._known[variant]

    def kills(self) -> int:
        return sum(row.kills for row in self.rows.values())

    # -- one kill ------------------------------------------------------------------------------------------

    def at_call(
        self,
        kind: str,
        variant: str,
        mode: str,
        number: int,
        prepared: str | None = None,
        resume: str | bool = True,
    ) -> None:
        """Kills a run at a numbered call, and lets another go on."""
        place = self.place(prepared)
        place.control.arm(place.work, mode, number)
        child = Child(place, SETTINGS[variant], resume=resume)
        what = f"{kind}: {variant}, {mode} call {number}"
        if not child.ends():
            self.failures.append(f"{what}: it hangs\n{place.last_words()}")
        elif not child.was_killed:
            self.failures.append(f"{what}: it ended with {child.status}\n{place.last_words()}")
        else:
            call = place.control.calls()[-1]
            self._after(kind, variant, place, f"{what} ({call.name} {os.path.basename(call.path)})")

    def at_random(self, variant: str, again: float = 0.3) -> None:
        """Kills a run at a random moment; with a probability of `again` also the one that goes on, and so forth."""
        kind = f"random, {variant}"
        seconds = self.known(variant).seconds
        place = self.place()
        notes = 0
        while True:
            child = self.start(place, variant)
            delay = self.draw.uniform(0, seconds)
            if child.wait(delay):  # it was faster
                place.remove()
                return self.at_random(variant, again)
            child.kill()
            if self.draw.random() >= again:
                break
            self._count(kind, fell(place, notes))
            if self._left(kind, place, f"{kind}, twice")[1]:
                return None
            notes = len(place.noted())
        self._after(kind, variant, place, f"{kind}, after {delay:.3f} s", notes)
        return None

    def under_torchrun(self, variant: str, kills: int) -> None:
        """Lets torchrun start the workers again, as often as they are killed."""
        place = self.place()
        row = self.rows.setdefault(f"torchrun, {variant}", Row())
        done = under_torchrun(place, SETTINGS[variant], kills, self.draw, self.known(variant).seconds)
        row.kills += done
        row.resumed += sum(word == "begin" and step > 0 for word, step in place.noted())
        row.anew += sum(word == "begin" and step == 0 for word, step in place.noted()[1:])
        if wrong := differences(place, self.known(variant).whole):
            row.mismatches += 1
            self.failures.append(f"torchrun, {variant}: {'; '.join(wrong)}; see {place.folder}")

    def _count(self, kind: str, where: str) -> Row:
        row = self.rows.setdefault(kind, Row())
        row.kills += 1
        row.fell[where] += 1
        return row

    def _left(self, kind: str, place: Place, what: str) -> tuple[int, list[str]]:
        step, wrong = what_is_left(place)
        if wrong:
            self.rows[kind].mismatches += 1
            self.failures.append(f"{what}: {'; '.join(wrong)}; see {place.folder}")
        return step, wrong

    def _after(self, kind: str, variant: str, place: Place, what: str, notes: int = 0) -> None:
        """Looks at what a kill left, starts the run again, and compares what it ends with."""
        row = self._count(kind, fell(place, notes))
        step, wrong = self._left(kind, place, what)
        if wrong:
            return
        before = len(place.noted())
        place.control.arm(place.work)
        child = self.start(place, variant)
        if not child.ends_well():
            wrong = [f"the next start ended with {child.status}\n{place.last_words()}"]
        else:
            began = place.noted()[before]
            # A run that began from before has left checkpoints beyond; the next start goes on from the last of them.
            wrong = differences(place, self.known(variant).whole, listing=kind != "replacing")
            if began != ("begin", step):
                wrong.append(
                    f"the last whole checkpoint was of step {step}, and the run went on with {began}"
                )
            row.resumed += step > 0
            row.anew += step == 0
        if wrong:
            row.mismatches += 1
            self.failures.append(f"{what}: {'; '.join(wrong)}; see {place.folder}")
        else:
            place.remove()

    # -- the plans -----------------------------------------------------------------------------------------

    def every_call(self, variant: str, numbers: Iterable[int]) -> list[Kill]:
        """At each of these calls: before it, and after it or, where it writes, with half of its bytes written."""
        calls = {call.number: call for call in self.known(variant).calls}
        return [
            partial(self.at_call, f"every call, {variant}", variant, mode, number)
            for number in numbers
            for mode in ("before", "torn" if calls[number].name == "write" else "after")
        ]

    def prepared(self, name: str, variant: str) -> str:
        """The working folder of a run killed in a state that the next start has to put right."""
        calls = self.known(variant).calls
        hit = next(call.number for call in calls if LEFT[name](call))
        place = self.place()
        place.control.arm(place.work, "after", hit)
        child = Child(place, SETTINGS[variant])
        assert child.is_killed_soon(), place.last_words()
        return place.work

    def replaced(self) -> str:
        """The working folder of a run with all its checkpoints, to go on from an early one of them."""
        place = self.place()
        child = Child(place, {**SETTINGS["sync"], "save_total_limit": None})
        assert child.ends_well(), place.last_words()
        return place.work

    def start_calls(self, prepared: str, variant: str, resume: str | bool = True) -> list[faults.Call]:
        """The calls of a start in a folder."""
        place = self.place(prepared)
        child = Child(place, SETTINGS[variant], resume=resume)
        assert child.ends_well(), place.last_words()
        calls = place.control.calls()
        place.remove()
        return calls


LEFT = {
    "half-written": lambda call: call.name == "fsync" and ".checkpoint-6.tmp" in call.path,
    "half-deleted": lambda call: call.name == "unlink" and ".del-" in call.path,
}


def saves(calls: list[faults.Call]) -> list[range]:
    """The numbers of the calls of each save, its rotation among them, and of the run's end after the last."""
    begins = [call.number for call in calls if call.name == "mkdir" and ".tmp-" in call.path]
    firsts = [
        number
        for at, number in enumerate(begins)
        if at == 0 or _folder(calls, number) != _folder(calls, begins[at - 1])
    ]
    return [range(one, other) for one, other in zip(firsts, [*firsts[1:], calls[-1].number + 1], strict=True)]


def _folder(calls: list[faults.Call], number: int) -> str:
    return calls[number - 1].path


def before_the_first_save(calls: list[faults.Call]) -> range:
    return range(1, saves(calls)[0].start)


PARTS = ("random", "torchrun", "starts", "calls")

# How often each form is killed at random moments in the long form.
RANDOM = {
    "sync": 120,
    "async": 120,
    "one kept": 40,
    "one kept, async": 40,
    "2 ranks": 20,
    "2 ranks, async": 20,
    "2 ranks, sharded": 20,
    "fresh": 10,
    "fresh, async": 10,
}


def long_form(soak: Soak, parts: Collection[str], scale: float, seconds: float) -> None:
    """More than 400 kills at random moments, and every call of some saves, of a replacement and of a start.

    In a drawn order, so that one that is stopped after some time has done a part of each.
    """
    kills: list[Kill] = []
    if "random" in parts:
        for variant, count in RANDOM.items():
            kills += [partial(soak.at_random, variant)] * round(count * scale)
    if "torchrun" in parts:
        kills += [partial(soak.under_torchrun, variant, 4) for variant in SETTINGS if "ranks" in variant]
    if "starts" in parts:
        kills += starts(soak)
    for variant in ("sync", "async", "one kept") if "calls" in parts else ():
        of = saves(soak.known(variant).calls)
        # The first, with the folder made for it; one that rotates; the last, and the end of the run.
        several = (range(1, of[0].stop), of[3], of[-1]) if variant != "one kept" else (of[-1],)
        for numbers in several:
            kills += soak.every_call(variant, numbers)
    soak.draw.shuffle(kills)
    began = time.perf_counter()
    for done, kill in enumerate(kills):
        if time.perf_counter() - began > seconds:
            print(f"Stopped after {done} of {len(kills)}.")
            break
        kill()
        if done % 50 == 49:
            print(f"{done + 1} of {len(kills)}, {len(soak.failures)} failures", file=sys.stderr, flush=True)


def starts(soak: Soak) -> list[Kill]:
    """Kills at the calls of a start that finds a half-written, half-deleted or half-replaced checkpoint."""
    kills: list[Kill] = []
    for name in LEFT:
        work = soak.prepared(name, "sync")
        for number in before_the_first_save(soak.start_calls(work, "sync")):
            kills.append(partial(soak.at_call, f"start, {name}", "sync", "before", number, work))
    early = "out/checkpoint-2"
    work = soak.replaced()
    calls = soak.start_calls(work, "sync", early)
    for number in saves(calls)[0]:
        kills.append(partial(soak.at_call, "replacing", "sync", "before", number, work, early))
    place = soak.place(work)
    hit = next(call.number for call in calls if call.name == "rename" and ".old-" in call.second)
    place.control.arm(place.work, "after", hit)
    child = Child(place, SETTINGS["sync"], resume=early)
    assert child.is_killed_soon(), place.last_words()
    for number in before_the_first_save(soak.start_calls(place.work, "sync", early)):
        kills.append(partial(soak.at_call, "start, half-replaced", "sync", "before", number, place.work))
    return kills


def short_form(soak: Soak, kills: int) -> None:
    """Some of everything."""
    for variant in ("sync", "async"):
        rotating = saves(soak.known(variant).calls)[3]
        calls = rotating[:: max(1, len(rotating) * 6 // kills)]
        for number in calls:
            soak.at_call(f"every call, {variant}", variant, "before", number)
    while soak.kills() < kills:
        variant = ("sync", "async", "one kept", "one kept, async")[soak.kills() % 4]
        soak.at_random(variant)


def table(rows: dict[str, Row]) -> str:
    """Markdown: a line a kind, and the sum."""
    head = ["kills", "number", *(f"in: {word}" if word == PLACES[0] else word for word in PLACES)]
    head += ["resumed", "begun anew", "mismatches"]
    total = Row()
    lines = []
    for kind, row in [*rows.items(), ("all", total)]:
        cells = [kind, row.kills, *(row.fell[word] for word in PLACES), row.resumed, row.anew, row.mismatches]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        if row is not total:
            total.kills += row.kills
            total.fell += row.fell
            total.resumed += row.resumed
            total.anew += row.anew
            total.mismatches += row.mismatches
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, help="a short form with so many")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the long form: how many random kills, times this"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="of the long form: stop after so many")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of the long form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", required=True, help="where the runs live")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    chosen = parser.parse_args()
    began = time.perf_counter()
    warm_up(chosen.root)
    soak = Soak(chosen.root, chosen.seed)
    if chosen.kills is not None:
        short_form(soak, chosen.kills)
    else:
        long_form(soak, chosen.parts, chosen.scale, chosen.seconds)
    for failure in soak.failures:
        print(failure + "\n")
    if chosen.json:
        print(json.dumps({kind: vars(row) for kind, row in soak.rows.items()}))
    else:
        print(table(soak.rows))
        print(f"{time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f}")
    if not soak.failures:
        shutil.rmtree(chosen.root)
    return 1 if soak.failures else 0
