"""`drivetrain checkpoints list`, `verify` and `diff`, of what real runs left, and of what then happened to it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Command = Callable[..., Any]


@pytest.fixture
def run(project: Path, drivetrain: Command) -> Path:
    """Four epochs of eight updates, of which the best is not the last."""
    words = ["--num-train-epochs", "4", "--metric-for-best-model", "accuracy", "--load-best-model-at-end"]
    result = drivetrain("train", "run.toml", *words, "--learning-rate", "0.5")
    assert result.exit_code == 0, result.stderr
    return project / "out"


def listed(drivetrain: Command, *words: str) -> dict[str, Any]:
    result = drivetrain("checkpoints", "list", "out", "--json", *words)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def flip(path: Path, at: int = -1) -> None:
    """Turns one bit, and leaves the size."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_list_in_a_pipe_is_a_line_for_each(run: Path, drivetrain: Command) -> None:
    result = drivetrain("checkpoints", "list", "out")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["step", "epoch", "size", "written", "accuracy", "run", "under", "state"]
    assert [line.split()[0] for line in lines[1:]] == ["8", "16", "24", "32"]
    state = json.loads((run / "checkpoint-32" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"]).name.partition("-")[2]
    for line in lines[1:]:
        assert ("best" in line) == (line.split()[0] == best)
        assert ("next to resume" in line) == line.startswith("32")
        assert " single " in line
        assert "valid" in line


def test_list_as_json(run: Path, drivetrain: Command) -> None:
    found = listed(drivetrain)
    assert found["resumes"] == "out/checkpoint-32"
    last = found["checkpoints"][-1]
    assert (last["step"], last["epoch"], last["strategy"], last["world_size"]) == (32, 4.0, "single", 1)
    assert last["size"] == sum(path.stat().st_size for path in (run / "checkpoint-32").iterdir())
    state = json.loads((run / "checkpoint-32" / "trainer_state.json").read_text())
    wanted = next(
        row["eval_accuracy"] for row in state["log_history"] if row["step"] == 32 and "eval_accuracy" in row
    )
    assert (last["metric_name"], last["metric"]) == ("accuracy", wanted)


def test_what_is_not_valid_is_said_and_another_is_next(run: Path, drivetrain: Command) -> None:
    os.truncate(run / "checkpoint-32" / "model.safetensors", 100)
    (run / "checkpoint-24" / "manifest.json").unlink()
    flip(run / "checkpoint-16" / "model.safetensors")
    quick = listed(drivetrain)
    assert [entry["valid"] for entry in quick["checkpoints"]] == [True, True, False, False]
    assert quick["resumes"] == "out/checkpoint-16"  # the sizes are what they were
    thorough = listed(drivetrain, "--verify")
    assert [entry["valid"] for entry in thorough["checkpoints"]] == [True, False, False, False]
    assert thorough["resumes"] == "out/checkpoint-8"
    text = drivetrain("checkpoints", "list", "out", "--verify").stdout
    assert "not valid: its model.safetensors has 100 bytes of 216" in text
    assert "not valid: it has no manifest.json" in text
    assert "not valid: its model.safetensors has changed since it was written" in text


def test_the_one_that_is_next_is_the_one_that_is_resumed(run: Path, drivetrain: Command) -> None:
    from drivetrain.checkpoint import last_checkpoint

    os.truncate(run / "checkpoint-32" / "optimizer.safetensors", 1)
    (run / "checkpoint-24").rename(
        run / ".checkpoint-24.old-0123abcd"
    )  # as a kill between two renames leaves it
    found = listed(drivetrain)
    aside = next(entry for entry in found["checkpoints"] if entry["aside"])
    assert aside["step"] == 24
    assert aside["resumes"]
    assert (run / ".checkpoint-24.old-0123abcd").is_dir()  # a list changes nothing
    assert last_checkpoint(str(run)) == str(run / "checkpoint-24")


def test_what_killed_runs_left_is_listed(run: Path, drivetrain: Command) -> None:
    shutil.copytree(run / "checkpoint-8", run / ".checkpoint-40.tmp-0123abcd")
    (run / ".checkpoint-8.del-0123abcd").mkdir()
    text = drivetrain("checkpoints", "list", "out").stdout
    assert (
        ".checkpoint-40.tmp-0123abcd: half-written: by a run that was killed, or by one that is saving now"
        in text
    )
    assert ".checkpoint-8.del-0123abcd: was being deleted when a run was killed" in text


def test_a_checkpoint_of_transformers_is_named_as_such(run: Path, drivetrain: Command) -> None:
    theirs = run / "checkpoint-40"
    theirs.mkdir()
    shutil.copy(run / "checkpoint-8" / "model.safetensors", theirs)
    (theirs / "trainer_state.json").write_text(
        json.dumps({"global_step": 40, "epoch": 5.0, "log_history": []})
    )
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"state": {}, "param_groups": []}, theirs / name)
    found = listed(drivetrain)["checkpoints"][-1]
    assert (found["writer"], found["valid"], found["resumes"]) == ("transformers", True, True)
    assert "valid, next to resume, written by transformers" in drivetrain("checkpoints", "list", "out").stdout
    told = drivetrain("checkpoints", "verify", "out/checkpoint-40")
    assert told.exit_code == 0
    assert "written by transformers, without checksums" in told.stdout
    (theirs / "scheduler.pt").unlink()
    assert "has no scheduler.pt" in listed(drivetrain)["checkpoints"][-1]["problem"]


