"""Label smoothing against transformers 4.34.0's numbers and torch's cross entropy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from drivetrain.smoothing import LabelSmoother, predicts_next_token


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 5, 4, generator=generator)
    labels = torch.randint(0, 4, (2, 5), generator=generator)
    labels[0, 1] = labels[1, 4] = -100
    return logits, labels


# Computed by transformers 4.34.0's LabelSmoother(0.1) on the inputs above.
@pytest.mark.parametrize(("shift", "expected"), [(False, 1.477100133895874), (True, 1.770479679107666)])
def test_numbers_are_those_of_transformers(shift, expected):
    logits, labels = inputs()
    smoother = LabelSmoother(0.1)
    for outputs in ({"loss": 0, "logits": logits}, (logits, "more")):
        assert smoother(outputs, labels, shift_labels=shift).item() == pytest.approx(expected, rel=1e-6)


def test_it_is_torchs_label_smoothing_with_its_gradient():
    logits, labels = inputs()
    logits.requires_grad_()
    ours = LabelSmoother(0.3)({"logits": logits}, labels)
    theirs = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.3)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    (a,) = torch.autograd.grad(ours, logits)
    (b,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(a, b)


def test_labels_with_a_last_dimension_of_one_and_plain_logits():
    logits, labels = inputs()
    smoother = LabelSmoother(0.1)
    assert smoother(logits, labels.unsqueeze(-1)) == smoother({"logits": logits}, labels)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(3, 70_000, dtype=torch.float16)
    assert torch.isfinite(LabelSmoother(0.1)({"logits": logits}, torch.tensor([1, 2, 3]))).item()


def test_who_predicts_the_next_token():
    transformers = pytest.importorskip("transformers")
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))

    class Own(transformers.GPT2LMHeadModel):
        pass

    class TinyForCausalLM(nn.Module):  # not transformers': its labels may be anything
        pass

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    assert predicts_next_token(gpt)
    assert predicts_next_token(Own(gpt.config))
    assert predicts_next_token(Wrapper(gpt))
    assert predicts_next_token(torch.compile(gpt, backend="eager"))
    bert = transformers.BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    assert not predicts_next_token(transformers.BertForMaskedLM(bert))
    assert not predicts_next_token(TinyForCausalLM())
    assert not predicts_next_token(nn.Linear(2, 2))


def test_every_causal_name_of_transformers_is_known():
    modeling = pytest.importorskip("transformers.models.auto.modeling_auto")
    names = {
        one
        for found in modeling.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        for one in (found if isinstance(found, tuple) else (found,))
    }
    unknown = {
        name
        for name in names
        if not predicts_next_token(type(name, (nn.Module,), {"__module__": "transformers.models.x"})())
    }
    # Multimodal models are trained through the same mapping; they shift their labels themselves.
    assert all("ForCausalLM" not in name and "LMHead" not in name for name in unknown), unknown
