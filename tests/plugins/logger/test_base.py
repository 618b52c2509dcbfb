"""What all loggers share: a tracker that fails, hangs or is slow neither ends nor holds up a run, and takes nothing from it."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.logged import trainer, without_clocks

from drivetrain import TrainerCallback
from drivetrain_plugins.logger import base
from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row
from drivetrain_plugins.logger.options import LoggerOptions

GENEROUS = 120.0


class Notes(Logger):
    """Notes what it is asked to do, and where."""

    name = "notes"

    def __init__(self, **options: Any) -> None:
        super().__init__(LoggerOptions(**{"close_timeout": GENEROUS, **options}))
        self.opened: list[Facts] = []
        self.got: list[Row] = []
        self.closed = 0
        self.threads: set[threading.Thread] = set()

    def open(self, facts: Facts) -> None:
        self.threads.add(threading.current_thread())
        self.opened.append(facts)
        self.state = facts.joins or {"id": f"run-{id(self)}"}

    def write(self, row: Row) -> None:
        self.threads.add(threading.current_thread())
        self.got.append(row)

    def close(self) -> None:
        self.closed += 1


class Held(Notes):
    """Hangs at its first row until it is let go."""

    name = "held"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.arrived, self.free = threading.Event(), threading.Event()

    def write(self, row: Row) -> None:
        self.arrived.set()
        assert self.free.wait(GENEROUS)
        super().write(row)


class Raises(Notes):
    name = "raises"

    def write(self, row: Row) -> None:
        raise OSError("the disk is full")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    base._past.clear()
    yield
    base._past.clear()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, logger="drivetrain"):
        yield lambda: [
            record.getMessage() for record in caplog.records if record.getMessage().startswith("Logger")
        ]


def wait(logger: Logger) -> None:
    assert logger._lane is not None
    assert logger._lane.wait(logger, GENEROUS)


def test_rows_are_written_in_order_in_a_thread_of_their_own(tmp_path: Path) -> None:
    notes = Notes()
    made = trainer(tmp_path, plugins=[notes], run_name="a name")
    made.train()
    assert [{**row.values, "step": row.step} for row in notes.got] == made.state.log_history
    assert notes.closed == 1
    assert len(notes.threads) == 1
    assert threading.main_thread() not in notes.threads
    (facts,) = notes.opened
    assert (facts.name, facts.is_training, facts.step) == ("a name", True, 0)
    assert facts.arguments["logging_steps"] == 2


@pytest.mark.parametrize("kind", [Raises, Held])
def test_a_tracker_that_fails_or_hangs_leaves_the_run_as_it_is(
    tmp_path: Path, kind: type[Notes], said: Callable[[], list[str]]
) -> None:
    plain = trainer(tmp_path / "plain")
    plain.train()
    logger = kind(close_timeout=0.05)
    logged = trainer(tmp_path / "logged", plugins=[logger])
    output = logged.train()
    assert output.global_step == 8
    for ours, theirs in zip(logged.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert without_clocks(logged.state.log_history) == without_clocks(plain.state.log_history)
    rows = len(plain.state.log_history)
    if isinstance(logger, Held):
        assert any(
            f"does not keep up: {rows} rows of the log are still to be written" in line for line in said()
        )
        logger.free.set()
        wait(logger)
        assert len(logger.got) == rows
        assert logger.closed == 1
    else:
        assert said() == [
            "Logger 'raises' failed, and the run goes on without what it could not write: OSError: the disk is full",
            f"Logger 'raises' has lost {rows} of {rows} rows of the log: {rows} could not be written.",
        ]


def test_a_full_queue_loses_its_oldest_rows_and_counts_them(
    tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    held = Held(queue_size=2, close_timeout=0.0)

    class Waits(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:  # the first row is being written by now
                assert held.arrived.wait(GENEROUS)

    made = trainer(tmp_path, plugins=[held], callbacks=[Waits])
    made.train()
    held.free.set()
    wait(held)
    history = made.state.log_history
    kept = [history[0], *history[-2:]]
    assert [{**row.values, "step": row.step} for row in held.got] == kept
    lost = len(history) - 3
    assert said()[-1] == (
        f"Logger 'held' has lost {lost} of {len(history)} rows of the log: {lost} had no room in its queue "
        "(queue_size=2) or no time."
    )


def test_a_server_that_is_late_gets_all_rows(
    tmp_path: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "FIRST_PAUSE", 0.01)

    class Late(Notes):
        name = "late"

        def open(self, facts: Facts) -> None:
            super().open(facts)
            if len(self.opened) < 3:
                raise ConnectionError("nobody listens")

    late = Late()
    late._pause = 0.01
    made = trainer(tmp_path, plugins=[late])
    made.train()
    wait(late)
    assert len(late.got) == len(made.state.log_history) or len(late.opened) == 2
    assert said()[0] == (
        "Logger 'late' failed, and the run goes on without what it could not write: ConnectionError: nobody listens"
    )


def test_a_library_that_cannot_be_imported_is_said_once(
    tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    class Broken(Notes):
        name = "broken"

        def load(self) -> None:
            raise ImportError("a library of C is not there")

    broken = Broken()
    made = trainer(tmp_path, plugins=[broken])
    assert made.train().global_step == 8
    rows = len(made.state.log_history)
    assert said() == [
        "Logger 'broken' failed, and the run goes on without what it could not write: "
        "ImportError: a library of C is not there",
        f"Logger 'broken' has lost {rows} of {rows} rows of the log: {rows} could not be written.",
    ]
    assert broken.opened == []


def test_a_library_that_would_end_the_process_does_not_end_the_thread(tmp_path: Path) -> None:
    class Exits(Notes):
        name = "exits"

        def write(self, row: Row) -> None:
            super().write(row)
            if len(self.got) == 1:
                raise SystemExit(3)

    exits = Exits()
    made = trainer(tmp_path, plugins=[exits])
    made.train()
    assert len(exits.got) == len(made.state.log_history)
    assert exits.closed == 1


def test_values_are_those_of_the_moment(tmp_path: Path) -> None:
    counter, picture = torch.zeros(()), torch.zeros(2, 2)

    class Adds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            counter.fill_(state.global_step)
            picture.fill_(state.global_step)
            row = {"counter": counter, "picture": picture, "nan": math.nan, "word": "yes"}
            made.log(row)
            row["counter"] = None  # what is done to the row afterwards is not seen

    held = Held()
    made = trainer(tmp_path, plugins=[held], callbacks=[Adds], max_steps=3, evaluation_strategy="no")
    held.options = LoggerOptions(close_timeout=0.0)
    made.train()
    held.free.set()
    wait(held)
    rows = [row.values for row in held.got if "counter" in row.values]
    assert [row["counter"] for row in rows] == [1.0, 2.0, 3.0]
    assert [float(row["picture"].sum()) for row in rows] == [4.0, 8.0, 12.0]
    assert all(math.isnan(row["nan"]) and row["word"] == "yes" for row in rows)


def test_a_resume_an_evaluation_and_a_new_training_find_their_run(tmp_path: Path) -> None:
    class Opens(Notes):
        def __init__(self) -> None:
            super().__init__(open_timeout=GENEROUS)

    first = Opens()
    trainer(tmp_path, plugins=[first], save_strategy="steps", save_steps=4).train()
    wait(first)
    resumed = Opens()
    made = trainer(tmp_path, plugins=[resumed], save_strategy="steps", save_steps=4)
    made.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert resumed.opened[0].joins == first.state
    assert (resumed.opened[0].step, resumed.opened[0].rows_at_step) == (4, 1)
    assert [row.step for row in resumed.got if "loss" in row.values] == [6, 8]
    # The same object hears an evaluation after the end: it is opened anew, in the run that it had.
    made.evaluate()
    wait(resumed)
    assert resumed.opened[1].again
    assert resumed.opened[1].joins == first.state
    assert resumed.closed == 2
    fresh = Opens()
    trainer(tmp_path / "new", plugins=[fresh]).train()
    assert fresh.opened[0].joins == {}
    other = Opens()
    trainer(tmp_path / "new", plugins=[other]).evaluate()
    wait(other)
    assert not other.opened[0].is_training
    assert other.opened[0].joins == fresh.state


def test_trials_of_a_search_have_names_and_follow_each_other(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra 'optuna' is not installed")
    events: list[str] = []

    class Trials(Notes):
        name = "trials"

        def open(self, facts: Facts) -> None:
            super().open(facts)
            events.append(f"open {facts.trial_name}")

        def close(self) -> None:
            super().close()
            events.append("close")

    logger = Trials()
    made = trainer(tmp_path, plugins=[logger])
    model = made.model
    made.model_init = lambda: type(model)()
    made.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2)}, n_trials=2
    )
    wait(logger)
    assert events == ["open run-0", "close", "open run-1", "close"]
    assert len(logger.threads) == 1


def test_a_tracker_of_the_main_thread_is_called_there_and_its_failures_end_nothing(
    tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    class Main(Notes):
        name = "main"
        in_main_thread = True

        def write(self, row: Row) -> None:
            super().write(row)
            if row.step == 4:
                raise ValueError("not this one")

    main = Main()
    made = trainer(tmp_path, plugins=[main])
    made.train()
    assert main.threads == {threading.main_thread()}
    assert len(main.got) == len(made.state.log_history)
    assert main.closed == 1
    assert (
        said()[-1] == f"Logger 'main' has lost 2 of {len(main.got)} rows of the log: 2 could not be written."
    )


def test_an_error_that_ends_the_run_is_known_to_the_tracker(tmp_path: Path) -> None:
    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise RuntimeError("enough")

    notes = Notes()
    with pytest.raises(RuntimeError, match="enough"):
        trainer(tmp_path, plugins=[notes], callbacks=[Fails]).train()
    assert str(notes.error) == "enough"
    assert [row.step for row in notes.got if "loss" in row.values] == [2, 4]
    assert notes.closed == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"queue_size": 0}, "queue_size=0 must be at least 1"),
        ({"close_timeout": -1.0}, "open_timeout and close_timeout must not be negative"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LoggerOptions(**options)
