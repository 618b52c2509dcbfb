"""Outputs of a forward pass under autocast, in float32."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType

import pytest
import torch

from drivetrain.precision_outputs import to_fp32

HALF = torch.ones(2, dtype=torch.bfloat16)
FULL = torch.ones(2)
Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors(dtype):
    assert to_fp32(torch.ones(2, dtype=dtype)).dtype is torch.float32


@pytest.mark.parametrize(
    "kept", [FULL, torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.int8), 3, "x", None]
)
def test_what_is_not_half_is_the_same_object(kept):
    assert to_fp32(kept) is kept
    outputs = {"a": kept, "b": (kept, [kept])}
    assert to_fp32(outputs) is outputs


def test_nested_containers_keep_their_types_and_are_not_changed():
    for make in (dict, OrderedDict, UserDict, MappingProxyType):
        outputs = make({"loss": HALF, "rest": (FULL, [HALF, Pair(HALF, 1)])})
        found = to_fp32(outputs)
        assert type(found) is type(outputs)
        assert list(found) == ["loss", "rest"]
        assert found["loss"].dtype is torch.float32
        assert found["rest"][0] is FULL
        assert found["rest"][1][0].dtype is torch.float32
        assert type(found["rest"][1][1]) is Pair
        assert found["rest"][1][1].first.dtype is torch.float32
        assert outputs["loss"] is HALF
        assert outputs["rest"][1][0] is HALF


def test_outputs_of_transformers():
    modeling = pytest.importorskip("transformers.modeling_outputs")
    outputs = modeling.SequenceClassifierOutput(loss=HALF, logits=HALF, hidden_states=(HALF, FULL))
    found = to_fp32(outputs)
    assert type(found) is type(outputs)
    assert found.loss.dtype is found["logits"].dtype is found.hidden_states[0].dtype is torch.float32
    assert found.hidden_states[1] is FULL
    assert found[0] is found.loss
    assert outputs.loss is HALF
    assert outputs["hidden_states"][0] is HALF


def test_gradients_flow_through():
    x = torch.ones(2, requires_grad=True)
    to_fp32({"y": x.to(torch.bfloat16)})["y"].sum().backward()
    assert x.grad is not None