@pytest.mark.parametrize("columns", [60, 200])
def test_the_table_fits_the_terminal(
    run: Path, drivetrain: Command, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    os.truncate(run / "checkpoint-32" / "model.safetensors", 100)
    import re

    text = re.sub(r"\x1b\[[0-9;]*m", "", drivetrain("checkpoints", "list", "out").stdout)
    assert all(len(line) <= columns for line in text.splitlines())
    plain = " ".join(text.split())
    assert "resume_from_checkpoint=True goes on from checkpoint-24." in plain
    assert "just now" in plain
    assert ("run under" in plain) == (columns == 200)
    assert "epoch 1.00" in plain or columns == 200


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("out/checkpoint-8", "out/checkpoint-8 is itself a checkpoint: `drivetrain checkpoints list out` lists those"),
        (".", ". holds no checkpoints, but folders in it do: out."),
        ("empty", "empty holds no checkpoints: they are folders named checkpoint-STEP, which a run writes into its"),
        ("oot", "There is no folder oot. Did you mean 'out'?"),
        ("run.toml", "run.toml is a file, and a checkpoint is a folder."),
    ],
)  # fmt: skip
def test_a_folder_without_checkpoints(run: Path, drivetrain: Command, path: str, sentence: str) -> None:
    (run.parent / "empty").mkdir()
    result = drivetrain("checkpoints", "list", path)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_verify_says_of_each_the_first_thing_that_is_wrong(run: Path, drivetrain: Command) -> None:
    whole = drivetrain("checkpoints", "verify", "out")
    assert whole.exit_code == 0, whole.stdout
    assert whole.stdout.count(": valid") + whole.stdout.count("  valid, ") == 4
    flip(run / "checkpoint-16" / "optimizer.safetensors")
    result = drivetrain("checkpoints", "verify", "out/checkpoint-8", "out/checkpoint-16")
    assert result.exit_code == 1
    good, bad = result.stdout.splitlines()
    assert good.startswith("out/checkpoint-8   valid, ")
    assert bad == "out/checkpoint-16  not valid: its optimizer.safetensors has changed since it was written"
    told = json.loads(drivetrain("checkpoints", "verify", "out/checkpoint-16", "--json").stdout)
    assert told[0]["valid"] is False
    assert drivetrain("checkpoints", "verify", "nowhere").exit_code == 2


def test_verify_opens_what_a_forged_manifest_calls_whole(run: Path, drivetrain: Command) -> None:
    from drivetrain.checkpoint.manifest import seal

    folder = run / "checkpoint-16"
    (folder / "optimizer.safetensors").write_bytes(b"\xff" * 64)
    (folder / "manifest.json").unlink()
    seal(str(folder))
    result = drivetrain("checkpoints", "verify", "out/checkpoint-16")
    assert result.exit_code == 1
    assert "optimizer.safetensors cannot be read" in result.stdout


