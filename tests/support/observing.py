"""All that can be seen of a run from outside: weights, log, files, results, messages, and calls of the engine.

The arguments' own record is left out (training_args.json, and the configuration within run.json): a value that only
comes back as what it was set to has changed nothing. So is what the clock says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import random
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode, resolve_name

PLACES = ("weights", "log", "results", "files", "messages", "calls", "operations")

# How the engine is asked for what an argument means; each call is written down, and made.
ENTRIES: tuple[tuple[Any, str], ...] = (
    (torch, "compile"),
    (torch.jit, "trace"),
    (torch, "use_deterministic_algorithms"),
    (torch.utils.data.DataLoader, "__init__"),
    (threading.Thread, "start"),
)

_OWN_RECORD = {"configuration", "arguments", "plugins"}
_UNREAD = {"training_args.json", "manifest.json", "drivetrain-record.jsonl"}
_OF_THE_CLOCK = ("Time: ", "Spent on: ", "Plugins: ")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+|\d+\.\d+(e-?\d+)?|\b\d+(?= ?(ms|s|B|kB|KB|MB|GB|rows/s)\b)")


@dataclass
class Seen:
    """What a scene leaves to be looked at; it fills this as it goes, so that an error leaves what there is."""

    trainer: Any = None
    results: list[Any] = field(default_factory=list)


@dataclass
class Observation:
    """What was seen of one run.

    Attributes:
        weights: a digest of each entry of the model's state.
        log: the rows of the log.
        results: what train, evaluate and predict gave back.
        files: a digest of each file, by its path below the folder.
        messages: the log's lines, what was printed, warnings, and the error that ended the run.
        calls: of `ENTRIES`, with their plain arguments.
        operations: the functions of torch that were called, in their order; empty unless asked for.
        error: what ended the run.
    """

    weights: Any = None
    log: Any = None
    results: Any = None
    files: Any = None
    messages: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    error: Exception | None = None

    def differences(self, other: Observation) -> list[str]:
        """The places in which two runs are not equal."""
        return [place for place in PLACES if getattr(self, place) != getattr(other, place)]

    def said(self, sentence: str) -> bool:
        """Whether a message holds a sentence."""
        return any(sentence in message for message in self.messages)


def observe(scene: Callable[[Seen, Path], None], folder: Path, operations: bool = False) -> Observation:
    """Runs a scene in an empty folder, from the same random numbers.

    Args:
        scene: is given what it fills, and the folder.
        folder: for all files of the run.
        operations: also write down every function of torch that is called.
    """
    seen, found, heard = Seen(), Observation(), _Heard()
    log, printed = logging.getLogger("drivetrain"), io.StringIO()
    recorder = _Functions(found.operations) if operations else contextlib.nullcontext()
    log.addHandler(heard)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    try:
        with (
            _entries_watched(found.calls),
            warnings.catch_warnings(record=True) as warned,
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            recorder,
        ):
            warnings.simplefilter("always")
            try:
                scene(seen, folder)
            except Exception as error:
                found.error = error
    finally:
        log.removeHandler(heard)
        log.setLevel(logging.NOTSET)
    told = [*heard.lines, *re.split(r"[\r\n]+", printed.getvalue())]
    told += [f"{entry.category.__name__}: {entry.message}" for entry in warned]
    if found.error is not None:
        told.append(f"{type(found.error).__name__}: {found.error}")
    told = [line for line in told if line.strip() and not line.startswith(_OF_THE_CLOCK)]
    found.messages = [_NUMBER.sub("#", line.replace(str(folder), "FOLDER")) for line in told]
    if seen.trainer is not None:
        state = seen.trainer.model.state_dict()
        found.weights = {name: _digest(tensor) for name, tensor in state.items()}
        found.log = _without_clock(seen.trainer.state.log_history)
    found.results = _plain(seen.results)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    found.files = {_name(path.relative_to(folder)): _content(path) for path in paths}
    return found


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")


class _Functions(TorchFunctionMode):  # type: ignore[misc]
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(resolve_name(function)))
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _entries_watched(calls: list[str]) -> Iterator[None]:
    def watched(name: str, original: Any) -> Any:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("torch._"):
                return original(*args, **kwargs)  # the engine's own doing
            plain = [value for value in args if isinstance(value, (bool, int, str))]
            named = {
                key: value for key, value in sorted(kwargs.items()) if isinstance(value, (bool, int, str))
            }
            whose = args[0].name if args and isinstance(args[0], threading.Thread) else ""
            calls.append(f"{name}{whose} {plain} {named}")
            return original(*args, **kwargs)

        return call

    kept = [(owner, name, getattr(owner, name)) for owner, name in ENTRIES]
    for owner, name, original in kept:
        setattr(owner, name, watched(f"{getattr(owner, '__name__', owner)}.{name}", original))
    try:
        yield
    finally:
        for owner, name, original in kept:
            setattr(owner, name, original)


def _digest(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    data = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
    return hashlib.sha256(data).hexdigest()[:12]


def _is_clock(name: str) -> bool:
    return "runtime" in name or "per_second" in name or name.startswith(("train_mem", "eval_mem", "init_mem"))


def _without_clock(value: Any) -> Any:
    """Plain data; a figure that the clock or the memory gives is only there or not."""
    if isinstance(value, dict):
        return {key: "#" if _is_clock(str(key)) else _without_clock(entry) for key, entry in value.items()}
    return [_without_clock(entry) for entry in value] if isinstance(value, (list, tuple)) else repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return (str(value.dtype), tuple(value.shape), _digest(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: "#" if _is_clock(str(key)) else _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else repr(value)


def _name(path: Path) -> str:
    """Files of TensorBoard bear the time, the machine and the process in their names."""
    return re.sub(r"(events\.out\.tfevents).*|(runs/)[^/]+", r"\1\2", path.as_posix())


def _content(path: Path) -> Any:
    if path.name in _UNREAD or "tfevents" in path.name:
        return ""
    if path.suffix != ".json":
        return _digest(path.read_bytes())
    read = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(read, dict):
        read = {key: value for key, value in read.items() if key not in _OWN_RECORD}
    return json.dumps(_without_clock(read), sort_keys=True).replace(str(path.parents[1]), "FOLDER")
