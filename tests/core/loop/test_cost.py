"""What a step costs, counted in Python calls, so that a slow-down shows without a clock."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from support.toy import rows, trainer

import drivetrain
from drivetrain import hookimpl

CORE = str(Path(str(drivetrain.__file__)).parent)


class Counting:
    """Counts calls of Python functions, those of drivetrain's own files apart, between two updates."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.calls: Counter[str] = Counter()
        self.steps = last - first

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            name = frame.f_code.co_filename
            if name.startswith(CORE) or "drivetrain_plugins" in name:
                self.calls[f"{Path(name).name}:{frame.f_code.co_qualname}"] += 1
            else:
                self.calls["others"] += 1

    @hookimpl(trylast=True)
    def on_step_end(self, run: Any) -> None:
        if run.state.global_step == self.first:
            sys.setprofile(self.profile)
        elif run.state.global_step == self.last:
            sys.setprofile(None)


@pytest.fixture
def per_step(tmp_path: Path) -> Any:
    """`per_step(...)`: calls of drivetrain's own functions in a step, by name, on average."""

    def count(plugins: Any = (), **values: Any) -> dict[str, float]:
        counting = Counting(10, 30)
        made = trainer(
            tmp_path,
            data=rows(800),  # one epoch, whose beginning is not counted
            plugins=[counting, *plugins],
            max_steps=40,
            **{"logging_strategy": "no", "save_strategy": "no", **values},
        )
        try:
            made.train()
        finally:
            sys.setprofile(None)
        return {name: number / counting.steps for name, number in counting.calls.items()}

    return count


def own(calls: dict[str, float]) -> float:
    return sum(number for name, number in calls.items() if name != "others")


def test_a_plain_step(per_step: Any) -> None:
    """Today 43 calls, of which five read the clock; the bound leaves room for a few, not for a hook system that is asked at every event."""
    calls = per_step()
    assert own(calls) <= 47, calls
    assert not any("through_pluggy" in name for name in calls)


def test_a_micro_batch(per_step: Any) -> None:
    one = own(per_step(gradient_accumulation_steps=1))
    two = own(per_step(gradient_accumulation_steps=2))
    assert two - one <= 31, (one, two)  # four of them read the clock


def test_a_listener_costs_its_own_call_alone(per_step: Any) -> None:
    class Listener:
        @hookimpl
        def on_step_begin(self, run: Any) -> None: ...

    plain, heard = per_step(), per_step(plugins=[Listener()])
    assert own(heard) == own(plain) + 3  # and what it takes is noted
    assert heard["others"] - plain["others"] == pytest.approx(1, abs=0.2)


def test_a_row_of_the_log_is_served_in_few_calls(per_step: Any) -> None:
    def served(**values: Any) -> float:
        return own(per_step(logging_strategy="steps", logging_steps=1, **values)) - own(per_step(**values))

    assert served(record=False) <= 45
    assert served() <= 60


def test_no_value_is_read_from_the_device_between_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`item()` waits for a device: how often it is called must not depend on how many steps there are.

    On a CPU, where nothing is waited for, two places look at a number each step: clipping, and the filter of
    the log. Both are off here.
    """
    read: list[int] = []
    item = torch.Tensor.item

    def counted(self: torch.Tensor) -> Any:
        read.append(1)
        return item(self)

    def reads(steps: int) -> int:
        settings: dict[str, Any] = {
            "save_strategy": "no",
            "logging_nan_inf_filter": False,
            "max_grad_norm": 0,
        }
        made = trainer(tmp_path, max_steps=steps, logging_steps=1000, **settings)
        read.clear()
        made.train()
        return len(read)

    monkeypatch.setattr(torch.Tensor, "item", counted)
    assert reads(12) == reads(4)
