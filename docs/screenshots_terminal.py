"""Pictures of a run that goes on: on a terminal, wide and narrow, and in a notebook; light and dark.

The run is a real one: a small transformer that learns the letters of this documentation. The terminal is a real
pseudo-terminal, read by an emulator; the notebook is executed by a kernel, and headless
Chromium takes a picture of what its cell shows.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pyte
from support.terminal import Terminal

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LIMIT = 300  # seconds for a run

DATA = """
import torch
from pathlib import Path
from drivetrain import Trainer, TrainingArguments

text = "".join(path.read_text() for path in sorted(Path("{docs}").glob("*.md")))
letters = sorted(set(text))
ids = torch.tensor([letters.index(letter) for letter in text])
pieces = [{"input_ids": piece} for piece in ids[: len(ids) // 65 * 65].view(-1, 65)]
"""

MODEL = """
class Reader(torch.nn.Module):
    def __init__(self, width=96):
        super().__init__()
        self.embed = torch.nn.Embedding(len(letters), width)
        self.place = torch.nn.Embedding(64, width)
        layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, len(letters))

    def forward(self, input_ids):
        given, wanted = input_ids[:, :-1], input_ids[:, 1:]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(64)
        found = self.layers(self.embed(given) + self.place.weight, mask=mask, is_causal=True)
        return {"loss": torch.nn.functional.cross_entropy(self.head(found).transpose(1, 2), wanted)}
"""

RUN = """
args = TrainingArguments(
    "{out}", max_steps=600, per_device_train_batch_size=16, per_device_eval_batch_size=16,
    learning_rate=2e-3, lr_scheduler_type="cosine", logging_steps=25, evaluation_strategy="steps", eval_steps=100,
    save_steps=200, save_total_limit=1, include_tokens_per_second=True, report_to="none", use_cpu=True,
)
class Loss(Trainer):
    can_return_loss = True
trainer = Trainer(Reader(), args, train_dataset=pieces[1000:], eval_dataset=pieces[:1000])
trainer.can_return_loss = True
trainer.train()
"""

# Colours of a terminal, light and dark: the ground, and what is written on it.
THEMES = {
    "light": {"ground": "#ffffff", "edge": "#d0d7de", "default": "#24292f", "less": "#6e7781", "cyan": "#1b7c83",
              "green": "#1a7f37", "red": "#cf222e", "brightblack": "#c6cdd5"},
    "dark": {"ground": "#1e1f22", "edge": "#3c3f44", "default": "#d5d8dc", "less": "#8b929a", "cyan": "#56b6c2",
             "green": "#7fbf6a", "red": "#e06c75", "brightblack": "#4d5259"},
}  # fmt: skip
WIDTH, HEIGHT, MARGIN = 8.43, 19, 14  # of a letter of 14 pixels, of a line, and around them

Line = list[tuple[str, str, bool]]  # a text, its colour, and whether it is bold


class Screen(pyte.HistoryScreen):  # type: ignore[misc]
    """The emulator's screen, which also sees what is written less bright."""

    def select_graphic_rendition(self, *attributes: int, **more: Any) -> None:
        """Notes the attribute that the emulator leaves out."""
        super().select_graphic_rendition(*attributes, **more)
        if 2 in attributes:
            self.cursor.attrs = self.cursor.attrs._replace(italics=True)


def make(folder: Path) -> None:
    """Writes the pictures of the terminal and of the notebook into a folder."""
    with tempfile.TemporaryDirectory() as place:
        script = (DATA + MODEL + RUN).replace("{docs}", str(folder.parent)).replace("{out}", f"{place}/run")
        (Path(place) / "script.py").write_text(script)
        for name, lines in terminal(Path(place)).items():
            for theme, colours in THEMES.items():
                (folder / f"{name}-{theme}.svg").write_text(svg(lines, colours), encoding="utf-8")
        for theme, page in notebook(Path(place), folder.parent).items():
            photograph(page, folder / f"progress-notebook-{theme}.png", Path(place))


def terminal(place: Path) -> dict[str, list[Line]]:
    """The screen in the middle of a run: of a narrow terminal, then of a wide one, during an evaluation."""
    seen = Terminal(68, 16, screen=Screen)
    environment = {**os.environ, "TERM": "xterm-256color", "LANG": "en_US.UTF-8", "OMP_NUM_THREADS": "1"}
    process = seen.run([sys.executable, "script.py"], environment, cwd=place)
    shots = {}
    seen.wait_for(lambda text: re.search(r"Training .*24\d/600", text))
    shots["progress-narrow"] = rows(seen)
    seen.resize(118, 16)
    seen.wait_for(
        lambda text: re.search(r"Training .*400/600", text) and re.search(r"Evaluation .*[4-8]\d%", text)
    )
    shots["progress-wide"] = rows(seen)
    process.terminate()
    seen.end(process)
    return shots


def rows(seen: Terminal) -> list[Line]:
    """The screen's lines in their colours."""
    made: list[Line] = []
    for row in range(seen.screen.lines):
        line: Line = []
        for column in range(seen.screen.columns):
            cell = seen.screen.buffer[row][column]
            colour = "less" if cell.italics else cell.fg
            if line and line[-1][1:] == (colour, cell.bold):
                line[-1] = line[-1][0] + cell.data, colour, cell.bold
            else:
                line.append((cell.data, colour, cell.bold))
        made.append(line)
    while not "".join(text for text, _, _ in made[-1]).strip():
        made.pop()
    return made


def svg(lines: list[Line], colours: dict[str, str]) -> str:
    """The lines as a picture. Each text is told its width, whichever font there is."""
    columns = max(sum(len(text) for text, _, _ in line) for line in lines)
    width, height = columns * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        'font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="14">',
        f'<rect x=".5" y=".5" width="{width - 1:.0f}" height="{height - 1}" rx="8" '
        f'fill="{colours["ground"]}" stroke="{colours["edge"]}"/>',
    ]
    for row, line in enumerate(lines):
        column = 0
        for text, colour, bold in line:
            at = column + len(text) - len(text.lstrip())
            column += len(text)
            if text.strip():
                weight = ' font-weight="bold"' if bold else ""
                made.append(
                    f'<text x="{MARGIN + at * WIDTH:.1f}" y="{MARGIN + (row + 0.75) * HEIGHT:.1f}" '
                    f'textLength="{len(text.strip()) * WIDTH:.1f}" lengthAdjust="spacingAndGlyphs" '
                    f'xml:space="preserve" fill="{colours[colour]}"{weight}>{html.escape(text.strip())}</text>'
                )
    return "\n".join([*made, "</svg>", ""])


