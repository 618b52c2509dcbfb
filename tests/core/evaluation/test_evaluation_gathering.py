"""Putting results of batches together."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.evaluation import denumpify, nested_concat, nested_detach, nested_numpify
from drivetrain.gathering import collect_rows, concatenate

Pair = namedtuple("Pair", "a b")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=6), st.booleans())
def test_dimension_1_is_padded(shapes, as_tensors):
    arrays = [np.arange(rows * width, dtype=np.float32).reshape(rows, width) for rows, width in shapes]
    chunks = [torch.from_numpy(array) for array in arrays] if as_tensors else arrays
    whole = np.asarray(concatenate(chunks))
    assert whole.shape == (sum(rows for rows, _ in shapes), max(width for _, width in shapes))
    assert whole.dtype == np.float32
    row = 0
    for array in arrays:
        part = whole[row : row + len(array)]
        assert np.array_equal(part[:, : array.shape[1]], array)
        assert (part[:, array.shape[1] :] == -100).all()
        row += len(array)


def test_further_dimensions_are_kept_and_must_agree():
    assert concatenate([torch.ones(1, 2, 3), torch.ones(2, 4, 3)]).shape == (3, 4, 3)
    with pytest.raises(ValueError, match=r"shapes .*preprocess_logits_for_metrics"):
        concatenate([torch.ones(1, 2, 3), torch.ones(1, 2, 4)])


def test_structures_are_followed():
    chunk = {"a": (torch.ones(1), [np.zeros((1, 2))]), "p": Pair(torch.tensor(1), torch.tensor(2))}
    whole = concatenate([chunk, chunk, chunk])
    assert whole["a"][0].shape == (3,)
    assert whole["a"][1][0].shape == (3, 2)
    assert isinstance(whole["p"], Pair)
    assert whole["p"].b.tolist() == [2, 2, 2]
    with pytest.raises(TypeError, match="different structure"):
        concatenate([(torch.ones(1),), (torch.ones(1), torch.ones(1))])
    with pytest.raises(TypeError, match="A str cannot"):
        concatenate(["a", "b"])


def test_nested_concat_is_of_two():
    assert nested_concat(torch.ones(1, 1), torch.zeros(1, 2), padding_index=7).tolist() == [[1, 7], [0, 0]]
    with pytest.raises(TypeError):
        nested_concat(torch.ones(1), np.ones(1))


def test_arrays_of_tensors():
    given = OrderedDict(a=torch.ones(2, dtype=torch.bfloat16), b=[torch.ones(1, requires_grad=True)])
    arrays = nested_numpify(given)
    assert isinstance(arrays, OrderedDict)
    assert arrays["a"].dtype == np.float32
    assert arrays["b"][0].tolist() == [1.0]
    assert not nested_detach(given)["b"][0].requires_grad


def test_numbers_of_metrics():
    metrics = {"a": np.float32(0.5), "b": torch.tensor([1]), "c": [np.int64(1)], "d": "x", "e": torch.ones(2)}
    plain = denumpify(metrics)
    assert type(plain["a"]) is float
    assert type(plain["b"]) is int
    assert type(plain["c"][0]) is int
    assert plain["e"].shape == (2,)


def test_one_process_collects_nothing():
    value = object()
    assert collect_rows(value, (3,), 0, None) is value
