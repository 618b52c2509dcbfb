"""Checkpoints that somebody has made to do harm: each is refused in a sentence, and does none."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import forge

from drivetrain.checkpoint import RandomState, load_checkpoint, load_weights, read_run, unpack, validate
from drivetrain.checkpoint.tensors import read_tensors, write_tensors
from drivetrain.errors import CheckpointError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    forge.run_of(folder).train()
    return folder


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return forge.forged(run / "checkpoint-2", tmp_path / "sent" / "checkpoint-2", {})


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file elsewhere that nothing may read or touch; it would be read as weights if it were followed."""
    path = tmp_path / "elsewhere" / "model.safetensors"
    path.parent.mkdir()
    write_tensors(
        str(path), {name: torch.full_like(value, 7.0) for name, value in forge.Extra().named_parameters()}
    )
    path.chmod(0o444)
    os.utime(path, (1, 1))
    return path


def refused(folder: Path, tmp_path: Path) -> str:
    """Why a checkpoint is refused, by every door; nobody's weights have changed."""
    said = []
    for call in (
        lambda: load_checkpoint(str(folder)),
        lambda: forge.run_of(tmp_path / "resumed").train(resume_from_checkpoint=str(folder)),
    ):
        with pytest.raises(CheckpointError) as caught:
            call()
        forge.sentence(caught.value)
        said.append(str(caught.value))
    return said[0]


def replaced(checkpoint: Path, name: str, content: bytes) -> None:
    """Another content in the place of a file, which is a link to that of the real checkpoint."""
    (checkpoint / name).unlink()
    (checkpoint / name).write_bytes(content)
    forge.seal_anything(checkpoint)


def changed(checkpoint: Path, name: str, change: Any) -> None:
    tree = json.loads((checkpoint / name).read_text())
    change(tree)
    replaced(checkpoint, name, json.dumps(tree).encode())


# -- paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../elsewhere/model.safetensors", "/etc/hostname", "a/../../x", "", ".", "a\\b", "a:b",
                                  "x\ny", "\ud800", "\x1b[2J", "a//b"])  # fmt: skip
def test_a_manifest_that_names_what_is_elsewhere(
    checkpoint: Path, canary: Path, tmp_path: Path, name: str
) -> None:
    forge.seal_anything(checkpoint, **{name: {"size": canary.stat().st_size, "xxh3_128": "0" * 32}})
    assert "which does not lie in its folder" in refused(checkpoint, tmp_path)
    with pytest.raises(CheckpointError):
        load_weights(forge.Extra(), str(checkpoint))


@pytest.mark.parametrize(
    "name", ["../elsewhere/model.safetensors", "{canary}", "./model.safetensors", "link.safetensors"]
)
@pytest.mark.parametrize("sealed", [True, False])
def test_an_index_that_names_what_is_elsewhere(
    checkpoint: Path, canary: Path, tmp_path: Path, name: str, sealed: bool
) -> None:
    name = name.format(canary=canary)
    (checkpoint / "link.safetensors").symlink_to(canary)
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(forge.Extra().state_dict(), name)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    forge.seal_anything(checkpoint)
    if not sealed:
        (checkpoint / "manifest.json").unlink()
    model = forge.Extra()
    before = {key: value.clone() for key, value in model.named_parameters()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, str(checkpoint))
    forge.sentence(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.named_parameters())
    assert canary.stat().st_atime == canary.stat().st_mtime == 1


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.json", "run.json", "random-0.safetensors", "manifest.json"]
)
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "device"])
def test_what_is_no_plain_file(checkpoint: Path, canary: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = checkpoint / name
    real = path.read_bytes()
    path.unlink()
    if kind == "link":
        (canary.parent / name).unlink(missing_ok=True)
        (canary.parent / name).write_bytes(real)
        path.symlink_to(canary.parent / name)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "to be made")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    refused(checkpoint, tmp_path)
    assert not (tmp_path / "to be made").exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model_extra.json", "pytorch_model.bin", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_weights_alone_are_read_from_plain_files(tmp_path: Path, canary: Path, name: str, kind: str) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    if name == "model_extra.json":
        write_tensors(str(folder / "model.safetensors"), dict(forge.Extra().named_parameters()))
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero" if kind == "device" else canary)
    with pytest.raises(CheckpointError) as caught:
        load_weights(forge.Extra(), str(folder))
    forge.sentence(caught.value)


