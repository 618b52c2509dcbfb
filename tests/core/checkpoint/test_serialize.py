"""Every value comes back as it was: type by type, bit by bit."""

from __future__ import annotations

import enum
import json
import math
import struct
from collections import Counter, OrderedDict, deque, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.checkpoint.serialize import escape, pack, unpack
from drivetrain.errors import CheckpointError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float8_e4m3fn, torch.complex64,
    torch.complex128,
]  # fmt: skip


def there_and_back(value: Any, tmp_path: Any = None) -> Any:
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(pack(value, tensors), allow_nan=False)
    if tmp_path is not None:
        from drivetrain.checkpoint.tensors import read_tensors, write_tensors

        write_tensors(str(tmp_path / "t.safetensors"), tensors)
        tensors = read_tensors(str(tmp_path / "t.safetensors"))
    return unpack(json.loads(text), tensors)


def same(a: Any, b: Any) -> bool:
    """Equal in type, structure, order and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        raw = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        return torch.equal(*raw)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(k, m) and same(v, w) for (k, v), (m, w) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, deque):
        return a.maxlen == b.maxlen and same(list(a), list(b))
    return bool(a == b)


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def build(dtype: torch.dtype, shape: list[int], raw: bytes) -> torch.Tensor:
        count = math.prod(shape)
        size = torch.empty((), dtype=dtype).element_size()
        data = (raw * (count * size // max(len(raw), 1) + 1))[: count * size] if raw else bytes(count * size)
        if dtype == torch.bool:
            data = bytes(b & 1 for b in data)
        flat = (
            torch.frombuffer(bytearray(data), dtype=torch.uint8).clone()
            if data
            else torch.empty(0, dtype=torch.uint8)
        )
        return flat.view(dtype).reshape(shape)

    shapes = st.lists(st.integers(0, 3), max_size=3)
    return st.builds(build, st.sampled_from(DTYPES), shapes, st.binary(max_size=9))


def arrays() -> st.SearchStrategy[Any]:
    def build(dtype: str, values: list[int], scalar: bool) -> Any:
        array = np.array(values).astype(dtype)
        return array[0] if scalar else array.reshape(1, -1)

    return st.builds(
        build,
        st.sampled_from(["u1", "i8", "f4", "f8", "f2", "c16", "?", "u4", "<U3", "M8[s]"]),
        st.lists(st.integers(0, 100), min_size=1, max_size=4),
        st.booleans(),
    )


KEYS = st.one_of(
    st.text(max_size=5), st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False), st.tuples(st.integers(), st.text(max_size=2)),
    st.sampled_from(["$tuple", "$", "$tensor", "a/b", "a%2Fb", "", "0"]),
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(min_value=2**62), st.floats(), st.complex_numbers(), st.text(max_size=8),
    st.binary(max_size=8), tensors(), arrays(), st.sampled_from([torch.float16, torch.device("cuda:1"), torch.Size([2, 3])]),
    st.frozensets(st.integers(), max_size=3), st.sets(st.text(max_size=2), max_size=3),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
        st.dictionaries(KEYS, st.integers(), max_size=3).map(Counter),
        st.builds(deque, st.lists(inner, max_size=3), st.sampled_from([None, 3, 7])),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_any_value_comes_back(value: Any) -> None:
    assert same(there_and_back(value), value)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_any_value_comes_back_through_files(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    assert same(there_and_back(value, tmp_path_factory.mktemp("files")), value)


@given(
    st.lists(st.text(max_size=4), min_size=1, max_size=4),
    st.lists(st.text(max_size=4), min_size=1, max_size=4),
)
def test_escaped_parts_are_unambiguous(a: list[str], b: list[str]) -> None:
    assert ("/".join(map(escape, a)) == "/".join(map(escape, b))) == (a == b)


def test_names_of_tensors_cannot_collide() -> None:
    value = {1: torch.tensor(1), "1": torch.tensor(2), "a": {"b": torch.tensor(3)}, "a/b": torch.tensor(4)}
    found: dict[str, torch.Tensor] = {}
    tree = pack(value, found)
    assert len(found) == 4
    assert same(unpack(tree, found), value)


def test_a_tensor_met_twice_is_one_tensor_again() -> None:
    shared = torch.arange(4.0)
    found: dict[str, torch.Tensor] = {}
    back = unpack(pack([shared, {"again": shared}], found), found)
    assert len(found) == 1
    assert back[0] is back[1]["again"]


def test_no_copy_is_made_of_a_tensor() -> None:
    tensor = torch.arange(4.0)
    found: dict[str, torch.Tensor] = {}
    pack({"x": tensor}, found)
    assert found["x"].data_ptr() == tensor.data_ptr()


class Colour(enum.Enum):
    RED = 1


class Own:
    pass


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (Colour.RED, "Colour"),
        (Own(), "Own"),
        (Point(1, 2), "Point"),
        (print, "builtin_function_or_method"),
        (torch.nn.Parameter(torch.ones(1)), "Parameter"),
        (np.array([object()]), "numpy array of object"),
        (torch.ones(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
    ],
)
def test_what_cannot_be_stored_is_named_by_its_path(bad: Any, kind: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        pack({"callback": [1, {"best": bad}]}, {}, what="callback_states")
    assert "callback_states['callback'][1]['best']" in str(caught.value)
    assert kind in str(caught.value)
    assert str(caught.value).endswith("in it.")
    assert "\n" not in str(caught.value)


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="contains itself"):
        pack(loop, {})
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(CheckpointError, match="nested too deeply"):
        pack(deep, {})


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(
                [
                    "$tuple",
                    "$dict",
                    "$float",
                    "$tensor",
                    "$array",
                    "$scalar",
                    "$int",
                    "$bytes",
                    "$dtype",
                    "$device",
                    "$size",
                    "$deque",
                    "$counter",
                    "$set",
                    "$complex",
                    "$ordered",
                    "$frozenset",
                    "$other",
                    "dtype",
                    "shape",
                    "a",
                ]
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=10,
)


@settings(max_examples=400, deadline=None)
@given(JSON_VALUES)
def test_a_strange_tree_is_an_error_or_a_value_and_never_a_crash(tree: Any) -> None:
    try:
        unpack(tree, {"a": torch.arange(4, dtype=torch.uint8)})
    except CheckpointError:
        return


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"scheduler names the tensor 'x', which is not in its file"):
        unpack({"$tensor": "x"}, {}, what="scheduler")
