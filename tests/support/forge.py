"""Checkpoints that hold something else than was written, sealed as if it had been: what somebody who means harm sends."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from drivetrain import Trainer, TrainerCallback, hookimpl
from drivetrain.checkpoint import (
    last_checkpoint,
    load_checkpoint,
    load_weights,
    read_run,
    validate,
)
from drivetrain.errors import CheckpointError, ConfigurationError
from support.toy import Toy, rows, trainer


class Extra(Toy):
    """A toy whose state_dict holds something that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"calls": 3, "kind": "toy"}

    def set_extra_state(self, state: Any) -> None:
        self.calls = int(state["calls"])


class Counts(TrainerCallback):
    """A callback of the kind that transformers' newer versions save."""

    def __init__(self) -> None:
        self.calls = 0
        self.words = ["a"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.calls += 1

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"calls": self.calls, "words": self.words}}


class Averages:
    """A plugin whose state has tensors, arrays and more in it."""

    def __init__(self) -> None:
        self.average: Any = torch.zeros(16, 8)
        self.rates: Any = np.arange(3.0)

    @hookimpl
    def save_state(self, run: Any) -> dict[str, Any]:
        return {"average": self.average, "rates": self.rates, "seen": {1, 2}, "one": np.float32(1.0)}

    @hookimpl
    def load_state(self, run: Any, state: dict[str, Any]) -> None:
        self.average.copy_(state["average"])
        self.rates = self.rates + state["rates"] * float(state["one"])


def run_of(folder: Any, **values: Any) -> Trainer:
    """The run whose checkpoints are forged: an accumulation under way at each epoch's end, a best model, states."""
    settings: dict[str, Any] = {
        "dropout": 0.1,
        "data": rows(20),
        "model": Extra(0.1),
        "callbacks": [Counts()],
        "plugins": [Averages()],
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 20,
        "gradient_accumulation_steps": 2,
        "max_steps": 5,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "evaluation_strategy": "epoch",
        "load_best_model_at_end": True,
        "log_level": "error",
    }
    return trainer(folder, **(settings | values))


