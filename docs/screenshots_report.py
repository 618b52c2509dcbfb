"""Makes the pictures of docs/report.md: `python docs/screenshots_report.py [FOLDER]`.

Trains three small models on scikit-learn's digits, makes their pages, and takes pictures of them in headless Chromium.
Needs `pip install 'drivetrain[examples,report,report-png]'` and Chromium.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from support.browser import Browser  # noqa: E402

from drivetrain import Trainer, TrainingArguments  # noqa: E402
from drivetrain.record import names_of, read  # noqa: E402
from drivetrain_plugins.report.html import Html  # noqa: E402

# Name, runs (0 is the first), width, height, and whether the reader prefers dark.
PICTURES = (
    ("report-one", (0,), 1280, 860, False),
    ("report-several", (0, 1, 2), 1280, 1180, True),
    ("report-phone", (0,), 390, 844, True),
)


class Digits(torch.nn.Module):
    """Ten classes from 64 pixels."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(width, 10)
        )

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and logits."""
        logits = self.layers(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Slow(torch.utils.data.Dataset[Any]):
    """Rows that are not there at once."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(0.0005)
        return self.rows[index]


def train(folder: Path, data: Any, rows: list[dict[str, Any]], **values: Any) -> None:
    """One run into a folder."""
    torch.manual_seed(0)
    args = TrainingArguments(
        str(folder),
        num_train_epochs=15,
        per_device_train_batch_size=16,
        logging_steps=5,
        evaluation_strategy="steps",
        eval_steps=100,
        save_steps=200,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **values,
    )

    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}

    made = Trainer(Digits(), args, train_dataset=data, eval_dataset=rows[1400:], compute_metrics=accuracy)
    made.train()


def main(out: Path) -> None:
    """Trains, and writes the pictures."""
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    x = torch.tensor(pixels / 16, dtype=torch.float32)
    rows = [{"x": x[place], "labels": int(label)} for place, label in enumerate(classes)]
    with tempfile.TemporaryDirectory() as name, Browser() as browser:
        folder = Path(name)
        folders = [folder / run for run in ("digits", "high-rate", "slow-data")]
        train(
            folder / "warm", rows[:16], rows, learning_rate=3e-3
        )  # what a process does but once is not in the pictures
        train(folders[0], rows[:1400], rows, learning_rate=3e-3)
        train(folders[1], rows[:1400], rows, learning_rate=3e-2, max_grad_norm=0.5)
        train(folders[2], Slow(rows[:1400]), rows, learning_rate=1e-3, weight_decay=0.1)
        for picture, runs, width, height, dark in PICTURES:
            page, path = folder / f"{picture}.html", out / f"{picture}.png"
            Html().write(names_of([read(folders[number]) for number in runs]), page)
            browser.open(page.as_uri(), width, height, dark)
            browser.wait("document.body.dataset.drawn")
            browser.get("new Promise((done) => setTimeout(done, 500))")
            if browser.errors:
                raise SystemExit("\n".join(browser.errors))
            browser.picture(path)
            with Image.open(path) as drawn:
                drawn.convert("RGB").quantize(128).save(path, optimize=True)
            print(f"{path}  {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "_static")
