"""The benchmarks run, on every kind of data; what they measure is not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
def test_overhead_runs_on_every_kind_of_data(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = [
        "--engines",
        "hand,drivetrain,drivetrain-bar",
        "--data",
        "all",
        "--rounds",
        "1",
        "--steps",
        "250",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, str(BENCH / "overhead.py"), *words, str(out)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(out.read_text())["data"]
    assert set(figures) == {"rows", "list", "pairs", "batches"}
    for kind in figures.values():
        assert set(kind["engines"]) == {"hand", "drivetrain", "drivetrain-bar"}
        assert all(len(rounds) == 1 and len(rounds[0]) == 1 for rounds in kind["windows"].values())
        assert set(kind["targets_met"]) == {"drivetrain to hand", "drivetrain-bar to drivetrain"}


def test_optimizers_are_measured_in_turn(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["--rounds", "2", "--words", "adamw_torch,adamw_hf,nobody", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, str(BENCH / "optimizers.py"), *words],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nobody: left out: Unknown optimizer 'nobody'." in done.stdout
    figures = json.loads(out.read_text())
    assert set(figures) == {"adamw_torch", "adamw_hf"}
    assert all(7.9 < found["bytes"] < 8.1 for found in figures.values())


def test_an_unknown_engine_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "overhead.py"), "--engines", "hand,nobody"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown: nobody" in done.stderr


@pytest.mark.soak
def test_strategies_runs_time_and_memory(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    work = {"warm_up": 1, "window": 2, "steps": 4, "log_every": 2}
    words = "--strategies fsdp2 --drivers hand,drivetrain --models transformer --rounds 2 --launches 1"
    words += f" --windows 1 --memory-launches 1 --minutes 1.5 --json {out} --work"
    done = subprocess.run(
        [sys.executable, str(BENCH / "strategies.py"), *words.split(), json.dumps(work)],
        capture_output=True,
        text=True,
        timeout=290,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = json.loads(out.read_text())["models"]["transformer"]["fsdp2"]
    assert not table["reasons"], table["reasons"]
    for driver in ("hand", "drivetrain"):
        entry = table["drivers"][driver]
        # Each of two processes holds half of AdamW's two averages.
        assert entry["optimizer_elements"] == pytest.approx(5_018_112, rel=0.001)
        assert len(entry["rounds"]["wall"]) == len(entry["rounds"]["cpu"]) == 2
        assert 0 < entry["growth_mib"] < entry["peak_mib"]
    assert table["drivers"]["hand"]["to_hand"]["cpu"]["median"] == 1.0


def test_strategies_say_what_is_unknown() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "strategies.py"), "--strategies", "ddp,nothing"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown: nothing" in done.stderr


@pytest.mark.soak
def test_checkpoint_runs_both_parts(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = "--savers torch,torch-fsync,drivetrain,drivetrain-async --resumers drivetrain --rows 10,100 --rounds 1"
    words += f" --layers 1 --saves 2 --every 3 --folder {tmp_path} --json {out}"
    done = subprocess.run(
        [sys.executable, str(BENCH / "checkpoint.py"), *words.split()],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(out.read_text())
    assert not told["save"]["reasons"]
    assert not told["resume"]["reasons"]
    for entry in told["save"]["savers"].values():
        # A million parameters with AdamW's two averages, in fp32.
        assert entry["megabytes"] == pytest.approx(12.6, rel=0.02)
        assert len(entry["first"]) == len(entry["later"]) == 1
    assert {row: len(times) for row, times in told["resume"]["seconds"]["drivetrain"].items()} == {
        "10": 1,
        "100": 1,
    }


@pytest.mark.soak
def test_evaluation_runs_and_counts_what_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = f"--rows 200 --engines drivetrain,drivetrain-fed --processes 1 --json {out}"
    done = subprocess.run(
        [sys.executable, str(BENCH / "evaluation.py"), *words.split()],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = json.loads(out.read_text())
    assert [(run["engine"], run["rows"]) for run in runs] == [
        (engine, 200) for engine in ("drivetrain", "drivetrain-fed")
    ]
    assert [run["kept MB"] for run in runs] == [0.0816, 0]


@pytest.mark.slow
def test_options_train_in_turn(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    work = {"layers": 1, "width": 48, "window": 1, "batch": 2, "context": 32}
    words = f"--options plain,checkpointing --trainers drivetrain --rounds 2 --minutes 4 --json {out} --work"
    done = subprocess.run(
        [sys.executable, str(BENCH / "options.py"), *words.split(), json.dumps(work)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = json.loads(out.read_text())["runs"]["drivetrain"]
    assert set(runs) == {"plain", "checkpointing"}
    assert all(len(run["wall"]) == 2 and run["parameters"] == 54_480 for run in runs.values())
    assert runs["plain"]["loss"] == pytest.approx(runs["checkpointing"]["loss"], rel=1e-5)
