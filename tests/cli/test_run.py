"""`drivetrain train`, `evaluate` and `predict`, from a config to what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivetrain.cli.overrides import split_words
from drivetrain.errors import ConfigurationError

Edit = Callable[[str, str], None]
Command = Callable[..., Any]


def saved(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_train_shows_a_plan_and_a_summary(project: Path, drivetrain: Command) -> None:
    result = drivetrain("train", "run.toml")
    assert result.exit_code == 0, result.stderr
    plan, _, summary = result.stdout.partition("Done")
    for part in (
        "Training: run.toml",
        "Line, 6 parameters",
        "train 64, eval 32, test 16 rows",
        "2 epochs, 8 rows",
    ):
        assert part in plan
    for part in ("strategy", "single", "adamw_torch", "linear", "cpu", "out"):
        assert part in plan
    assert "accuracy" in summary
    assert "checkpoint-16" in summary
    assert "\x1b" not in result.stdout  # no terminal, no colours


def test_train_leaves_model_metrics_state_and_checkpoint(project: Path, drivetrain: Command) -> None:
    assert drivetrain("train", "run.toml").exit_code == 0
    out = project / "out"
    assert (out / "model.safetensors").is_file()
    assert (out / "checkpoint-16" / "model.safetensors").is_file()
    assert saved(out / "trainer_state.json")["global_step"] == 16
    results = saved(out / "all_results.json")
    assert {"train_loss", "eval_loss", "eval_accuracy"} <= set(results)


def test_any_argument_on_the_command_line(project: Path, drivetrain: Command) -> None:
    result = drivetrain(
        "train",
        "run.toml",
        "--learning-rate",
        "1e-3",
        "--max_steps=5",
        "--output-dir",
        "other",
        "--model.width",
        "3",
    )
    assert result.exit_code == 0, result.stderr
    assert "5 updates" in result.stdout
    assert "9 parameters" in result.stdout
    state = saved(project / "other" / "trainer_state.json")
    assert state["global_step"] == 5
    assert state["log_history"][0]["learning_rate"] <= 1e-3


def test_the_later_spelling_wins_on_the_command_line(project: Path, drivetrain: Command) -> None:
    result = drivetrain("train", "run.toml", "--eval-strategy", "no", "--save-strategy", "no")
    assert result.exit_code == 0, result.stderr
    assert not (project / "out" / "eval_results.json").exists()
    assert not (project / "out" / "model.safetensors").exists()
    assert "not saved" in result.stdout


def test_another_run_is_not_written_over(project: Path, drivetrain: Command) -> None:
    assert drivetrain("train", "run.toml").exit_code == 0
    again = drivetrain("train", "run.toml")
    assert again.exit_code == 2
    assert "out/checkpoint-16 stands there from another run." in again.stderr
    assert "--resume-from-checkpoint" in again.stderr
    assert drivetrain("train", "run.toml", "--overwrite-output-dir").exit_code == 0


def test_resume_goes_on(project: Path, drivetrain: Command) -> None:
    assert drivetrain("train", "run.toml", "--num-train-epochs", "1").exit_code == 0
    result = drivetrain("train", "run.toml", "--resume-from-checkpoint")
    assert result.exit_code == 0, result.stderr
    state = saved(project / "out" / "trainer_state.json")
    assert state["global_step"] == 16
    assert [row["epoch"] for row in state["log_history"] if "loss" in row] == [1.0, 2.0]


def test_evaluate_uses_what_training_left(project: Path, drivetrain: Command) -> None:
    early = drivetrain("evaluate", "run.toml")
    assert early.exit_code == 2
    assert "There are no weights in out: train first" in early.stderr
    assert drivetrain("train", "run.toml").exit_code == 0
    trained = saved(project / "out" / "eval_results.json")
    result = drivetrain("evaluate", "run.toml")
    assert result.exit_code == 0, result.stderr
    assert saved(project / "out" / "eval_results.json")["eval_loss"] == pytest.approx(
        trained["eval_loss"], rel=1e-5
    )
    chosen = drivetrain("evaluate", "run.toml", "--checkpoint", "out/checkpoint-8")
    assert chosen.exit_code == 0, chosen.stderr
    assert "out/checkpoint-8" in chosen.stdout
    assert saved(project / "out" / "eval_results.json")["eval_loss"] != trained["eval_loss"]


def test_weights_of_another_model_are_refused(project: Path, drivetrain: Command) -> None:
    assert drivetrain("train", "run.toml").exit_code == 0
    result = drivetrain("evaluate", "run.toml", "--model.width", "3")
    assert result.exit_code == 2
    assert "layer.weight" in result.stderr
    assert "Traceback" not in result.stderr


def test_predict_writes_arrays(project: Path, drivetrain: Command) -> None:
    assert drivetrain("train", "run.toml").exit_code == 0
    result = drivetrain("predict", "run.toml")
    assert result.exit_code == 0, result.stderr
    assert "out/predictions.npz" in result.stdout
    with np.load(project / "out" / "predictions.npz") as arrays:
        assert arrays["predictions"].shape == (16, 2)
        assert arrays["label_ids"].shape == (16,)
    assert "test_accuracy" in saved(project / "out" / "test_results.json")


def test_do_train_do_eval_and_do_predict_are_obeyed(project: Path, edit: Edit, drivetrain: Command) -> None:
    edit("[training]", "[training]\ndo_predict = true")
    assert drivetrain("train", "run.toml").exit_code == 0
    assert (project / "out" / "predictions.npz").is_file()
    (project / "out" / "train_results.json").unlink()
    result = drivetrain("train", "run.toml", "--do-train", "false")
    assert result.exit_code == 0, result.stderr
    assert not (project / "out" / "train_results.json").exists()
    nothing = drivetrain(
        "train", "run.toml", "--no-do-train", "--no-do-predict", "--evaluation-strategy", "no", "--no-do-eval"
    )
    assert nothing.exit_code == 2
    assert "there is nothing to do" in nothing.stderr


def test_after_is_called_with_the_trainer(project: Path, edit: Edit, drivetrain: Command) -> None:
    edit("[training]", '[after]\ncall = "line_project:after"\nword = "well"\n\n[training]')
    assert "AFTER well 16" in drivetrain("train", "run.toml").stdout


def test_plugins_of_the_config(project: Path, edit: Edit, drivetrain: Command) -> None:
    edit(
        "[training]",
        '[plugins]\nenable = ["gradient_norms"]\n[plugins.gradient_norms]\nevery = 1\n\n[training]',
    )
    result = drivetrain("train", "run.toml")
    assert result.exit_code == 0, result.stderr
    assert "gradient_norms" in result.stdout
    assert len((project / "out" / "gradient_norms.jsonl").read_text().splitlines()) == 16


def test_plugins_of_the_project_settings(project: Path, drivetrain: Command) -> None:
    assert drivetrain("plugins", "enable", "gradient_norms").exit_code == 0
    result = drivetrain("train", "run.toml")
    assert result.exit_code == 0, result.stderr
    assert (project / "out" / "gradient_norms.jsonl").is_file()


def test_options_of_a_plugin_that_is_switched_off_do_not_bring_it_back(
    project: Path, drivetrain: Command
) -> None:
    (project / "drivetrain.toml").write_text("[plugins.gradient_norms]\nevery = 3\n")
    result = drivetrain("train", "run.toml", "--max-steps", "2")
    assert result.exit_code == 0, result.stderr
    assert not (project / "out" / "gradient_norms.jsonl").exists()
    drivetrain("plugins", "enable", "gradient_norms")
    assert drivetrain("train", "run.toml", "--max-steps", "5", "--overwrite-output-dir").exit_code == 0
    rows = (project / "out" / "gradient_norms.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 3]


def test_what_has_no_effect_is_said(
    project: Path, drivetrain: Command, caplog: pytest.LogCaptureFixture
) -> None:
    result = drivetrain("train", "run.toml", "--warmup-steps", "3", "--lr-scheduler-type", "constant")
    assert result.exit_code == 0, result.stderr
    assert "warmup_steps=3 has no effect" in result.stdout
    assert "warmup_steps=3" not in result.stderr + caplog.text  # said once


def test_trace_hooks_prints_the_calls(
    project: Path, drivetrain: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    result = drivetrain(
        "train", "run.toml", "--trace-hooks", "--max-steps", "1", "--evaluation-strategy", "no"
    )
    assert result.exit_code == 0, result.stderr
    assert "on_step_end" in result.stdout + result.stderr + "".join(capfd.readouterr())


def test_files_of_data(project: Path, edit: Edit, drivetrain: Command) -> None:
    pytest.importorskip("datasets", reason="files of data are read through datasets")
    rows = [{"x": [index / 8, 1 - index / 8], "labels": index % 2} for index in range(8)]
    (project / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    edit('factory = "line_project:data"\ncount = 64', 'train = "rows.jsonl"\neval = "rows.jsonl"')
    result = drivetrain("train", "run.toml")
    assert result.exit_code == 0, result.stderr
    assert "train 8, eval 8 rows" in result.stdout


def test_files_of_data_without_datasets(
    project: Path, edit: Edit, drivetrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "rows.csv").write_text("x,labels\n1,0\n")
    edit('factory = "line_project:data"\ncount = 64', 'train = "rows.csv"\neval = "rows.xml"')
    from drivetrain.cli import build

    real = build.importlib.util.find_spec
    monkeypatch.setattr(
        build.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "datasets" else real(name, *rest),
    )
    result = drivetrain("train", "run.toml")
    assert result.exit_code == 2
    assert "run.toml, line 7, data.train: this needs datasets, which is not installed." in result.stderr
    assert "pip install 'drivetrain[data]'" in result.stderr
    assert "there is no file rows.xml" in result.stderr


def test_a_transformers_model_and_text(project: Path, drivetrain: Command) -> None:
    transformers = pytest.importorskip("transformers", reason="the model is one of transformers")
    pytest.importorskip("datasets", reason="files of data are read through datasets")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "a"]
    (project / "vocab.txt").write_text("\n".join(words))
    folder = project / "tiny"
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(project / "vocab.txt")).save_pretrained(folder)
    lines = "".join(f"a {word} day,{label}\n" for word, label in (("good", 1), ("bad", 0)) * 8)
    (project / "train.csv").write_text(f"sentence,label\n{lines}")
    (project / "text.toml").write_text(
        '[model]\ntransformers = "tiny"\nauto = "AutoModelForSequenceClassification"\nnum_labels = 2\n'
        '[data]\ntrain = "train.csv"\neval = "train.csv"\ntokenizer = "tiny"\ntext_column = "sentence"\n'
        '[training]\nmax_steps = 3\nreport_to = "none"\nuse_cpu = true\ndo_eval = true\n'
    )
    result = drivetrain("train", "text.toml")
    assert result.exit_code == 0, result.stderr
    out = project / "runs" / "text"  # the default output_dir is named after the config
    assert (out / "config.json").is_file()
    assert "eval_loss" in saved(out / "eval_results.json")


def test_a_user_error_keeps_its_traceback(project: Path, edit: Edit, drivetrain: Command) -> None:
    (project / "line_project.py").write_text(
        (project / "line_project.py").read_text()
        + "\ndef broken():\n    raise RuntimeError('my own fault')\n"
    )
    edit("line_project:model", "line_project:broken")
    edit("width = 2\n", "")
    with pytest.raises(RuntimeError, match="my own fault"):
        drivetrain("train", "run.toml")


def test_traceback_is_there_when_asked_for(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drivetrain", "train", "absent.toml", "--traceback"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    plain = subprocess.run(
        [sys.executable, "-m", "drivetrain", "train", "absent.toml"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert plain.returncode == 2
    assert plain.stderr.startswith("Error: There is no config file absent.toml.")


def test_the_config_folder_is_first_on_the_path(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(
        [sys.executable, "-m", "drivetrain", "train", str(project / "run.toml"), "--max-steps", "1"],
        capture_output=True, text=True, timeout=120, cwd=elsewhere, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "out" / "model.safetensors").is_file()  # output_dir is the current folder's


@pytest.mark.slow
def test_several_processes_print_once(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "drivetrain",
         "train", "run.toml"],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Training: run.toml") == 1
    assert done.stdout.count("Done") == 1
    assert "8 a device x 2 processes" in done.stdout
    assert saved(project / "out" / "trainer_state.json")["global_step"] == 8


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--bf16", "maybe"], "Option '--bf16' is true or false, and not 'maybe'."),
        (["-x", "3"], "Unknown option '-x'; options are written --NAME VALUE."),
    ],
)
def test_words_that_are_no_options(words, sentence):
    with pytest.raises(ConfigurationError) as caught:
        split_words(["toy.toml", *words], {"bf16": "flag"})
    assert sentence in caught.value.problems
