"""`profiler`: which updates are in the trace, what is printed, and that nothing is left of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import rows, trainer

from drivetrain import ConfigurationError, hookimpl

VALUES: dict[str, Any] = {"save_strategy": "no", "data": rows(400), "logging_strategy": "no"}


class Marks:
    """Writes the number of each update into whatever trace is being made, and notes in which one is."""

    name = "marks"

    def __init__(self) -> None:
        self.profiled: list[int] = []

    @hookimpl
    def on_micro_batch(self, run: Any) -> None:
        update = run.state.global_step + 1
        with torch.profiler.record_function(f"update {update}"):
            pass
        if torch.autograd._profiler_enabled():
            self.profiled.append(update)


def run(output: Path, steps: int, **options: Any) -> tuple[Any, Marks]:
    marks = Marks()
    # Given in Python, since options by name and objects cannot go into one argument.
    from drivetrain_plugins.callback.profiler import Profiler, ProfilerOptions

    profiler = Profiler(ProfilerOptions(**options))
    made = trainer(output, max_steps=steps, plugins=[profiler, marks], **VALUES)
    made.train()
    return profiler, marks


def marks_in(trace: Path) -> list[int]:
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    names = [str(event.get("name")) for event in events if event.get("cat") == "user_annotation"]
    return sorted(int(name.split()[1]) for name in names if name.startswith("update "))


@pytest.mark.parametrize(
    ("options", "profiled", "traces"),
    [
        ({"wait": 2, "warmup": 1, "active": 2}, [4, 5], {"4-5": [4, 5]}),
        ({"wait": 0, "warmup": 1, "active": 1}, [2], {"2-2": [2]}),
        (
            {"wait": 1, "warmup": 1, "active": 2, "repeat": 2},
            [3, 4, 7, 8],
            {"3-4": [3, 4], "7-8": [7, 8]},
        ),
        (
            {"wait": 0, "warmup": 1, "active": 1, "repeat": 3},
            [2, 4, 6],
            {"2-2": [2], "4-4": [4], "6-6": [6]},
        ),
        ({"wait": 3, "warmup": 1, "active": 9}, [5, 6, 7, 8, 9, 10], {"5-10": [5, 6, 7, 8, 9, 10]}),
    ],
    ids=["window", "at once", "twice", "without a pause", "cut off by the end"],
)
def test_windows(
    tmp_path: Path, options: dict[str, Any], profiled: list[int], traces: dict[str, list[int]]
) -> None:
    """Outside of its window the profiler is off: not running idly, off."""
    profiler, marks = run(tmp_path, 10, **options)
    assert marks.profiled == profiled
    found = {path.name.split("updates-")[1].split(".")[0]: marks_in(path) for path in profiler.traces}
    assert found == traces
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == sorted(
        f"rank0-updates-{name}.pt.trace.json.gz" for name in traces
    )


def test_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in ("60", "200"):
        monkeypatch.setenv("COLUMNS", width)
        run(tmp_path, 10, wait=1, warmup=1, active=3, top=5, memory=True)
        printed = capsys.readouterr().out
        lines = printed[printed.index("The dearest") :].splitlines()
        assert all(len(line) <= int(width) for line in lines[:-2] if "rank0" not in line)
        rows = [line for line in lines if " ms " in line]
        assert len(rows) == 5
        times = [float(line.split(" ms ")[0].split()[-1].replace(",", "")) for line in rows]
        assert times == sorted(times, reverse=True)
        assert "rank0-updates-3-5.pt.trace.json.gz" in printed.replace("\n", "")
    assert "allocated" in printed
    run(tmp_path, 10, top=0)
    assert "dearest" not in capsys.readouterr().out


def test_a_run_that_is_too_short_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profiler, _ = run(tmp_path, 3, wait=5)
    assert profiler.traces == []
    assert "the run ended with update 3, before its window began after update 5: lower wait." in caplog.text
    run(tmp_path, 3, wait=1, warmup=4)
    assert not list(tmp_path.rglob("*.gz"))


def test_after_an_error_the_window_is_kept(tmp_path: Path) -> None:
    from drivetrain_plugins.callback.profiler import Profiler, ProfilerOptions

    class Fails:
        @hookimpl
        def on_micro_batch(self, run: Any) -> None:
            if run.state.global_step == 4:
                raise RuntimeError("enough")

    profiler = Profiler(ProfilerOptions(wait=1, warmup=1, active=8))
    made = trainer(tmp_path, max_steps=8, plugins=[profiler, Fails()], **VALUES)
    with pytest.raises(RuntimeError, match="enough"):
        made.train()
    assert not torch.autograd._profiler_enabled()
    assert [path.name for path in profiler.traces] == ["rank0-updates-3-4.pt.trace.json.gz"]


def test_shapes_and_stacks_and_a_folder(tmp_path: Path) -> None:
    profiler, _ = run(tmp_path, 4, wait=1, warmup=1, active=1, shapes=True, stacks=True, folder="here")
    (trace,) = profiler.traces
    assert trace.parent == tmp_path / "here"
    with gzip.open(trace, "rt") as file:
        text = file.read()
    assert '"Input Dims"' in text
    assert "loop.py" in text


def test_by_name_and_wrong_options(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, max_steps=3, plugins={"profiler": {"wait": 1, "warmup": 1, "active": 1}}, **VALUES
    )
    made.train()
    assert len(list((tmp_path / "profile").iterdir())) == 1
    for options, said in (
        ({"active": 0}, "active=0 must be at least 1"),
        ({"ranks": "1"}, "must be 'first' or 'all'"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            trainer(tmp_path, plugins={"profiler": options})
