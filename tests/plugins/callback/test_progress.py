"""The bar on a real terminal, and the lines without one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

SCRIPT = """
import sys, time, torch
from drivetrain import Trainer, TrainingArguments, TrainerCallback

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.calls = 0
    def forward(self, x, labels=None):
        time.sleep(float(sys.argv[3]))
        self.calls += 1
        if len(sys.argv) > 4 and sys.argv[4] == "fail" and self.calls == 8:
            raise RuntimeError("the model broke")
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

class Speaks(TrainerCallback):
    def on_evaluate(self, args, state, control, **kwargs):
        print("a script speaks")

rows = [{"x": torch.ones(4) * (i % 3), "labels": i % 2} for i in range(96)]
args = TrainingArguments(
    sys.argv[2], num_train_epochs=1, logging_steps=4, evaluation_strategy="steps", eval_steps=6,
    save_strategy="no", report_to="none", use_cpu=True,
)
trainer = Trainer(Net(), args, train_dataset=rows, eval_dataset=rows, callbacks=[Speaks])
if sys.argv[1] == "train":
    trainer.train()
elif sys.argv[1] == "evaluate":
    trainer.evaluate()
elif sys.argv[1] == "predict":
    trainer.predict(rows)
print("the end")
"""


def command(folder: Path, *arguments: str) -> list[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return [sys.executable, str(script), *arguments]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**kept, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", **more}


def in_terminal(
    command: list[str], columns: int, stdout: int | None = None, env: dict[str, str] | None = None
) -> tuple[str, int]:
    """What a program writes to a terminal of so many columns, and its exit status."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=writer,
        stdout=writer if stdout is None else stdout,
        stderr=writer,
        env=env or environment(),
        close_fds=True,
    )
    os.close(writer)
    written = b""
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
    os.close(reader)
    return written.decode(), process.wait(timeout=60)


def screen(written: str, columns: int) -> list[str]:
    """What is left on the terminal: a small emulation of the codes that the bar uses."""
    lines = [""]
    row = column = 0
    for code, text in re.findall(r"\x1b\[([0-9;?]*[A-Za-z])|([^\x1b])", written):
        if code.endswith("A"):
            row = max(0, row - int(code[:-1] or 1))
        elif code == "2K":
            lines[row] = ""
        elif text == "\r":
            column = 0
        elif text == "\n":
            row += 1
            while len(lines) <= row:
                lines.append("")
        elif text:
            if column == columns:
                row, column = row + 1, 0
                while len(lines) <= row:
                    lines.append("")
            lines[row] = lines[row].ljust(column)[:column] + text + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("columns", [60, 200])
def test_training_on_a_terminal(tmp_path: Path, columns: int) -> None:
    written, status = in_terminal(command(tmp_path, "train", str(tmp_path / "out"), "0.02"), columns)
    assert status == 0, written
    left = screen(written, columns)
    text = "\n".join(left)
    assert max(map(len, left)) <= columns
    # Rows stand above the bar, each whole, in their order.
    starts = [line for line in left if line.startswith("step")]
    assert [line.split("/")[0].split()[1] for line in starts] == ["4", "6", "8", "12", "12", "12"]
    assert starts[0].startswith("step  4/12  epoch 0.33  loss ")
    assert "eval_loss" in text
    assert re.search(r"step 12/12.* train_loss \d", text)
    assert text.count("a script speaks") == 2
    # One bar is left, full, with all that it shows; the evaluation's is gone.
    bars = [line for line in left if "━" in line]
    assert len(bars) == 1
    assert bars[0].startswith("Training")
    assert "12/12" in bars[0]
    assert re.search(r"\d:\d\d in all", bars[0])
    shown = bars[0] if columns == 200 else left[left.index(bars[0]) + 1]
    assert re.search(r"loss \d\.\d+  lr \d\.\d+e[+-]\d+  [\d,.]+ rows/s", shown)
    assert left[-2:] == ["the end", ""] or left[-1] == "the end"
    # While it ran there was an evaluation's bar under it, and the time left.
    assert "Evaluation" in written
    assert re.search(r"\d:\d\d left", written)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is hidden"


