"""The display on a real pseudo-terminal, read through a terminal emulator."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.terminal import Terminal

from drivetrain import ProgressCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from drivetrain_plugins.callback.bar import Bar


@pytest.fixture(autouse=True)
def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "LC_ALL", "LC_CTYPE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("LANG", "en_US.UTF-8")


@contextmanager
def output(columns: int, rows: int = 40) -> Iterator[Terminal]:
    """A terminal that is standard output and standard error."""
    terminal = Terminal(columns, rows)
    streams = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = terminal.stream
    try:
        yield terminal
    finally:
        sys.stdout, sys.stderr = streams
        terminal.close()


@contextmanager
def shown(
    columns: int, rows: int = 40, step: int = 1204, max_steps: int = 5000, **more: Any
) -> Iterator[tuple[Terminal, Bar]]:
    """A display of a run that stands at a step."""
    with output(columns, rows) as terminal:
        bar = Bar(terminal.stream)
        history = [{"loss": 2.5 * 0.9**at, "step": 20 * at} for at in range(1, 30)]
        state = TrainerState(
            epoch=0.72, global_step=step, max_steps=max_steps, num_train_epochs=3, eval_steps=500, save_steps=500,
            log_history=history, **more,
        )  # fmt: skip
        args = TrainingArguments(
            "out", use_cpu=True, evaluation_strategy="steps", metric_for_best_model="f1", report_to="none"
        )
        bar.start()
        try:
            bar.standing.train(args, state, None, rows_per_step=32)
            yield terminal, bar
        finally:
            bar.stop()


def tell(bar: Bar) -> None:
    """All that there is to tell."""
    bar.standing.log(
        {"loss": 0.4312, "learning_rate": 4e-5}, {"grad_norm": 0.5213, "tokens_per_second": 52_100.0}
    )
    bar.standing.state.global_step += 4
    time.sleep(0.02)
    bar.standing.evaluated({"eval_loss": 0.5, "eval_f1": 0.81}, 1000)
    bar.standing.evaluated({"eval_loss": 0.4, "eval_f1": 0.79}, 1200)
    bar.standing.saved(1200)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_everything_is_there_at_any_width(columns: int) -> None:
    with shown(columns) as (terminal, bar):
        tell(bar)
        bar.standing.predict("Evaluation", 40)
        bar.standing.predicted = 12
        # Some drawings on, it stands where it stood.
        text = terminal.wait_for(
            lambda text: "12/40" in text and "rows/s" in text and terminal.written.count(b"\x1b[?25l") > 5
        )
        lines = text.split("\n")
        assert lines[0] == "", "the cursor rests on an empty line"
        assert lines[1].startswith("Training   ━")
        assert re.search(r"━ 1,208/5,000  24% .*~?[\d:]+ left$", lines[1])
        assert lines[-1].startswith("Evaluation ━")
        assert re.search(r"━ +12/40 +30% ", lines[-1])
        below = " ".join(lines[2:-1])
        assert re.search(r"loss 0\.4312 +[▁▂▃▄▅▆▇█]+ +lr 4\.00e-05  grad norm 0\.5213", below)
        assert "epoch 0.72/3" in text
        assert re.search(r"[\d,]+ rows/s +52,100 tokens/s +host [\d.]+ [MG]iB", below)
        assert re.search(r"checkpoint 1,200, 0:\d\d ago +eval_f1 0\.7900 \(best 0\.8100 at 1,000\)", below)
        assert len(lines) == {60: 7, 80: 6, 200: 5}[columns]
        # The bars end in the same column, and nothing reaches the last one.
        assert len({line.rindex("━") for line in (lines[1], lines[-1])}) == 1
        assert max(map(len, lines)) < columns
        assert not terminal.screen.cursor.hidden
    left = terminal.text().split("\n")
    assert ("epoch 0.72/3" in left[1]) == (columns == 200)
    assert re.search(r"\d:\d\d in all$", left[1])
    assert left[-1].endswith("eval_f1 0.7900 (best 0.8100 at 1,000)")


def test_widths_do_not_jump_and_what_stands_stays_where_it_is() -> None:
    with shown(100) as (terminal, bar):
        tell(bar)
        before = terminal.wait_for(lambda text: "ago" in text).split("\n")
        bar.standing.log({"loss": 0.4, "learning_rate": 1e-4}, {"grad_norm": 0.5, "tokens_per_second": 1.0})
        bar.standing.predict("Prediction", None)
        bar.standing.predicted = 3
        after = terminal.wait_for(lambda text: "Prediction" in text and "0.4000" in text).split("\n")
        assert len(after) == len(before) + 1
        for name in ("lr", "grad norm", "tokens/s", "host", "eval_f1"):
            assert [line.find(name) for line in before] == [line.find(name) for line in after[:-1]], name


def test_a_window_made_narrower_and_wider_leaves_one_display_and_whole_rows() -> None:
    with shown(200, rows=30) as (terminal, bar):
        tell(bar)
        for at, columns in enumerate((120, 60, 90, 46, 160)):
            assert bar.row({"loss": 1.5 - at, "epoch": 0.1}, at, 5000)
            terminal.wait_for(lambda text, at=at: f"step    {at}/5000" in text)
            terminal.resize(columns, 30)
            text = terminal.wait_for(
                lambda text, columns=columns: (
                    max(map(len, text.split("\n")[-3:])) >= min(columns, 100) - 30
                    and max(map(len, text.split("\n"))) < columns
                    and "ago" in text
                )
            )
            assert text.count("Training") == 1, text
            assert text.count("checkpoint") == 1, text
        rows = [line for line in text.split("\n") if line.startswith("step")]
        assert len(rows) == 5
        assert all(re.fullmatch(r"step    \d/5000  epoch 0\.10  loss -?\d\.\d+", row) for row in rows)


def test_a_terminal_of_few_rows() -> None:
    with shown(60, rows=3) as (terminal, bar):
        tell(bar)
        bar.row({"loss": 1.5}, 1, 5000)
        terminal.wait_for(
            lambda text: re.search(r"step    1/5000  loss 1\.5000\n\nTraining .*\nloss 0", text)
        )
        assert [line.split()[:1] for line in terminal.screen.display] == [[], ["Training"], ["loss"]]


def test_wide_characters() -> None:
    with shown(56) as (terminal, bar):
        bar.row({"eval_准确率": 0.5, "eval_損失の平均": 0.25, "eval_정확도와_재현율": 0.125}, 1, 5000)
        text = terminal.wait_for(lambda text: "0.1250" in text)
        # The emulator gives a wide character two columns, the second of them empty.
        first, second = text.split("\n")[:2]
        assert first == "step    1/5000  eval_准确率 0.5000"
        assert second == "    eval_損失の平均 0.2500  eval_정확도와_재현율 0.1250"


@pytest.mark.parametrize(
    "setting", [("LANG", "C"), ("LC_ALL", "POSIX"), ("NO_COLOR", "1"), ("FORCE_COLOR", "1")]
)
def test_without_unicode_and_without_colour(
    monkeypatch: pytest.MonkeyPatch, setting: tuple[str, str]
) -> None:
    monkeypatch.setenv(*setting)
    if setting[0] == "LANG":
        monkeypatch.setenv("LC_CTYPE", "C.UTF-8")  # as Python does by itself
    with shown(80) as (terminal, bar):
        tell(bar)
        terminal.wait_for(lambda text: "loss 0.4312" in text and "ago" in text)
    coloured = re.search(rb"\x1b\[[0-9;]*3[0-9]", terminal.written) is not None
    assert coloured == (setting[0] != "NO_COLOR")
    if setting[0] in ("LANG", "LC_ALL"):
        assert terminal.written.isascii()
        assert re.search(r"^Training   ##+\.\.+ 1,208/5,000", terminal.text(), re.M)
    else:
        assert "━" in terminal.text()


def test_what_is_printed_comes_out_above_whole_and_in_its_order() -> None:
    log = logging.getLogger("a.script")
    with output(70) as terminal:
        handler = logging.StreamHandler(terminal.stream)  # made before the display, as basicConfig does
        log.addHandler(handler)
        bar = Bar(terminal.stream)
        bar.start()
        try:
            state = TrainerState(global_step=7, max_steps=10, num_train_epochs=1, epoch=0.7)
            args = TrainingArguments("out", use_cpu=True, report_to="none")
            bar.standing.train(args, state, None, rows_per_step=8)
            terminal.wait_for(lambda text: "Training" in text)
            print("a line", "of", 3, "words")
            log.warning("a warning of the log\nof two lines")
            bar.row({"loss": 1.0}, 7, 10)
            print("after the row")
            long = "word " * 40
            print(long + "end")
            print("\x1b[31mred\x1b[0m and \x1b[5Ano move")
            print("1 of 3\r2 of 3\r3 of 3")
            sys.stdout.write("begun ")
            sys.stdout.flush()
            terminal.wait_for(lambda text: "begun" in text)
            sys.stdout.write("and ended\n")
            sys.stderr.writelines(["by ", "parts\n"])
            late = logging.StreamHandler()  # made meanwhile
            sys.stdout.write("no newline")
        finally:
            bar.stop()
        assert sys.stdout is sys.stderr is handler.stream is terminal.stream
        log.warning("after the display")
        late.emit(logging.makeLogRecord({"msg": "and by the other"}))
        log.removeHandler(handler)
    text = terminal.text()
    assert text.startswith("a line of 3 words\na warning of the log\nof two lines\n")
    lines = text.split("\n")
    at = lines.index("step  7/10  loss 1.0000")
    folded = (long + "end").ljust(210)
    assert lines[at + 1 :] == [
        "after the row",
        *(folded[begin : begin + 70].rstrip() for begin in range(0, 210, 70)),
        "red and no move",
        "3 of 3",
        "begun and ended",
        "by parts",
        "no newline",
        "",
        *(line for line in lines if line.startswith(("Training", "host"))),
        "after the display",
        "and by the other",
    ]


def test_what_another_program_writes_begins_on_a_line_of_its_own_and_stays() -> None:
    with shown(80) as (terminal, bar):
        tell(bar)
        terminal.wait_for(lambda text: "ago" in text)
        os.write(terminal.writer, b"[W1] from a C library\n")
        terminal.wait_for(
            lambda text: text.split("\n")[-3:-1] and text.count("Training") == 1 and "[W1]" in text
        )
        bar.row({"loss": 1.0}, 7, 10)
        text = terminal.wait_for(lambda text: "step  7/10" in text)
        assert text.split("\n")[:2] == ["[W1] from a C library", "step  7/10  loss 1.0000"]
        assert text.count("Training") == 1


def test_the_data_and_the_run_without_an_end_and_a_loss_that_is_none() -> None:
    with shown(80, max_steps=sys.maxsize) as (terminal, bar):
        bar.standing.state.num_train_epochs = sys.maxsize
        bar.standing.state.global_step += 1
        bar.standing.log({"loss": float("nan")}, {"grad_norm": float("inf")})
        bar.standing.predict("Evaluation", None)
        bar.standing.predicted = 1_000_000
        text = terminal.wait_for(lambda text: "NaN" in text and "1,000,000" in text)
        assert max(map(len, text.split("\n"))) < 80
        assert re.search(r"loss NaN +[▁▂▃▄▅▆▇█]+! ", text)
        assert "grad norm inf" in text
        assert re.search(r"epoch 0\.72 ", text)
        assert re.search(r"^Training   ━+ +1,205 +\d:\d\d so far$", text, re.M)
        assert re.search(r"^Evaluation ━+ +1,000,000 ", text, re.M)


def test_a_worker_that_is_forked_while_the_display_draws_is_not_held_up() -> None:
    with shown(80) as (terminal, bar):
        held, free = threading.Event(), threading.Event()

        def draws() -> None:  # as the display's thread does
            with bar._region.lock:
                held.set()
                free.wait()

        threading.Thread(target=draws, daemon=True).start()
        held.wait()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
                child = os.fork()
            if child == 0:
                try:
                    print("from a worker", flush=True)
                finally:
                    os._exit(0)
        finally:
            free.set()
        end = time.monotonic() + 60
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            assert time.monotonic() < end, "the worker waits for a lock that nobody will give back"
            time.sleep(0.02)
        assert "from a worker" in terminal.wait_for(lambda text: "from a worker" in text)


def test_a_terminal_that_has_gone_is_no_reason_to_end_a_run(tmp_path: Path) -> None:
    with (tmp_path / "full").open("w") as file:
        bar = Bar(file)
        bar.start()
        bar.standing.predict("Prediction", 3)
        file.close()  # writing to it fails
        bar.row({"loss": 1.0}, 1, 2)
        bar._region.draw()
        bar.stop()


def test_while_somebody_types_into_a_debugger_the_terminal_is_theirs() -> None:
    with shown(80) as (terminal, _):
        terminal.wait_for(lambda text: "Training" in text)
        names = {"__name__": "pdb", "wait": terminal.wait_for, "out": sys.stdout}
        exec(
            compile(
                "def interaction():\n"
                "    wait(lambda text: 'Training' not in text)\n"
                "    out.write('(Pdb) ')\n"
                "    out.flush()\n"
                "    return wait(lambda text: text.endswith('(Pdb) '.rstrip()))\n",
                "pdb.py",
                "exec",
            ),
            names,
        )
        assert "Training" not in names["interaction"]()
        terminal.wait_for(lambda text: "Training" in text)


def test_memory_of_the_device_and_of_the_host() -> None:
    from drivetrain_plugins.callback.memory import device_memory, host_memory, size

    assert device_memory(torch.device("cpu")) is None
    assert device_memory(torch.device("meta")) is None
    found = host_memory()
    assert found is not None
    assert found > 50 * 2**20
    more = bytearray(os.urandom(2**20)) * 64
    grown = host_memory()
    assert grown is not None
    assert grown - found > 32 * 2**20
    assert len(more)
    assert [size(2**20 * 812), size(2**30 * 2.125)] == ["812 MiB", "2.1 GiB"]


def test_rows_go_to_a_file_while_the_display_stays_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with output(80) as terminal, (tmp_path / "rows").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        trainer(tmp_path, Net()).train()
        monkeypatch.undo()
    kept = (tmp_path / "rows").read_text()
    assert "\x1b" not in kept
    shown = [line.split("  epoch")[0] for line in kept.splitlines()]
    assert shown[:3] == ["step 2/4", "step 4/4", "step 4/4"]
    assert shown[3].startswith("Time: ")  # where it went
    assert re.search(r"^Training   ━+ 4/4 100% ", terminal.text(), re.M)
    assert "step 2/4" not in terminal.text()


class Net(torch.nn.Module):
    """A model that can be told to fail."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.calls, self.fails_at = 0, fails_at

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("the model broke")
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(folder: Path, model: torch.nn.Module, **more: Any) -> Trainer:
    """A trainer of four steps."""
    args = TrainingArguments(
        str(folder), num_train_epochs=1, logging_steps=2, save_strategy="no", report_to="none", use_cpu=True, **more
    )  # fmt: skip
    rows: Any = [{"x": torch.ones(4) * (at % 3), "labels": at % 2} for at in range(32)]
    return Trainer(model, args, train_dataset=rows, eval_dataset=rows)