def seal_anything(folder: Path, **files: dict[str, Any]) -> None:
    """A manifest that is valid for whatever lies in the folder.

    Args:
        folder: the checkpoint.
        files: more that it names.
    """
    named: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != "manifest.json":
            content = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            named[name] = {"size": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
    named |= files
    text = json.dumps(named, sort_keys=True, separators=(",", ":"))
    seal = xxhash.xxh3_128_hexdigest(text.encode())
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": named, "seal": seal}))


def forged(source: Path, folder: Path, contents: dict[str, bytes], *, seal: bool = True) -> Path:
    """A copy of a checkpoint with other contents of some of its files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in contents:
            os.link(path, folder / path.name)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    if seal and "manifest.json" not in contents:
        seal_anything(folder)
    return folder


def sentence(error: BaseException) -> None:
    """An error is one sentence of a length to read."""
    text = str(error)
    assert "\n" not in text, text
    assert text.endswith("."), text
    assert all(c.isprintable() for c in text), text
    assert len(text) < 2000, text


def one_sentence(call: Callable[[], Any]) -> Any:
    """What a call gives, or None where it says what is wrong. Everything else it raises goes through."""
    try:
        return call()
    except CheckpointError as error:
        sentence(error)
        return None


def read_in_every_way(folder: Path) -> bool:
    """Reads a checkpoint by each door; whether the whole of it could be read."""
    reason = validate(str(folder))
    assert reason is None or (isinstance(reason, str) and reason.isprintable())
    found = last_checkpoint(str(folder.parent))
    assert (found == str(folder)) == (reason is None)
    contents = one_sentence(lambda: load_checkpoint(str(folder), model=Extra()))
    one_sentence(lambda: read_run(str(folder)))
    model = Extra()
    one_sentence(lambda: load_weights(model, str(folder)))
    assert all(isinstance(value, torch.Tensor) for value in dict(model.named_parameters()).values())
    return contents is not None


def resume(folder: Path, output: Path, **values: Any) -> Trainer | None:
    """The trainer that has gone on from a checkpoint to its end, or None where that was refused in a sentence."""
    settings = {"save_strategy": "no", "load_best_model_at_end": False, "metric_for_best_model": "loss"}
    resumed = run_of(output, allow_resume_changes=True, **(settings | values))
    try:
        resumed.train(resume_from_checkpoint=str(folder))
    except (CheckpointError, ConfigurationError) as error:
        if isinstance(error, CheckpointError):
            sentence(error)
        return None
    assert isinstance(resumed.state.global_step, int)
    assert isinstance(resumed.state.log_history, list)
    return resumed


TAGS = (
    "$tensor", "$array", "$scalar", "$int", "$float", "$complex", "$bytes", "$dtype", "$device", "$size",
    "$tuple", "$dict", "$ordered", "$counter", "$set", "$frozenset", "$deque", "$none",
)  # fmt: skip

STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63), 2**64 - 1, 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), float("-inf"), "", "x", "1", "\0", "\x1b[31m", "\ud800", "../x", "/etc/hostname", "step", "0" * 3000,
    [], [[]], [1], [None, 1.5], {}, {"": 1}, {"a": {"b": []}}, {"params": []}, {"params": [[]]},
    {"$tensor": "no such"}, {"$tensor": None}, {"$tensor": []}, {"$tensor": "first.weight/exp_avg"},
    {"$tensor": "torch", "dtype": "complex128", "shape": [-1]}, {"$tensor": "torch", "dtype": "_dynamo", "shape": []},
    {"$tensor": "torch", "dtype": "float64", "shape": [10**30]}, {"$tensor": "torch", "dtype": "bool", "shape": [5056]},
    {"$array": "torch", "dtype": "<f8", "shape": [632]}, {"$array": "torch", "dtype": "O", "shape": [1]},
    {"$array": "torch", "dtype": "V1000000000", "shape": [0, 5]}, {"$array": "torch", "dtype": "(1000000,)f4", "shape": [1]},
    {"$array": "torch", "dtype": "<U1264", "shape": [1]}, {"$array": "torch", "dtype": "f4,f4", "shape": [632]},
    {"$scalar": ["<V1000000000", ""]}, {"$scalar": ["<U0", ""]}, {"$scalar": ["<f4", "00"]}, {"$scalar": ["<f4", "0000803f"]},
    {"$scalar": ["O", "00"]}, {"$scalar": "x"}, {"$int": "0x" + "f" * 500}, {"$int": "-0x1"}, {"$int": 5}, {"$float": "nan"},
    {"$float": "1e999"}, {"$float": []}, {"$complex": ["nan", "0x1p9"]}, {"$complex": ["0x1p99999", "0"]}, {"$complex": "12"},
    {"$bytes": "zz"}, {"$bytes": "00ff"}, {"$dtype": "float16"}, {"$dtype": "_inductor"}, {"$dtype": "Tensor"},
    {"$device": "cuda:99"}, {"$device": "meta"}, {"$device": 0}, {"$device": "x" * 99}, {"$size": [2, 3]}, {"$size": [-1]},
    {"$size": [10**30]}, {"$size": "12"}, {"$tuple": []}, {"$tuple": [1, [2]]}, {"$tuple": 5}, {"$dict": [[[], 1]]},
    {"$dict": [[1, 2], [1, 3]]}, {"$dict": [1]}, {"$dict": {}}, {"$ordered": [["a", 1]]}, {"$counter": [["a", "b"]]},
    {"$set": [[1]]}, {"$set": [1, 1]}, {"$frozenset": ["a"]}, {"$deque": [-1, []]}, {"$deque": [2**70, []]},
    {"$deque": [None, [1]]}, {"$deque": "x"}, {"$none": 1}, {"$": 1},
]  # fmt: skip

KEYS = (
    "step",
    "optimizer",
    "get_lr",
    "__class__",
    "__dict__",
    "load_state_dict",
    "params",
    "lr",
    "$tuple",
    "",
    "extra",
    "0",
)


def strange(choose: Callable[[int], int]) -> Any:
    """One of the strange values."""
    return copy.deepcopy(STRANGE[choose(len(STRANGE))])


def walk(tree: Any, choose: Callable[[int], int]) -> Iterator[tuple[Any, Any]]:
    """From a tree's root downwards: (container, key) of a node, of one in it, and so on, as `choose(count)` says."""
    holder, key = {"": tree}, ""
    while True:
        yield holder, key
        value = holder[key]
        if isinstance(value, dict) and value:
            holder, key = value, list(value)[choose(len(value))]
        elif isinstance(value, list) and value:
            holder, key = value, choose(len(value))
        else:
            return


def mutated(tree: Any, choose: Callable[[int], int]) -> Any:
    """A tree with something in it changed: a value replaced, a key removed, added or renamed, a node put elsewhere.

    Args:
        tree: of JSON; it is changed.
        choose: a number below the one that it is given.
    """
    root = {"": tree}
    for _ in range(1 + choose(3)):
        nodes = list(walk(root[""], choose))
        holder, key = nodes[choose(len(nodes))]
        if key == "" and holder.get("") is root[""]:
            holder = root
        what = choose(8)
        if what == 0 and holder is not root:
            del holder[key]
        elif what == 1 and isinstance(holder[key], dict):
            holder[key][KEYS[choose(len(KEYS))]] = strange(choose)
        elif what == 2 and isinstance(holder[key], dict):
            holder[key] = {TAGS[choose(len(TAGS))]: strange(choose), "dtype": "<f4", "shape": [1]}
        elif what == 3:
            other, place = nodes[choose(len(nodes))]
            holder[key] = json.loads(json.dumps(other[place]))
        elif what == 4 and isinstance(holder[key], list):
            holder[key] = holder[key] * (1 + choose(50))
        elif what == 5:
            holder[key] = [holder[key]]
        else:
            holder[key] = strange(choose)
    return root[""]


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what follows it."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Any, data: bytes, claim: int | None = None) -> bytes:
    """A safetensors file of a header, whatever it says."""
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 8)
    return (len(text) if claim is None else claim).to_bytes(8, "little") + text + data


HEADERS: list[Any] = [
    "F4", "F64", "I64", "U8", "BOOL", "BF16", "F8_E8M0", "C64", "", [0], [-1], [2**63], [2**64, 0], [1] * 70, [0, 0],
    [8, 4], [0, 2**62], [2**63, 2**64], [1, 2], None, {}, "x", 10**40, 1.5,
]  # fmt: skip