@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_an_error_gives_the_terminal_back_before_it_is_shown(tmp_path: Path, what: str) -> None:
    written, status = in_terminal(command(tmp_path, what, str(tmp_path / "out"), "0.02", "fail"), 100)
    assert status == 1
    assert "the model broke" in written
    shown = written.rindex("\x1b[?25h")
    assert written.rindex("\x1b[?25l") < shown < written.rindex("Traceback")


@pytest.mark.parametrize("what", ["evaluate", "predict"])
def test_evaluation_by_itself_on_a_terminal(tmp_path: Path, what: str) -> None:
    written, status = in_terminal(command(tmp_path, what, str(tmp_path / "out"), "0.08"), 120)
    assert status == 0, written
    name, prefix = {"evaluate": ("Evaluation", "eval"), "predict": ("Prediction", "test")}[what]
    assert re.search(rf"{name} .*━", written)
    assert re.search(r"\d+/12", written)
    left = screen(written, 120)
    assert not any("━" in line for line in left), "the bar is left behind"
    assert any(f"{prefix}_loss" in line for line in left)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_rows_go_to_a_file_while_the_bar_stays_on_the_terminal(tmp_path: Path) -> None:
    with (tmp_path / "stdout").open("wb") as file:
        written, status = in_terminal(
            command(tmp_path, "train", str(tmp_path / "out"), "0.01"), 100, stdout=file.fileno()
        )
    assert status == 0, written
    kept = (tmp_path / "stdout").read_text()
    assert "\x1b" not in kept
    assert kept.startswith("step  4/12  epoch 0.33  loss ")
    assert "a script speaks\n" in kept
    assert kept.endswith("the end\n")
    assert "━" in written
    assert "eval_loss" not in written


@pytest.mark.parametrize("terminal", [False, True])
def test_plain_lines_where_a_bar_cannot_move(tmp_path: Path, terminal: bool) -> None:
    asked = command(tmp_path, "train", str(tmp_path / "out"), "0")
    if terminal:
        written, status = in_terminal(asked, 80, env=environment(TERM="dumb"))
        written = written.replace("\r\n", "\n")
    else:
        done = subprocess.run(asked, capture_output=True, text=True, env=environment(), check=False)
        written, status = done.stdout, done.returncode
        assert done.stderr == ""
    assert status == 0, written
    assert "\x1b" not in written
    assert "\r" not in written
    assert "━" not in written
    lines = [line for line in written.splitlines() if line.startswith("step")]
    assert len(lines) == 6
    assert re.fullmatch(
        r"step  4/12  epoch 0\.33  loss \d\.\d+  lr \d\.\d+e-05  [\d,.]+ rows/s  \d+:\d\d left", lines[0]
    )
    assert re.fullmatch(r"step  6/12  epoch 0\.50  eval_loss \d\.\d+  in [\d.]+ s  [\d,.]+ rows/s", lines[1])


def test_what_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from drivetrain_plugins.callback.progress import is_terminal

    class Notebook:
        """The output of a notebook: a stream of its own that writes to a page."""

        def write(self, text: str) -> int:
            return len(text)

        def isatty(self) -> bool:
            return False

    closed = io.StringIO()
    closed.close()
    with (tmp_path / "file").open("w") as file:
        for stream in (None, closed, file, Notebook(), object()):
            assert not is_terminal(stream)
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        assert is_terminal(terminal)
        monkeypatch.setenv("TERM", "dumb")
        assert not is_terminal(terminal)
    os.close(reader)


def test_a_step_pays_nothing_for_the_bar() -> None:
    from drivetrain.callbacks import TrainerCallback
    from drivetrain_plugins.callback.progress import ProgressCallback

    assert issubclass(ProgressCallback, TrainerCallback)
    for event in ("on_step_begin", "on_step_end", "on_substep_end"):
        assert event not in vars(ProgressCallback)


def test_the_documented_names_lead_to_the_plugins() -> None:
    import drivetrain
    from drivetrain_plugins.callback.printer import PrinterCallback
    from drivetrain_plugins.callback.progress import ProgressCallback

    assert drivetrain.ProgressCallback is ProgressCallback
    assert drivetrain.PrinterCallback is PrinterCallback


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
