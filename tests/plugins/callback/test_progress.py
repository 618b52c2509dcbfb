"""Whole runs on a real terminal, and the lines without one."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.terminal import LIMIT, Terminal

SCRIPT = """
import logging, sys, time, warnings
import torch
from drivetrain import Trainer, TrainingArguments, TrainerCallback

logging.basicConfig(format="logged: %(message)s")

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.calls = 0
    def forward(self, x, labels=None):
        time.sleep(float(sys.argv[3]))
        self.calls += 1
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

class Speaks(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5 and state.is_world_process_zero:
            print("a script", "speaks")
            warnings.warn("a script warns")
            logging.warning("a script logs")

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 96
    def __getitem__(self, at):
        if "workers" in sys.argv and at == 11:
            print("a worker speaks", flush=True)
        return {"x": torch.ones(4) * (at % 3), "labels": at % 2}

args = TrainingArguments(
    sys.argv[2], num_train_epochs=1, logging_steps=4, evaluation_strategy="steps", eval_steps=6,
    save_strategy="steps" if "save" in sys.argv else "no", save_steps=6 if "save" in sys.argv else 500, report_to="none", use_cpu=True,
    dataloader_num_workers=1 if "workers" in sys.argv else 0, per_device_train_batch_size=4 if "ranks" in sys.argv else 8,
)
trainer = Trainer(Net(), args, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[Speaks])
for what in sys.argv[1].split(","):
    if what == "train":
        trainer.train()
    elif what == "evaluate":
        trainer.evaluate()
    elif what == "predict":
        trainer.predict(Rows())
print("the end")
"""


def command(folder: Path, *arguments: str) -> list[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return [sys.executable, str(script), *arguments]


def environment(**more: str) -> dict[str, str]:
    dropped = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "LC_ALL", "LC_CTYPE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "LANG": "en_US.UTF-8", **more}


# Begins the lines that say where the time went, at the end of training.
TIME = ("Time: ", "Spent on: ", "Plugins: ")


def test_a_run_on_a_terminal_that_is_resized(tmp_path: Path) -> None:
    terminal = Terminal(200, 60)
    out = str(tmp_path / "out")
    process = terminal.run(
        command(tmp_path, "train,evaluate,predict", out, "0.05", "save", "workers"), environment()
    )
    wide = terminal.wait_for(lambda text: "Evaluation" in text and "loss" in text)
    bars = [line for line in wide.split("\n") if "━" in line]
    assert [bar.split()[0] for bar in bars] == ["Training", "Evaluation"]
    assert re.search(r"/12 +\d+% ", bars[1])
    terminal.resize(80, 60)
    terminal.wait_for(
        lambda text: re.search(r"^Evaluation .*batches/s", text, re.M) is None and "12/12" in text
    )
    terminal.wait_for(lambda text: text.count("Training") == 1 and "in all" in text and "Evaluation" in text)
    terminal.wait_for(lambda text: "Prediction" in text)
    assert terminal.end(process) == 0
    left = terminal.lines()
    text = terminal.text()
    assert not terminal.screen.cursor.hidden

    # Rows stand above the bar, each whole, in their order.
    starts = [line for line in left if line.startswith("step")]
    assert [line.split("/")[0].split()[1] for line in starts] == ["4", "6", "8", "12", "12", "12"], text
    assert re.fullmatch(r"step  4/12  epoch 0\.33  loss \d\.\d{4}  lr 3\.33e-05", starts[0])
    assert "eval_loss" in starts[1]
    assert re.search(r"step 12/12  epoch 1\.00  train_loss \d", text)
    # What the script said is there once, unbroken.
    for said in ("a script speaks", '  warnings.warn("a script warns")', "logged: a script logs"):
        assert left.count(said) == 1, text
    assert "a worker speaks" in text
    # One bar is left, full, with all that it showed; those of evaluations are gone. What a worker writes by itself may
    # stand before the rest of a line.
    left = [line for line in left if not line.startswith("a worker speaks")]
    bars = [line for line in left if "━" in line]
    assert len(bars) == 1
    assert re.fullmatch(r"Training   ━+ 12/12 100% +\d:\d\d in all", bars[0])
    after = left[left.index(bars[0]) + 1 :]
    assert re.fullmatch(r"loss \d\.\d+ +[▁▂▃▄▅▆▇█]+ +lr \d\.\d+e[+-]\d+  grad norm \d\.\d+", after[0])
    # Figures that have grown a digit may need another line.
    rest = " ".join(" ".join(after[1:]).split())
    assert re.match(
        r"epoch 1\.00/1 [\d,.]+ rows/s host [\d.]+ [MG]iB checkpoint 12 eval_loss \d\.\d+ \(best", rest
    )
    # Then where the time went, which may take several lines, and what comes after training.
    said = [line for line in after[1:] if line.startswith(("epoch 1.00  eval_loss", "test_loss", "the end"))]
    assert [line.split()[0] for line in said] == ["epoch", "test_loss", "the"], text


def test_ctrl_c_gives_the_terminal_back(tmp_path: Path) -> None:
    terminal = Terminal(100, 60)
    process = terminal.run(command(tmp_path, "train", str(tmp_path / "out"), "0.1"), environment())
    terminal.wait_for(lambda text: "a script speaks" in text)
    terminal.press(b"\x03")
    status = terminal.end(process)
    text = terminal.text()
    assert status == -signal.SIGINT, text
    assert not terminal.screen.cursor.hidden
    assert terminal.screen.cursor.x == 0
    assert text.count("Training   ━") == 1, text
    assert text.index("Training   ━") < text.index("\nTraceback (most recent call last):\n")
    assert text.endswith("KeyboardInterrupt")


def test_rows_through_tee_are_whole_on_the_terminal_too(tmp_path: Path) -> None:
    terminal = Terminal(120, 60)
    words = " ".join(command(tmp_path, "train", str(tmp_path / "out"), "0.1"))
    process = terminal.run(["sh", "-c", f"{words} | tee {tmp_path}/kept"], environment())
    assert terminal.end(process) == 0
    kept = (tmp_path / "kept").read_text()
    assert "\x1b" not in kept
    assert "\r" not in kept
    left = terminal.lines()
    rows = [line for line in kept.splitlines() if not line.startswith(TIME)]
    assert len([row for row in rows if row.startswith("step")]) == 6
    assert [line for line in left if line in rows] == rows, terminal.text()


def test_plain_lines_in_a_pipe(tmp_path: Path) -> None:
    # `nohup` leaves a pipe a pipe; colours that are forced are for people, and there is none.
    done = subprocess.run(
        ["nohup", *command(tmp_path, "train,evaluate,predict", str(tmp_path / "out"), "0")],
        capture_output=True,
        text=True,
        env=environment(FORCE_COLOR="1", LANG="C"),
        timeout=LIMIT,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert re.fullmatch(r".*UserWarning: a script warns\n.*\nlogged: a script logs\n", done.stderr)
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if not line.startswith(TIME)]
    assert len(lines) == 10
    assert re.fullmatch(
        r"step  4/12  epoch 0\.33  loss \d\.\d+  lr \d\.\d+e-05  [\d,.]+ rows/s  \d+:\d\d left", lines[0]
    )
    assert lines[1] == "a script speaks"
    assert re.fullmatch(r"step  6/12  epoch 0\.50  eval_loss \d\.\d+  in [\d.]+ s  [\d,.]+ rows/s", lines[2])
    assert lines[7].startswith("epoch 1.00  eval_loss")
    assert lines[8].startswith("test_loss")
    assert lines[9] == "the end"


def test_of_several_ranks_one_speaks(tmp_path: Path) -> None:
    terminal = Terminal(100, 80)
    words = command(tmp_path, "train,predict", str(tmp_path / "out"), "0.05", "ranks")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = terminal.run([words[0], *launcher, *words[1:]], environment())
    assert terminal.end(process) == 0, terminal.text()
    left, text = terminal.lines(), terminal.text()
    starts = [line.split("  epoch")[0] for line in left if line.startswith("step")]
    assert starts == ["step  4/12", "step  6/12", "step  8/12", "step 12/12", "step 12/12", "step 12/12"], (
        text
    )
    assert text.count("Training   ━") == 1, text
    assert text.count("test_loss") == 1
    assert "Prediction " in terminal.written.decode()


def test_what_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from drivetrain_plugins.callback.progress import is_notebook, is_terminal

    closed = io.StringIO()
    closed.close()
    with (tmp_path / "file").open("w") as file:
        for stream in (None, closed, file, io.StringIO(), object()):
            assert not is_terminal(stream)
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        assert is_terminal(terminal)
        monkeypatch.setenv("TERM", "dumb")
        assert not is_terminal(terminal)
    os.close(reader)
    assert not is_notebook()


def test_a_step_pays_nothing_for_the_bar() -> None:
    from drivetrain.callbacks import TrainerCallback
    from drivetrain_plugins.callback.progress import ProgressCallback

    assert issubclass(ProgressCallback, TrainerCallback)
    for event in ("on_step_begin", "on_step_end", "on_substep_end"):
        assert event not in vars(ProgressCallback)


def test_the_documented_names_lead_to_the_plugins(tmp_path: Path) -> None:
    import drivetrain
    from drivetrain import Trainer, TrainingArguments
    from drivetrain_plugins.callback.printer import PrinterCallback
    from drivetrain_plugins.callback.progress import ProgressCallback

    assert drivetrain.ProgressCallback is ProgressCallback
    assert drivetrain.PrinterCallback is PrinterCallback

    import torch

    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    made = Trainer(torch.nn.Linear(1, 1), args)
    made.remove_callback(ProgressCallback)
    made.add_callback(PrinterCallback)
    assert made.callback_handler.callback_list.split("\n")[-1] == "PrinterCallback"
    assert "ProgressCallback" not in made.callback_handler.callback_list
    made.add_callback(ProgressCallback())
    assert isinstance(made.pop_callback(ProgressCallback), ProgressCallback)


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from drivetrain import TrainerControl, TrainerState, TrainingArguments
    from drivetrain_plugins.callback.progress import ProgressCallback

    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    state = TrainerState(max_steps=3, is_local_process_zero=False, is_world_process_zero=False)
    control = TrainerControl()
    callback = ProgressCallback()
    callback.on_train_begin(args, state, control)
    callback.on_log(args, state, control, logs={"loss": 1.0})
    callback.on_prediction_step(args, state, control, eval_dataloader=[1])
    callback.on_evaluate(args, state, control)
    callback.on_train_end(args, state, control)
    assert capsys.readouterr() == ("", "")


def test_a_line_that_cannot_be_printed_ends_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from drivetrain_plugins.callback.rows import say

    with (tmp_path / "file").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        say("eval_précision 0.5")
        assert (tmp_path / "file").read_text() == "eval_pr\\xe9cision 0.5\n"
    say("to a closed file")
    reader, writer = os.pipe()
    os.close(reader)
    broken = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", broken)
    say("to nobody")
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        broken.close()