def test_a_best_model_elsewhere(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    private = tmp_path / "private"
    for best in (
        str(private),
        str(private / "checkpoint-9"),
        "/dev",
        "x\n",
        "../../..",
        str(checkpoint.parent / "checkpoint-7"),
    ):
        (private / "checkpoint-9").mkdir(parents=True, exist_ok=True)
        weights = {name: torch.full_like(value, 7.0) for name, value in forge.Extra().named_parameters()}
        write_tensors(str(private / "checkpoint-9" / "model.safetensors"), weights)
        if best.endswith("-7"):
            Path(best).symlink_to(private / "checkpoint-9")
        changed(
            checkpoint,
            "trainer_state.json",
            lambda tree, best=best: tree.update(best_model_checkpoint=best, best_metric=-9.0),
        )
        resumed = forge.run_of(tmp_path / "resumed", log_level="warning", save_total_limit=1)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert "which is not followed" in caplog.text
        assert not any(value.eq(7.0).all() for value in resumed.model.parameters())
        assert (private / "checkpoint-9" / "model.safetensors").exists()
        caplog.clear()


# -- what a checkpoint may set -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["step", "get_lr", "optimizer", "__class__", "state_dict", "_initial_step"])
def test_a_schedulers_state_replaces_no_method(checkpoint: Path, tmp_path: Path, key: str) -> None:
    changed(checkpoint, "scheduler.json", lambda tree: tree["state"].update({key: 1}))
    with pytest.raises(CheckpointError, match=re.escape(repr(key))):
        forge.run_of(tmp_path / "resumed").train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("key", ["on_step_end", "state", "__class__", "other", "calls"])
def test_a_callbacks_state_sets_only_what_it_tells(checkpoint: Path, tmp_path: Path, key: str) -> None:
    def change(tree: Any) -> None:
        (state,) = (value for name, value in tree["callback_states"].items() if name.endswith(":Counts"))
        state[key] = "x"

    changed(checkpoint, "run.json", change)
    with pytest.raises(CheckpointError, match=rf"the callback Counts has '{key}'"):
        forge.run_of(tmp_path / "resumed").train(resume_from_checkpoint=str(checkpoint))


def test_an_optimizers_state_that_fails_at_the_first_update(checkpoint: Path, tmp_path: Path) -> None:
    changed(checkpoint, "optimizer.json", lambda tree: tree["state"]["second.bias"].pop("exp_avg"))
    with pytest.raises(CheckpointError, match=r"AdamW cannot go on with the optimizer state .*exp_avg"):
        forge.run_of(tmp_path / "resumed").train(resume_from_checkpoint=str(checkpoint))


def test_an_optimizers_option_of_another_type(checkpoint: Path, tmp_path: Path) -> None:
    changed(checkpoint, "optimizer.json", lambda tree: tree["groups"][1].update(amsgrad=[1]))
    with pytest.raises(CheckpointError, match="AdamW cannot go on with the optimizer state"):
        forge.run_of(tmp_path / "resumed").train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("position", [-1, 625, 2**31 - 1])
def test_a_generators_position_outside_of_its_numbers(position: int) -> None:
    state = RandomState.capture()
    assert state.numpy is not None
    state.numpy["state"]["pos"] = position
    with pytest.raises(CheckpointError, match="numpy's generator"):
        RandomState.from_dict(state.as_dict())


def test_a_generators_rest_that_is_no_number() -> None:
    state = RandomState.capture()
    state.python = (*state.python[:2], "x")
    with pytest.raises(CheckpointError, match="Python's generator"):
        RandomState.from_dict(state.as_dict())
    assert isinstance(random.gauss(0, 1), float)


# -- no code -----------------------------------------------------------------------------------------------


class Runs:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("old", [True, False])
def test_pickled_weights_run_nothing(tmp_path: Path, old: bool) -> None:
    made = tmp_path / "made"
    torch.save(
        {"x": Runs(f"touch {made}")}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old
    )
    with pytest.raises(CheckpointError, match="without running code from it"):
        load_weights(forge.Extra(), str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(f"touch {made}")))
    with pytest.raises(CheckpointError):
        load_weights(forge.Extra(), str(tmp_path))
    assert not made.exists()