def notebook(place: Path, docs: Path) -> dict[str, str]:
    """A page with the cell that trains and what it shows in the middle of the run, for each theme."""
    run = RUN.replace("{out}", str(place / "notebook"))
    cells = [nbformat.v4.new_code_cell(code) for code in (DATA.replace("{docs}", str(docs)) + MODEL, run)]
    book = nbformat.v4.new_notebook(cells=cells)
    kept: list[str] = []

    class Client(nbclient.NotebookClient):  # type: ignore[misc]
        def process_message(self, message: Any, *more: Any) -> Any:
            data = message["content"].get("data", {})
            if message["msg_type"] == "update_display_data" and "Evaluation" in data["text/html"]:
                kept.append(data["text/html"])
            return super().process_message(message, *more)

    Client(book, timeout=LIMIT, resources={"metadata": {"path": str(place)}}).execute()
    shown = next(page for page in kept if "500/600" in page and re.search(r"Evaluation.*[4-8]\d%", page))
    code = "trainer = Trainer(Reader(), args, train_dataset=..., eval_dataset=...)\ntrainer.train()"
    pages = {}
    for theme, (ground, ink, cell) in {
        "light": ("#ffffff", "#24292f", "#f5f5f5"), "dark": ("#111111", "#e0e0e0", "#212121")
    }.items():  # fmt: skip
        pages[theme] = (
            f"<!doctype html><meta charset=utf-8><style>:root{{color-scheme:{theme}}}"
            f"body{{margin:16px;background:{ground};color:{ink};font:14px sans-serif}}"
            f"pre{{background:{cell};padding:8px 12px;margin:0 0 10px;font:13px 'DejaVu Sans Mono',monospace}}"
            f"</style><body><pre>{html.escape(code)}</pre>{shown}"
        )
    return pages


def photograph(page: str, target: Path, place: Path) -> None:
    """A picture of a page by headless Chromium."""
    browser = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("The picture of the notebook needs Chromium, which is not installed.")
    (place / "page.html").write_text(page, encoding="utf-8")
    command = [
        browser, "--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1.5",
        f"--user-data-dir={place}/profile", "--window-size=820,330", f"--screenshot={target}",
        f"file://{place}/page.html",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
