"""Moving batches, finding their size, and random states."""

import json
import random
from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch

from drivetrain.data import find_batch_size, randomness, to_device
from drivetrain.data.device import first_row

Pair = namedtuple("Pair", "a b")


class Encoding(UserDict):
    pass


def test_every_nesting_is_moved_and_kept():
    x = torch.ones(2)
    batch = {"x": x, "list": [x, 1], "pair": Pair(x, (x, "s")), "encoding": Encoding(x=x), "n": None}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"].device.type == "meta"
    assert moved["list"][0].device.type == "meta"
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].b[0].device.type == "meta"
    assert moved["pair"].b[1] == "s"
    assert isinstance(moved["encoding"], Encoding)
    assert moved["encoding"]["x"].device.type == "meta"
    assert batch["x"] is x


def test_what_is_there_is_not_touched_but_the_dict_is_new():
    batch = {"x": torch.ones(2)}
    moved = to_device(batch, torch.device("cpu"))
    assert moved["x"] is batch["x"]
    moved.pop("x")
    assert "x" in batch


def test_a_packed_sequence_is_moved():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])
    moved = to_device([packed], torch.device("cpu"))[0]
    assert isinstance(moved, torch.nn.utils.rnn.PackedSequence)


def test_batch_sizes_and_first_rows():
    assert find_batch_size({"a": "text", "b": [torch.tensor(1), torch.ones(3, 2)]}) == 3
    assert find_batch_size(Encoding(x=np.ones((4, 1)))) == 4
    assert find_batch_size("text") is None
    row = first_row({"x": torch.arange(4), "p": Pair(np.arange(3), [torch.tensor(1)]), "s": "text"})
    assert row["x"].tolist() == [0]
    assert row["p"].a.tolist() == [0]
    assert row["s"] == "text"


def numbers():
    return torch.rand(2).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1)


def test_random_states_survive_json():
    np.random.randn()  # leaves one number in store
    random.gauss(0, 1)
    state = randomness.from_json(json.loads(json.dumps(randomness.to_json(randomness.capture()))))
    first = numbers()
    randomness.restore(state)
    assert numbers() == first


@pytest.mark.parametrize(
    ("kind", "draw"),
    [("torch", torch.rand), ("numpy", np.random.rand), ("python", lambda n: random.random())],
)
def test_the_kind_that_was_drawn_from_is_seen(kind, draw):
    before = randomness.capture()
    assert randomness.drawn(before, randomness.capture()) == ()
    draw(1)
    assert randomness.drawn(before, randomness.capture()) == (kind,)


@pytest.mark.parametrize(
    ("kind", "draw"),
    [("torch", torch.rand), ("numpy", np.random.randn), ("python", lambda n: random.gauss(0, 1))],
)
def test_a_watch_tells_each_change_once(kind, draw):
    """Two draws of a normal number too: NumPy and Python keep the second of a pair, and draw nothing for it."""
    np.random.seed(0)
    random.seed(0)
    watch = randomness.Watch()
    assert watch.changed() == {}
    for _ in range(5):
        draw(1)
        changed = watch.changed()
        assert list(changed) == [kind]
        assert randomness.same(kind, changed[kind], randomness.capture((kind,))[kind])
        assert watch.changed() == {}


def test_a_watch_follows_another_generator_of_numpy():
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        watch = randomness.Watch()
        assert watch.changed() == {}
        np.random.rand()
        assert list(watch.changed()) == ["numpy"]
    finally:
        np.random.set_bit_generator(before)
