"""What is not whole is no checkpoint, and what leaves its folder is not read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import xxhash

from drivetrain.checkpoint import last_checkpoint, load_checkpoint, load_weights, save_checkpoint, validate
from drivetrain.checkpoint.manifest import MANIFEST, is_safe_name, seal
from drivetrain.errors import CheckpointError


@pytest.fixture
def saved(output: Path, trained: Any) -> Path:
    save_checkpoint(
        str(output / "checkpoint-3"), trained.contents(loss={"sum": 1.5}), save_model=trained.save_model
    )
    return output / "checkpoint-3"


def reseal(folder: Path, change: dict[str, dict[str, object]]) -> None:
    """A manifest that an attacker wrote: its own seal is right."""
    content = json.loads((folder / MANIFEST).read_text())
    content["files"].update(change)
    text = json.dumps(content["files"], sort_keys=True, separators=(",", ":"))
    content["seal"] = xxhash.xxh3_128_hexdigest(text.encode())
    (folder / MANIFEST).write_text(json.dumps(content))


def test_a_whole_one_is_valid(saved: Path) -> None:
    assert validate(str(saved)) is None
    assert validate(str(saved), quick=True) is None
    assert last_checkpoint(str(saved.parent)) == str(saved)


def test_every_file_is_sealed(saved: Path) -> None:
    names = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert set(json.loads((saved / MANIFEST).read_text())["files"]) == names - {MANIFEST}


def test_a_byte_turned_in_any_file_is_seen(saved: Path) -> None:
    for path in sorted(saved.iterdir()):
        original = path.read_bytes()
        for place in {0, len(original) // 2, len(original) - 2}:
            turned = bytearray(original)
            turned[place] ^= 1
            path.write_bytes(bytes(turned))
            reason = validate(str(saved))
            assert reason is not None, (path.name, place)
            assert path.name in reason or path.name == MANIFEST
            with pytest.raises(CheckpointError, match="is not a valid checkpoint"):
                load_checkpoint(str(saved))
        path.write_bytes(original)
    assert validate(str(saved)) is None


def test_a_turned_byte_of_the_weights_is_seen_when_they_are_loaded_alone(saved: Path, trained: Any) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"its model\.safetensors has changed"):
        load_weights(trained.model, str(saved))


def test_a_truncated_file_is_seen_without_reading(saved: Path) -> None:
    for path in sorted(saved.iterdir()):
        original = path.read_bytes()
        os.truncate(path, len(original) - 1 if path.name != MANIFEST else len(original) // 2)
        assert validate(str(saved), quick=True) is not None, path.name
        path.write_bytes(original)


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / "scheduler.json").unlink()
    assert validate(str(saved)) == "its scheduler.json is missing"
    (saved / MANIFEST).unlink()
    assert "has no manifest.json" in str(validate(str(saved)))


def test_a_file_beside_the_sealed_ones_is_neither_refused_nor_read(saved: Path) -> None:
    (saved / "README.md").write_text("notes")
    shutil.copy(saved / "model.safetensors", saved / "weights.safetensors")
    (saved / "weights.safetensors").write_bytes(b"not what was saved")
    (saved / "model_extra.json").write_text("[")
    assert validate(str(saved)) is None
    assert load_checkpoint(str(saved)).train_state is not None


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../b", "/etc/passwd", "..", "a//b", "", ".", "a\\b", "C:x", "x\0"]
)
def test_a_name_that_leaves_the_folder_is_refused(saved: Path, name: str) -> None:
    assert not is_safe_name(name)
    (saved.parent / "outside").write_text("secret")
    reseal(saved, {name: {"size": 6, "xxh3_128": "0"}})
    assert "does not lie in its folder" in str(validate(str(saved)))


def test_a_link_is_refused(saved: Path) -> None:
    moved = saved.parent / "elsewhere.safetensors"
    (saved / "model.safetensors").rename(moved)
    (saved / "model.safetensors").symlink_to(moved)
    assert validate(str(saved)) == "its model.safetensors is a link"


def test_a_linked_subfolder_is_refused(saved: Path, output: Path) -> None:
    (output / "real").mkdir()
    (output / "real" / "x.json").write_text("{}")
    (saved / "sub").symlink_to(output / "real")
    reseal(saved, {"sub/x.json": {"size": 2, "xxh3_128": xxhash.xxh3_128_hexdigest(b"{}")}})
    assert validate(str(saved)) == "its sub/x.json is a link"


def test_a_pipe_does_not_hang(saved: Path) -> None:
    (saved / "run.json").unlink()
    os.mkfifo(saved / "run.json")
    assert validate(str(saved)) == "its run.json is not a file"


def test_a_link_named_like_a_checkpoint_is_not_one(saved: Path) -> None:
    (saved.parent / "checkpoint-9").symlink_to(saved)
    assert last_checkpoint(str(saved.parent)) == str(saved)


def test_a_link_cannot_be_sealed(output: Path) -> None:
    (output / "x").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="is a link"):
        seal(str(output))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1, "files": 3, "seal": ""}', "[" * 100_000, "\udc00"]
)
def test_a_strange_manifest_is_damaged(saved: Path, text: str) -> None:
    (saved / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert validate(str(saved)) == "its manifest.json is damaged"