def test_pickled_weights_that_grow(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(1 << 20)}, buffer)
    with zipfile.ZipFile(buffer) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed or overlapping"):
        load_weights(forge.Extra(), str(tmp_path))
    torch.save({"x": torch.zeros(1).expand(1 << 28)}, path)
    with pytest.raises(CheckpointError, match="claims more numbers than it holds"):
        load_weights(forge.Extra(), str(tmp_path))


WATCHED = """
import os, sys
import torch, numpy
from support import forge
from drivetrain.checkpoint import last_checkpoint, load_checkpoint, load_weights, read_run
from drivetrain.cli import main

checkpoint, output = sys.argv[1:]
forge.run_of(output + "/warm").train()  # whatever torch and the loop import late is imported
seen = []
watched = ("pickle.find_class", "exec", "compile", "import", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn")

def hook(event, args):
    if event in watched:
        seen.append((event, repr(args)[:200]))

sys.addaudithook(hook)
load_checkpoint(checkpoint)
read_run(checkpoint)
load_weights(forge.Extra(), checkpoint)
last_checkpoint(os.path.dirname(checkpoint))
forge.run_of(output + "/resumed").train(resume_from_checkpoint=checkpoint)
allowed = [event for event in seen if event[0] == "import" and not any(word in event[1] for word in ("pickle", "json-named"))]
print("SEEN", [event for event in seen if event not in allowed])
"""


def test_nothing_is_unpickled_compiled_or_started(checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WATCHED)
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(checkpoint), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "SEEN []" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_dtype_is_looked_up_and_nothing_is_imported() -> None:
    for name in ("_dynamo", "_inductor", "onnx", "Tensor", "load"):
        with pytest.raises(CheckpointError):
            unpack({"$dtype": name}, {})


FORBIDDEN = re.compile(
    r"\bpickle\.(loads?|Unpickler)\b|\btorch\.load\((?!.*weights_only=True)|allow_pickle\s*=\s*True|(?<![\w.])(eval|exec)\(|"
    r"\b(dill|joblib|cloudpickle|marshal|shelve)\b|torch\.jit\.load|yaml\.load\("
)
# What is not of a checkpoint: the state that a worker of this run gave of its data set, or, of a resumed one, what a
# checkpoint held as plain values and was pickled a moment ago, to be copied.
ALLOWED = {
    "core/drivetrain/data/workers.py: data = pickle.loads(self.data)  # a worker of this very run made it",
    "core/drivetrain/data/workers.py: data = None if self.data is None else pickle.loads(self.data)",
}


