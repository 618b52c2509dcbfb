"""`drivetrain report`: the page in a real browser, the picture, the table, and a run that is followed."""

from __future__ import annotations

import csv
import dataclasses
import http.client
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import browser
from support.toy import accuracy, rows, trainer
from typer.testing import CliRunner

from drivetrain import TrainerCallback, discover
from drivetrain.cli.app import app
from drivetrain.record import NAME, Recorded, names_of, read
from drivetrain_plugins.report import HTML
from drivetrain_plugins.report.content import content
from drivetrain_plugins.report.html import Html
from drivetrain_plugins.report.thinning import LIMIT, thinned

needs_browser = pytest.mark.skipif(
    browser.find() is None, reason="needs Chromium: none of its names is on PATH"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs, of which one is more talkative."""

    class Warns(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7:
                import logging

                logging.getLogger("drivetrain").warning("Careful: </script><script>window.hit = 1</script>")

    folder = tmp_path_factory.mktemp("runs")
    made = []
    for name, rate in (("steady", 1e-2), ("<b>quick", 5e-2)):
        made.append(folder / name)
        run = trainer(
            made[-1],
            compute_metrics=accuracy,
            learning_rate=rate,
            max_steps=40,
            logging_steps=1,
            eval_steps=10,
            save_steps=20,
            evaluation_strategy="steps",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            callbacks=[Warns],
        )
        run.train()
        run.predict(rows(10))
    return made


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    with browser.Browser() as found:
        yield found


def command(*words: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["report", *map(str, words)])
    return done.exit_code, done.output


def shown(chromium: browser.Browser, path: Path, plots: int, **window: Any) -> None:
    """Opens a page and waits until all is drawn."""
    chromium.open(path.as_uri(), **window)
    chromium.wait(f"Number(document.body.dataset.drawn) >= {plots}")
    assert chromium.errors == []
    assert chromium.requests == [path.as_uri()]  # no network


PLOTS = ["Loss", "accuracy", "Learning rate", "Gradient norm", "Rows a second", "Memory"]


@needs_browser
def test_one_run_in_a_browser(
    runs: list[Path], chromium: browser.Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = command(runs[0])
    assert (code, said.split()[0]) == (0, "report.html")
    page, run = tmp_path / "report.html", read(runs[0])
    shown(chromium, page, len(PLOTS))
    titles = chromium.get("[...document.querySelectorAll('.plots h3')].map((found) => found.textContent)")
    # A run that takes more than a second, as on a machine that is busy, has told its times more than once.
    assert [title for title in titles if title != "An update's time"] == PLOTS
    # The first screen says how it went.
    first = chromium.get("document.getElementById('told').innerText")
    losses = [row["logs"]["loss"] for row in run.logs if "loss" in row["logs"]]
    assert f"{losses[-1]:.4f}" in first
    assert run.end is not None
    assert f"{run.end['best_metric']:.4f}" in first
    for word in (
        "finished",
        "Best accuracy",
        "40 updates",
        "Where the time went",
        "forward",
        "backward",
        "setup",
    ):
        assert word in first, word
    assert chromium.get("document.querySelector('.spent').getBoundingClientRect().bottom") < 1000
    below = chromium.get("document.getElementById('below').innerText")
    for word in (
        "learning_rate",
        "0.01",
        "checkpoint-40",
        "single",
        "torch",
        "test_accuracy",
        "Careful: </script>",
    ):
        assert word in below, word
    assert "weight_decay" not in below  # is at its default
    assert chromium.get("window.hit === undefined")
    # Hovering tells the point, and a click on the legend takes a line away.
    chromium.point(".plot .nsewdrag", x=0.5)
    told = chromium.wait("document.querySelector('.plot .hoverlayer')?.textContent")
    assert "training" in told
    assert chromium.get("document.querySelectorAll('.first .legendtoggle').length") == 3
    chromium.point(".first .legendtoggle", click=True)
    chromium.wait("document.querySelector('.first .plot').data[0].visible === 'legendonly'")
    # Another axis, smoothed, on a logarithmic scale.
    chromium.point(".choice button:nth-child(2)", click=True)
    chromium.wait("document.querySelector('.first .plot').layout.xaxis.title.text === 'epoch'")
    chromium.get(
        "(() => { const e = document.querySelector('input[type=range]'); e.value = 0.9; e.dispatchEvent(new Event('input')); })()"
    )
    chromium.wait("document.querySelector('.first .plot').data.length === 4")
    chromium.point("input[type=checkbox]", click=True)
    chromium.wait("document.querySelector('.first .plot').layout.yaxis.type === 'log'")
    assert chromium.errors == []


@needs_browser
def test_several_runs_in_a_browser(runs: list[Path], chromium: browser.Browser, tmp_path: Path) -> None:
    page = tmp_path / "deep" / "both.html"
    assert command(*runs, "-o", page)[0] == 0
    shown(chromium, page, len(PLOTS), width=390, height=844)
    assert chromium.get("document.documentElement.scrollWidth") == 390  # nothing sticks out
    assert chromium.get("document.querySelector('.plot .main-svg').getBoundingClientRect().width") < 390
    told = chromium.get("document.getElementById('told').innerText")
    assert "steady" in told
    assert "<b>quick" in told  # its very name
    differ = chromium.get(
        "[...document.querySelectorAll('tr.differs')].map((row) => row.innerText.split('\\t'))"
    )
    assert differ == [["learning_rate", "0.01", "0.05"]]
    count = "document.querySelector('.first .plot').data.length"
    lines = chromium.get(count)
    chromium.point(".run", click=True)
    chromium.wait(f"{count} === {lines // 2}")
    ink = "getComputedStyle(document.body).color + document.querySelector('.plot').layout.font.color"
    light = chromium.get(ink)
    chromium.prefer(dark=True)
    chromium.wait(f"({ink}) !== '{light}' && document.querySelector('.plot').layout.font.color === '#93a0ae'")
    assert chromium.errors == []


@needs_browser
def test_runs_of_transformers_and_long_ones(chromium: browser.Browser, tmp_path: Path) -> None:
    """A million points take a minute; fewer are thinned out the same."""
    (tmp_path / "theirs").mkdir()
    history = [
        {"loss": 2.0 / step, "learning_rate": 0.1, "epoch": step / 10, "step": step} for step in range(1, 20)
    ]
    history += [
        {"eval_loss": 0.5, "eval_runtime": 1.0, "epoch": 1.9, "step": 19},
        {"loss": float("nan"), "step": 20},
    ]
    state = {"max_steps": 20, "num_train_epochs": 2, "global_step": 20, "log_history": history}
    (tmp_path / "theirs" / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    (tmp_path / "long").mkdir()
    with (tmp_path / "long" / NAME).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"kind": "begin", "time": 0.0, "step": 0, "max_steps": 30000}) + "\n")
        for step in range(1, 30001):
            loss = 1e6 if step == 12345 else 1.0 / step
            row = {
                "kind": "log",
                "time": step / 10,
                "step": step,
                "logs": {"loss": loss, "learning_rate": 0.1},
            }
            file.write(json.dumps(row) + "\n")
    assert command(tmp_path / "theirs", tmp_path / "long", "-o", tmp_path / "page.html")[0] == 0
    shown(chromium, tmp_path / "page.html", 2)
    text = chromium.get("document.body.innerText")
    assert "Made of trainer_state.json alone" in text
    assert "as saved" in text
    assert "not ended" in text
    assert "Of 30,000 points of a line about" in text
    assert chromium.get("Math.max(...document.querySelector('.plot').data[1].y)") == 1e6
    assert chromium.get("document.querySelector('.plot').data[1].y.length") <= LIMIT + 4


@needs_browser
def test_a_run_is_followed(chromium: browser.Browser, tmp_path: Path) -> None:
    record = tmp_path / "run" / NAME
    record.parent.mkdir()

    def add(row: dict[str, Any]) -> None:
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    add({"kind": "begin", "time": 1.0, "step": 0, "max_steps": 9})
    add({"kind": "log", "time": 2.0, "step": 1, "logs": {"loss": 0.75, "learning_rate": 0.1}})
    words = [sys.executable, "-m", "drivetrain", "report", str(record.parent), "--serve", "--port", "0"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().split()[0]
        chromium.open(address)
        chromium.wait("document.querySelector('.tile .value').innerText === '0.7500'")
        add({"kind": "log", "time": 3.0, "step": 2, "logs": {"loss": 0.5, "learning_rate": 0.1}})
        chromium.wait("document.querySelector('.tile .value').innerText === '0.5000'")
        add({"kind": "end", "time": 4.0, "step": 2, "stopped": "enough"})
        chromium.wait("document.getElementById('told').innerText.includes('Stopped early: enough')")
        assert chromium.errors == []
        assert {found[: len(address)] for found in chromium.requests} == {address}
        chromium.open("about:blank")
        port = int(address.rstrip("/").rpartition(":")[2])
        for host, path, status in (("evil.example", "/", 403), (f"localhost:{port}", "/secrets", 404)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", path, headers={"Host": host})
            assert connection.getresponse().status == status
            connection.close()
        taken = command(record.parent, "--serve", "--port", port)
        assert taken[0] == 2
        assert f"Port {port} of this machine cannot be used" in taken[1]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        process.stdout.close()


def test_picture_and_table(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*runs, "--png", "--csv")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.png"]
    picture = (tmp_path / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") > 1000  # its width
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    told = [(found.name, row) for found in names_of([read(path) for path in runs]) for row in found.run.logs]
    assert len(table) == len(told)
    for line, (name, row) in zip(table, told, strict=True):
        assert (line["run"], int(line["step"])) == (name, row["step"])
        for key, value in row["logs"].items():
            assert float(line[key]) == value


def test_one_sentence_says_what_is_wrong(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for words, sentence in (
        ((tmp_path / "none",), "There is no run to report in"),
        ((runs[0], "-o", tmp_path / "page.pdf"), "Unknown report 'pdf'. Installed: csv, html, png."),
        ((runs[0], "-o", tmp_path / "file" / "page.html"), "cannot be written"),
        ((runs[0], "--serve", "--port", "99999"), "Invalid value for '--port'"),
        ((runs[0], "--serve", "--png"), "--serve shows the page and writes no file"),
    ):
        code, said = command(*words)
        assert code == 2
        assert sentence in " ".join(said.split()), said
    lacking = dataclasses.replace(HTML, requires=("drivetrain-lacks-this>=1",))
    monkeypatch.setattr(discover, "load_info", lambda kind, name: lacking)
    code, said = command(runs[0])
    assert code == 2
    assert (
        "needs drivetrain-lacks-this>=1, which is not installed. Run: pip install 'drivetrain[report]'"
        in " ".join(said.split())
    )


def test_names_tell_runs_apart() -> None:
    def named(*paths: str) -> list[str]:
        return [found.name for found in names_of([Recorded(Path("/runs") / path / NAME) for path in paths])]

    assert named("a/one", "a/two") == ["one", "two"]
    assert named("a/run", "b/run") == ["a/run", "b/run"]
    assert named("a", "a") == ["a #1", "a #2"]


@pytest.mark.parametrize("count", [0, 1, LIMIT, LIMIT + 1, 12345])
def test_thinning_keeps_what_stands_out(count: int) -> None:
    generator = random.Random(count)
    values: list[float | None] = [generator.gauss(0, 1) for _ in range(count)]
    for place in range(0, count, 997):
        values[place] = None
    kept = thinned(values)
    assert kept == sorted(set(kept))
    assert len(kept) <= max(LIMIT + 4 + count // 997, 1)
    if count <= LIMIT:
        assert len(kept) == count
    else:
        told = [(value, place) for place, value in enumerate(values) if value is not None]
        assert {0, count - 1, min(told)[1], max(told)[1]} <= set(kept)
        assert any(values[place] is None for place in kept[1:])  # gaps stay gaps


def test_parts_of_a_resumed_run_are_added_up(tmp_path: Path) -> None:
    lines = [
        {"kind": "begin", "time": 0.0, "step": 0},
        {
            "kind": "log",
            "time": 5.0,
            "step": 4,
            "logs": {"loss": 1.0},
            "seconds": {"data": 2.0, "forward": 3.0},
        },
        {"kind": "begin", "time": 100.0, "step": 2},
        {"kind": "log", "time": 101.0, "step": 4, "logs": {"loss": 0.5}},
        {"kind": "end", "time": 107.0, "step": 4, "stopped": None, "seconds": {"data": 6.0, "forward": 1.0}},
    ]
    (tmp_path / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = content(names_of([read(tmp_path)]))["runs"][0]
    assert found["parts"] == {"data": 8.0, "forward": 4.0}
    assert found["summary"]["seconds"] == 12.0  # not the hours between
    assert (found["lost"], found["resumed"]) == (1, [2])
    assert found["hint"] == "Data loading is the bottleneck: updates waited for it 67 % of their time."
    Html().write(names_of([read(tmp_path)]), tmp_path / "page.html")
    assert "@@" not in (tmp_path / "page.html").read_text(encoding="utf-8").partition("<script type")[0]
