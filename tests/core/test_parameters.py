"""Parameter groups: the documented two, and those by pattern."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from drivetrain.errors import ConfigurationError
from drivetrain.parameters import get_decay_parameter_names, parameter_groups


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2))
        self.norm = nn.RMSNorm(4)
        self.bias_scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(4, 5)


def names_of(model: nn.Module, groups: list[dict]) -> list[list[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in groups]


def test_the_documented_groups():
    model = Small()
    decayed = ["embed.weight", "layers.0.0.weight", "layers.1.0.weight", "norm.weight", "head.weight"]
    # A name with "bias" anywhere is spared, and of normalisations LayerNorm alone, as in transformers 4.34.0.
    assert get_decay_parameter_names(model) == decayed
    groups = parameter_groups(model, 0.1)
    assert names_of(model, groups)[0] == decayed
    assert names_of(model, groups)[1] == [n for n, _ in model.named_parameters() if n not in decayed]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_both_groups_are_there_even_if_empty_and_frozen_parameters_are_in_none():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert [len(group["params"]) for group in groups] == [1, 0]
    torch.optim.AdamW(groups, lr=0.1, fused=True)


def test_tied_parameters_are_in_one_group():
    model = Small()
    model.head = nn.Linear(4, 5, bias=False)
    model.head.weight = model.embed.weight
    decayed, spared = names_of(model, parameter_groups(model, 0.1))
    assert (decayed + spared).count("embed.weight") == 1


def test_a_model_that_is_a_layer_norm_decays_its_weight():
    assert get_decay_parameter_names(nn.LayerNorm(3)) == ["weight"]


def test_layers_that_transformers_registers_are_spared():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config)
    from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS

    layers = tuple(ALL_LAYERNORM_LAYERS)
    spared = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, layers) and not isinstance(module, nn.LayerNorm)
    }
    assert not spared & set(get_decay_parameter_names(model))


# -- by pattern ------------------------------------------------------------------------------------------


def test_patterns_first_match_wins_and_decay_stays_as_it_would_be():
    model = Small()
    groups = parameter_groups(
        model,
        0.1,
        patterns=[
            {"match": "head.*", "lr": 1e-2},
            {"match": r"re:^layers\.\d+\.0\.", "lr": 1e-3, "weight_decay": 0.5},
            {"match": "layers.*", "lr": 1e-4},
        ],
        optimizer_class=torch.optim.AdamW,
    )
    assert names_of(model, groups) == [
        ["embed.weight", "norm.weight"],
        ["bias_scale"],
        ["head.weight"],
        ["head.bias"],
        ["layers.0.0.weight", "layers.0.0.bias", "layers.1.0.weight", "layers.1.0.bias"],
        ["layers.0.1.weight", "layers.0.1.bias", "layers.1.1.weight", "layers.1.1.bias"],
    ]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1, 0.0, 0.5, 0.0]
    assert [group.get("lr") for group in groups] == [None, None, 1e-2, 1e-2, 1e-3, 1e-4]
    optimizer = torch.optim.AdamW(groups, lr=5e-5)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-5, 5e-5, 1e-2, 1e-2, 1e-3, 1e-4]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            {"match": "heed.weight", "lr": 1},
            "no parameter matches 'heed.weight'. The nearest name is 'head.weight'.",
        ),
        ({"match": "head", "lr": 1}, "matches 'head'. Did you mean '*head*', which matches 'head.weight'?"),
        ({"match": r"^layers\.0", "lr": 1}, r"Did you mean the regular expression 're:^layers\.0'?"),
        ({"match": "re:(", "lr": 1}, "is not a regular expression"),
        (
            {"match": "embed*", "lr": 1},
            "'embed*' matches only frozen parameters, such as 'embed.weight'; remove it.",
        ),
        ({"match": "head.*", "lrr": 1}, "AdamW has no option 'lrr'. Did you mean 'lr'?"),
        ({"lr": 1}, 'param_groups[0] must be a dict with "match"'),
        ("head.*", 'param_groups[0] must be a dict with "match"'),
    ],
)
def test_mistakes_in_patterns(entry, sentence):
    model = Small()
    model.embed.weight.requires_grad_(False)
    with pytest.raises(ConfigurationError) as caught:
        parameter_groups(model, 0.1, patterns=[entry], optimizer_class=torch.optim.AdamW)
    assert len(caught.value.problems) == 1
    assert sentence in caught.value.problems[0]


def test_a_pattern_behind_another_that_takes_all_of_it():
    patterns = [{"match": "head.*", "lr": 1}, {"match": "head.weight", "lr": 2}, {"match": "no", "lr": 3}]
    with pytest.raises(ConfigurationError) as caught:
        parameter_groups(Small(), 0.1, patterns=patterns)
    taken, missing = caught.value.problems
    assert "all that 'head.weight' matches is taken by earlier patterns; put it before them." in taken
    assert "no parameter matches 'no'" in missing


def test_an_empty_model_and_a_class_whose_signature_does_not_tell():
    patterns = [{"match": "*", "anything": 1}]
    groups = parameter_groups(nn.Linear(1, 1), 0.0, patterns=patterns, optimizer_class=lambda *a, **k: None)
    assert groups[2]["anything"] == 1