@pytest.mark.parametrize("root", ["core", "plugins"])
def test_no_source_unpickles(root: str) -> None:
    found = []
    for path in sorted((ROOT / root).rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            code = line.split("#")[0]
            where = f"{path.relative_to(ROOT)}: {line.strip()}"
            if FORBIDDEN.search(code) and where not in ALLOWED:
                found.append(where)
    assert found == []


# -- memory ------------------------------------------------------------------------------------------------

MEASURED = """
import json, resource, sys
import torch
from support import forge
from drivetrain.checkpoint import load_checkpoint, load_weights
from drivetrain.errors import CheckpointError

folder = sys.argv[1]
forge.run_of(folder + "/warm").train()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))  # whatever is broken, the machine goes on
try:
    forge.run_of(folder + "/resumed").train(resume_from_checkpoint=sys.argv[2])
    said = "went on"
except CheckpointError as error:
    said = str(error)
print("MEASURED", json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, said]))
"""


def shared_by_all(checkpoint: Path, how: dict[str, Any]) -> None:
    """One tensor of 16 MB that an optimizer's state names two thousand times."""
    tensors = dict(read_tensors(str(checkpoint / "optimizer.safetensors")))
    tensors["big"] = torch.zeros(16 << 20, dtype=torch.uint8)
    (checkpoint / "optimizer.safetensors").unlink()
    write_tensors(str(checkpoint / "optimizer.safetensors"), tensors)
    changed(
        checkpoint,
        "optimizer.json",
        lambda tree: tree["state"]["second.bias"].update({f"x{i}": how for i in range(2000)}),
    )


@pytest.mark.parametrize(
    "how",
    [
        {"$tensor": "big"},
        {"$tensor": "big", "dtype": "complex128", "shape": [1 << 20]},
        {"$array": "big", "dtype": "<f8", "shape": [2 << 20]},
    ],
)
def test_memory_is_in_proportion_to_the_files(checkpoint: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    shared_by_all(checkpoint, how)
    script = tmp_path / "script.py"
    script.write_text(MEASURED)
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(checkpoint)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("MEASURED"))
    grown, said = json.loads(line.removeprefix("MEASURED"))
    assert "again and again" in said
    assert grown < (64 << 10) + 4 * (17 << 10), f"{grown} kB"  # a base, and four times the files


def test_a_header_that_claims_a_hundred_megabytes(checkpoint: Path, tmp_path: Path) -> None:
    header, body = forge.header_of((checkpoint / "model.safetensors").read_bytes())
    for claim in (100 << 20, 2**63, 2**64 - 1):
        replaced(checkpoint, "model.safetensors", forge.with_header(header, body, claim))
        assert "model.safetensors cannot be read" in refused(checkpoint, tmp_path)
    header["first.weight"]["shape"] = [1 << 40, 1 << 20]
    replaced(checkpoint, "model.safetensors", forge.with_header(header, body))
    assert "model.safetensors cannot be read" in refused(checkpoint, tmp_path)


def test_keys_that_share_a_hash() -> None:
    keys = [[i * (2**61 - 1), 0] for i in range(100_000)]
    with pytest.raises(CheckpointError, match="are not those of a dictionary"):
        unpack({"$dict": keys}, {})
    assert len(unpack({"$dict": [[i, 0] for i in range(100_000)]}, {})) == 100_000


def test_one_tensor_named_often_is_one() -> None:
    tensors = {"a": torch.zeros(64, dtype=torch.uint8)}
    back = unpack([{"$array": "a", "dtype": "<f8", "shape": [8]}] * 3 + [{"$tensor": "a"}], tensors)
    assert back[0] is back[1] is back[2]
    assert isinstance(back[0], np.ndarray)
    with pytest.raises(CheckpointError, match="read in two ways"):
        unpack(
            [{"$array": "a", "dtype": "<f8", "shape": [8]}, {"$array": "a", "dtype": "<f4", "shape": [16]}],
            tensors,
        )


def test_what_is_said_is_for_a_terminal(checkpoint: Path) -> None:
    changed(checkpoint, "run.json", lambda tree: tree.update(format="\x1b[2J\n"))
    with pytest.raises(CheckpointError) as caught:
        read_run(str(checkpoint))
    forge.sentence(caught.value)
    assert validate(str(checkpoint)) is None
    logging.getLogger("drivetrain").debug("")


@pytest.mark.parametrize(
    "name",
    ["batch", "row", "seed", "base_seed", "group", "world", "start", "ranks", "workers", "permutation"],
)
@pytest.mark.parametrize("value", ["x", -1, 2**70, [], {"numpy": {"bit_generator": "MT19937"}}, 0.5])
def test_a_position_in_the_data_that_is_none(checkpoint: Path, tmp_path: Path, name: str, value: Any) -> None:
    changed(checkpoint, "run.json", lambda tree: tree["position"]["data"].update({name: value}))
    forge.resume(checkpoint, tmp_path / "resumed")  # a sentence, or a run to its end
