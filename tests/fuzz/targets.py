"""What is fuzzed: each target takes bytes, and fails where anything but a sentence comes of them.

bytes       the first says which file of a checkpoint is replaced, the others by what
tree        a JSON file of a checkpoint with values, keys and tags put elsewhere, as the bytes choose
header      the same with the header of a file of tensors
unpack      bytes that are JSON, as the packed form of a state
manifest    bytes as a manifest
pickle      bytes as pytorch_model.bin
resume      as `tree`, and a trainer goes on from it
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from support import forge

from drivetrain.checkpoint import load_weights, unpack, validate

Choose = Callable[[int], int]
TENSORS = {"a": torch.arange(64, dtype=torch.uint8), "b": torch.zeros(3, 2)}


class Bench:
    """A real checkpoint, and a place where forged ones are put."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="drivetrain-fuzz-"))
        forge.run_of(self.folder / "run").train()
        self.checkpoint = self.folder / "run" / "checkpoint-2"
        self.names = sorted(path.name for path in self.checkpoint.iterdir())
        self.place = self.folder / "forged" / "checkpoint-2"
        torch.save(forge.Extra().state_dict(), self.folder / "pytorch_model.bin")

    def close(self) -> None:
        """Removes all of it."""
        shutil.rmtree(self.folder)

    def forged(self, name: str, content: bytes) -> Path:
        """The checkpoint with another content of one of its files."""
        return forge.forged(self.checkpoint, self.place, {name: content})

    def contents(self, ending: str = "") -> Iterator[tuple[int, bytes]]:
        """Number and content of the files."""
        for number, name in enumerate(self.names):
            if name.endswith(ending):
                yield number, (self.checkpoint / name).read_bytes()


def target_bytes(bench: Bench, data: bytes) -> None:
    if data:
        forge.read_in_every_way(bench.forged(bench.names[data[0] % len(bench.names)], data[1:]))


def target_tree(bench: Bench, data: bytes) -> None:
    name, content = _tree(bench, choices(data))
    forge.read_in_every_way(bench.forged(name, content))


def target_resume(bench: Bench, data: bytes) -> None:
    name, content = _tree(bench, choices(data))
    forge.resume(bench.forged(name, content), bench.folder / "resumed")


def _tree(bench: Bench, choose: Choose) -> tuple[str, bytes]:
    names = [name for name in bench.names if name.endswith(".json")]
    name = names[choose(len(names))]
    tree = forge.mutated(json.loads((bench.checkpoint / name).read_text()), choose)
    return name, json.dumps(tree).encode()


def target_header(bench: Bench, data: bytes) -> None:
    choose = choices(data)
    names = [name for name in bench.names if name.endswith(".safetensors")]
    name = names[choose(len(names))]
    header, body = forge.header_of((bench.checkpoint / name).read_bytes())
    tensor = sorted(header)[choose(len(header))]
    if choose(2):
        header = forge.mutated(header, choose)
    else:
        key = sorted(header[tensor])[choose(len(header[tensor]))]
        header[tensor][key] = forge.HEADERS[choose(len(forge.HEADERS))]
    claims = (None, None, None, 0, 7, 100 << 20, 2**63, 2**64 - 1)
    forge.read_in_every_way(bench.forged(name, forge.with_header(header, body, claims[choose(len(claims))])))


def target_unpack(bench: Bench, data: bytes) -> None:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return
    forge.one_sentence(lambda: unpack(tree, TENSORS))


def target_manifest(bench: Bench, data: bytes) -> None:
    folder = forge.forged(bench.checkpoint, bench.place, {"manifest.json": data}, seal=False)
    reason = validate(str(folder))
    assert reason is None or reason.isprintable(), reason


def target_pickle(bench: Bench, data: bytes) -> None:
    folder = bench.folder / "pickled"
    folder.mkdir(exist_ok=True)
    (folder / "pytorch_model.bin").write_bytes(data)
    forge.one_sentence(lambda: load_weights(forge.Extra(), str(folder)))


TARGETS: dict[str, Callable[[Bench, bytes], None]] = {
    "bytes": target_bytes,
    "tree": target_tree,
    "header": target_header,
    "unpack": target_unpack,
    "manifest": target_manifest,
    "pickle": target_pickle,
    "resume": target_resume,
}


def seeds(bench: Bench, target: str) -> Iterator[bytes]:
    """What a target begins with: the files of a real checkpoint."""
    if target == "bytes":
        yield from (bytes([number]) + content for number, content in bench.contents())
    elif target == "unpack":
        for _, content in bench.contents(".json"):
            yield from (json.dumps(value).encode() for value in json.loads(content).values())
        yield from (json.dumps(value).encode() for value in forge.STRANGE)
    elif target == "manifest":
        yield (bench.checkpoint / "manifest.json").read_bytes()
    elif target == "pickle":
        yield (bench.folder / "pytorch_model.bin").read_bytes()
    else:
        yield from (bytes(range(start, start + 40)) for start in range(0, 200, 10))


def choices(data: bytes) -> Choose:
    """Bytes as decisions, two for each; when they are used up it is always the first."""
    left = iter(data)
    return lambda count: (next(left, 0) * 256 + next(left, 0)) % count