def test_diff_of_a_checkpoint_and_its_copy_is_empty(run: Path, drivetrain: Command) -> None:
    shutil.copytree(run / "checkpoint-8", run.parent / "copy")
    result = drivetrain("checkpoints", "diff", "out/checkpoint-8", "copy")
    assert result.exit_code == 0
    assert "Equal, bit for bit: 9 tensors and all else." in result.stdout


def test_diff_tells_what_differs_and_by_how_much(run: Path, drivetrain: Command) -> None:
    again = drivetrain(
        "train", "run.toml", "--output-dir", "other", "--learning-rate", "0.25", "--num-train-epochs", "1"
    )
    assert again.exit_code == 0
    result = drivetrain("checkpoints", "diff", "out/checkpoint-8", "other/checkpoint-8")
    assert result.exit_code == 1
    for line in (
        "arguments: learning_rate: 0.5 and 0.25",
        "arguments: num_train_epochs: 4 and 1",
        "weights: layer.weight: 4 of 4 differ, by at most ",
        "optimizer: layer.weight/exp_avg: 4 of 4 differ, by at most ",
        "scheduler: base_lrs/0: 0.5 and 0.25",
    ):
        assert line in result.stdout
    assert "output_dir" not in result.stdout  # where a run lies is no difference
    told = json.loads(
        drivetrain("checkpoints", "diff", "out/checkpoint-8", "other/checkpoint-8", "--json").stdout
    )
    change = next(c for c in told["changes"] if c["name"] == "layer.weight" and c["part"] == "weights")
    one, other = (_weights(f"{folder}/checkpoint-8")["layer.weight"] for folder in ("out", "other"))
    assert change["max_abs"] == pytest.approx(float((one.double() - other.double()).abs().max()))
    assert (change["differ"], change["of"]) == (4, 4)


def _weights(folder: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(f"{folder}/model.safetensors")


def test_diff_of_other_names_shapes_and_dtypes(tmp_path: Path) -> None:
    from drivetrain.checkpoint import write_weights
    from drivetrain.checkpoint.difference import compare

    nan = torch.tensor([float("nan"), 1.0])
    one = {"a": torch.zeros(3), "b": torch.ones(2), "c": nan, "d": torch.arange(3), "z": torch.tensor([0.0])}
    other = {
        "a": torch.zeros(4),
        "b": torch.ones(2).half(),
        "c": nan.clone(),
        "e": torch.arange(3),
        "z": torch.tensor([-0.0]),
    }
    for name, weights in (("one", one), ("other", other)):
        (tmp_path / name).mkdir()
        write_weights(str(tmp_path / name), weights)
    found = compare(str(tmp_path / "one"), str(tmp_path / "other"))
    kinds = {change.name: (change.kind, change.a, change.b, change.differ) for change in found.changes}
    assert kinds == {
        "a": ("shape", [3], [4], None),
        "b": ("dtype", "float32", "float16", 0),
        "d": ("only in A", "int64 [3]", None, None),
        "e": ("only in B", None, "int64 [3]", None),
        "z": ("tensor", None, None, 1),  # equal, and other bits
    }
    assert found.weights_alone


def test_a_long_tensor_is_compared_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    from drivetrain.checkpoint import difference

    monkeypatch.setattr(difference, "_STRETCH", 7)
    one = torch.randn(5, 10)
    other = one.clone()
    other[0, 3] += 1
    other[4, 9] -= 3
    change = difference.compare_tensors("weights", "w", one, other)
    assert change is not None
    assert (change.differ, change.of) == (2, 50)
    assert change.max_abs == pytest.approx(3)
    assert difference.compare_tensors("weights", "w", one, one.clone()) is None


def test_diff_needs_two_checkpoints(run: Path, drivetrain: Command) -> None:
    result = drivetrain("checkpoints", "diff", "out", "out/checkpoint-8")
    assert result.exit_code == 2
    assert "out is a folder of checkpoints: name one, such as out/checkpoint-32." in result.stderr
