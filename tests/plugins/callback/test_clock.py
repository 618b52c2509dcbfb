"""The rate and the time left, on a clock that is set by hand: steps of ten minutes cannot be waited for."""

from __future__ import annotations

import pytest

from drivetrain_plugins.callback.clock import Clock, Pause


class Hours:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def advance(clock: Clock, hours: Hours, steps: int, each: float, look: float = 0.25) -> None:
    """Does steps of so many seconds each, and looks at them as often as a display does."""
    first, begin, end = clock.count, hours.now, hours.now + steps * each
    while hours.now < end - 1e-6:
        hours.now = min(hours.now + look, end)
        clock.look(first + int((hours.now - begin) / each + 1e-6))


@pytest.mark.parametrize("each", [0.001, 0.3, 7.0, 600.0])
def test_the_time_left_is_that_of_the_steps_to_come(each: float) -> None:
    hours = Hours()
    clock = Clock(now=hours)
    assert clock.rate is None
    assert clock.left(100) is None
    steps = max(int(30 / each), 5)
    advance(clock, hours, steps, each)
    assert clock.rate == pytest.approx(1 / each, rel=0.02)
    assert clock.left(10 * steps) == pytest.approx(9 * steps * each, rel=0.02)
    # It goes down while a step lasts, and not below what the steps after it take.
    left = clock.left(10 * steps)
    assert left is not None
    hours.now += each / 2
    assert clock.left(10 * steps) == pytest.approx(left - each / 2, rel=0.01)
    hours.now += 100 * each
    assert clock.left(10 * steps) == pytest.approx(left - each, rel=0.01)
    assert clock.left(steps) == 0


def test_a_slow_first_step_is_forgotten_and_a_guess_is_called_one() -> None:
    hours = Hours()
    clock = Clock(now=hours)
    advance(clock, hours, 1, 90.0)  # compiled meanwhile
    assert clock.rate == pytest.approx(1 / 90)
    assert clock.is_rough(100)
    advance(clock, hours, 2, 1.0)
    assert clock.rate == pytest.approx(1.0, rel=0.01)
    assert not clock.is_rough(100)


def test_a_change_of_speed_is_followed_and_a_single_slow_step_is_not() -> None:
    hours = Hours()
    clock = Clock(now=hours)
    advance(clock, hours, 100, 1.0)
    advance(clock, hours, 1, 5.0)
    assert clock.rate == pytest.approx(1.0, rel=0.25)
    advance(clock, hours, 120, 2.0)
    assert clock.rate == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("begin", [0, 1300])
def test_pauses_are_no_steps_and_those_to_come_are_time_too(begin: int) -> None:
    hours = Hours()
    clock = Clock(begin, {"evaluation": Pause(500.0), "checkpoint": Pause(0.0)}, now=hours)
    advance(clock, hours, 3, 1.0)
    assert clock.is_rough(3000), "no evaluation has been timed"
    advance(clock, hours, 500 - (begin + 3) % 500, 1.0)
    at = clock.count
    assert at % 500 == 0
    ahead = (3000 - at) // 500
    assert ahead > 0
    before = clock.left(3000)
    assert before == pytest.approx(3000 - at, rel=0.01)
    hours.now += 2  # workers start
    clock.pause("evaluation", at)
    hours.now += 98
    clock.look(at + 50)  # nothing is looked at meanwhile
    clock.resume()
    assert clock.rate == pytest.approx(1.0, rel=0.01)
    assert clock.left(3000) == pytest.approx(3000 - at + 100 * ahead, rel=0.01)
    assert not clock.is_rough(3000)
    advance(clock, hours, 1, 1.0)
    assert clock.rate == pytest.approx(1.0, rel=0.01)
    advance(clock, hours, 249, 1.0)
    assert clock.left(3000) == pytest.approx(3000 - at - 250 + 100 * ahead, rel=0.01)
    # While the next one lasts, what is left of it counts.
    advance(clock, hours, 250, 1.0)
    clock.pause("evaluation", at + 500)
    hours.now += 40
    assert clock.left(3000) == pytest.approx(2500 - at + 100 * (ahead - 1) + 60, rel=0.01)


def test_steps_done_between_two_looks_are_not_lost_to_a_pause() -> None:
    hours = Hours()
    clock = Clock(now=hours)
    for round_ in range(1, 4):
        hours.now += 0.2  # 20 steps, which no look has seen
        clock.pause("evaluation", 20 * round_)
        hours.now += 10
        clock.resume()
    assert clock.rate == pytest.approx(100, rel=0.01)
    assert clock.count == 60


def test_a_counter_that_goes_back_is_not_followed() -> None:
    hours = Hours()
    clock = Clock(now=hours)
    advance(clock, hours, 10, 1.0)
    clock.look(4)  # listeners are told of a checkpoint that was written meanwhile
    assert clock.count == 10


def test_what_comes_by_epochs_and_what_never_comes() -> None:
    assert Pause(33.4).ahead(0, 100) == 2
    assert Pause(100 / 3).ahead(34, 100) == 2
    assert Pause(100 / 3).ahead(100, 100) == 0
    assert Pause(0.0).ahead(0, 100) == 0
