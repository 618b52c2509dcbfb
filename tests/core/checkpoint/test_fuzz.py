"""Whatever a checkpoint's files hold, reading it and going on from it ends well, or in one sentence.

Everything here is sealed: whoever changes a file can write its checksum too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz.targets import TARGETS, Bench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import forge


def bounded(examples: int) -> Any:
    """The same examples at every run, as many as the normal session has time for."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with its checkpoints: one at the end of an epoch with an accumulation under way, and the last."""
    folder = tmp_path_factory.mktemp("real")
    forge.run_of(folder).train()
    return folder


@pytest.fixture(scope="module")
def checkpoint(real: Path) -> Path:
    found = real / "checkpoint-2"
    names = {path.name for path in found.iterdir()}
    assert names >= {
        "gradients.safetensors", "manifest.json", "model.safetensors", "model_extra.json", "optimizer.json",
        "optimizer.safetensors", "random-0.json", "random-0.safetensors", "run.json", "run.safetensors", "scheduler.json",
        "trainer_state.json", "training_args.json",
    }  # fmt: skip
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forged")


def test_what_is_not_forged_is_read_and_gone_on_from(checkpoint: Path, place: Path) -> None:
    folder = forge.forged(checkpoint, place / "checkpoint-2", {})
    assert forge.read_in_every_way(folder)
    resumed = forge.resume(folder, place / "resumed")
    assert resumed is not None
    assert resumed.state.global_step == 5


def choosing(data: st.DataObject) -> Any:
    return lambda count: data.draw(st.integers(0, count - 1))


@bounded(120)
@given(data=st.data())
def test_bytes_changed(checkpoint: Path, place: Path, data: st.DataObject) -> None:
    names = sorted(path.name for path in checkpoint.iterdir())
    name = data.draw(st.sampled_from(names))
    content = bytearray((checkpoint / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "splice"]))
        if kind == "flip" and at < len(content):
            content[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del content[at : at + data.draw(st.sampled_from([1, 8, 100, 10**9]))]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(max_size=9))
        else:
            other = (checkpoint / data.draw(st.sampled_from(names))).read_bytes()
            content[at:] = other[data.draw(st.integers(0, len(other))) :]
    forge.read_in_every_way(forge.forged(checkpoint, place / "checkpoint-2", {name: bytes(content)}))


@bounded(200)
@given(data=st.data())
def test_values_changed(checkpoint: Path, place: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in checkpoint.glob("*.json"))))
    tree = forge.mutated(json.loads((checkpoint / name).read_text()), choosing(data))
    forge.read_in_every_way(
        forge.forged(checkpoint, place / "checkpoint-2", {name: json.dumps(tree).encode()})
    )


@bounded(120)
@given(data=st.data())
def test_headers_changed(checkpoint: Path, place: Path, data: st.DataObject) -> None:
    choose = choosing(data)
    name = data.draw(st.sampled_from(sorted(path.name for path in checkpoint.glob("*.safetensors"))))
    header, body = forge.header_of((checkpoint / name).read_bytes())
    tensor = data.draw(st.sampled_from(sorted(header)))
    if choose(2):
        header = forge.mutated(header, choose)
    elif choose(3):
        header[tensor][data.draw(st.sampled_from(sorted(header[tensor])))] = data.draw(
            st.sampled_from(forge.HEADERS)
        )
    else:
        header[data.draw(st.sampled_from(["../x", "/x", "", "__metadata__", "a\0b", "x" * 5000]))] = (
            header.pop(tensor)
        )
    claim = data.draw(st.sampled_from([None, None, None, 0, 7, 100 << 20, 2**63, 2**64 - 1]))
    content = forge.with_header(header, body, claim)
    forge.read_in_every_way(forge.forged(checkpoint, place / "checkpoint-2", {name: content}))


@bounded(60)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")  # torch and numpy warn of what they are asked to do
def test_a_run_goes_on_or_says_why_not(checkpoint: Path, place: Path, data: st.DataObject) -> None:
    changed = ["run.json", "optimizer.json", "scheduler.json", "random-0.json", "trainer_state.json", "training_args.json",
               "model_extra.json"]  # fmt: skip
    name = data.draw(st.sampled_from(changed))
    tree = forge.mutated(json.loads((checkpoint / name).read_text()), choosing(data))
    folder = forge.forged(checkpoint, place / "checkpoint-2", {name: json.dumps(tree).encode()})
    forge.resume(folder, place / "resumed")


@pytest.mark.parametrize(
    "name", ["run.json", "optimizer.json", "trainer_state.json", "manifest.json", "model_extra.json"]
)
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "", "\xff\xfe", '{"a": 1} x'])
def test_no_json_at_all(checkpoint: Path, place: Path, name: str, text: str) -> None:
    with warnings.catch_warnings():
        folder = forge.forged(checkpoint, place / "checkpoint-2", {name: text.encode("latin-1")})
        assert not forge.read_in_every_way(folder)


FOUND = sorted((Path(__file__).parents[2] / "fuzz" / "found").iterdir())


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_a_fuzzer_found_once(bench: Bench, path: Path) -> None:
    TARGETS[path.name.partition("-")[0]](bench, path.read_bytes())