def test_an_error_gives_the_terminal_back(tmp_path: Path) -> None:
    with output(80) as terminal:
        # In a step, in an evaluation by itself, and in one after an epoch.
        for times, (what, fails_at, strategy) in enumerate(
            (("train", 3, "no"), ("evaluate", 3, "no"), ("train", 6, "epoch")), start=1
        ):
            made = trainer(tmp_path, Net(fails_at), evaluation_strategy=strategy)
            with pytest.raises(RuntimeError, match="the model broke"):
                getattr(made, what)()
            assert sys.stdout is terminal.stream
            assert Bar.active is None
            print("it broke", flush=True)
            terminal.wait_for(lambda text, times=times: text.count("it broke") == times)
        text = terminal.text()
        assert not terminal.screen.cursor.hidden
        assert "Evaluation" not in text
    stopped = (
        r"\nTraining   [━╸]+ 2/4  50%   \d:\d\d in all"
        r"\nloss 0\.\d{4}  lr 2\.50e-05  grad norm \d\.\d{4}"
        r"\nepoch 0\.50/1  [\d,.]+ rows/s  host [\d.]+ [MG]iB\n"
    )
    finished = r"\nTraining   ━+ 4/4 100%   \d:\d\d in all\nloss .*\nepoch 1.00/1 .*\n"
    row = r"step \d/4 .*\n"
    assert re.fullmatch(f"{row}{stopped}it broke\nit broke\n{row}{row}{finished}it broke", text), text


def test_a_trainer_within_a_run_leaves_the_display_to_the_first(tmp_path: Path) -> None:
    displays: list[Any] = []

    class Looks(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            displays.append(progress.display)

    inner = trainer(tmp_path / "inner", Net())
    progress = next(
        found for found in inner.callback_handler.callbacks if isinstance(found, ProgressCallback)
    )
    inner.add_callback(Looks())

    class Asks(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                inner.evaluate()

    with output(80) as terminal:
        made = trainer(tmp_path, Net())
        made.add_callback(Asks())
        made.train()
        text = terminal.wait_for(lambda text: "in all" in text)
    rows = [line for line in text.split("\n") if "loss" in line]
    assert [row.split()[0] for row in rows] == ["step", "eval_loss", "step", "step", "loss"], text
    assert text.count("Training   ━") == 1
    assert displays == [None] * 4
