"""Optimizers against the numbers of transformers 4.34.0, against torch's, and over a save and load."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drivetrain.errors import ConfigurationError
from drivetrain.own_optimizer import own_optimizer_factory, parse_optim_args
from drivetrain.plugin import import_string
from drivetrain_plugins import optimizer as kind

FACTS = json.loads((Path(__file__).parent / "facts_4_34_0.json").read_text())
NAMES = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adafactor", "sgd", "adagrad", "rmsprop", "muon")


def plugin(name: str, **options: Any) -> Any:
    info = getattr(kind, name.upper())
    return import_string(info.implementation)(info.options_class()(**options))


def small_model() -> nn.Module:
    """The model of the facts: an embedding, two Linears, a LayerNorm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(11, 8), nn.Flatten(), nn.Linear(24, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5)
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, begin: int = 0, end: int = 50) -> list[float]:
    """Updates `begin` to `end` on the data of the facts; the losses."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 11, (200, 3), generator=generator)
    y = torch.randint(0, 5, (200,), generator=generator)
    losses = []
    for update in range(begin, end):
        rows = slice(4 * update % 200, 4 * update % 200 + 4)
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("case", FACTS)
def test_numbers_are_those_of_transformers(make_run, case):
    name, _, arguments = case.partition(" ")
    model = small_model()
    run = make_run(model, optim=name, **json.loads(arguments))
    optimizer = plugin(name).make_optimizer(run).build(model)
    losses = train(model, optimizer)
    assert losses == pytest.approx(FACTS[case]["losses"], rel=2e-5)
    for parameter_name, parameter in model.named_parameters():
        first = parameter.detach().flatten()[:4].tolist()
        assert first == pytest.approx(FACTS[case]["first"][parameter_name], rel=2e-5, abs=2e-6)
        norm = parameter.detach().double().norm().item()
        assert norm == pytest.approx(FACTS[case]["norms"][parameter_name], rel=2e-5, abs=1e-6)
    groups = [[len(group["params"]), group["weight_decay"]] for group in optimizer.param_groups]
    assert groups == FACTS[case]["groups"]


def test_adamw_torch_is_fused_where_it_can_be(make_run):
    model = small_model()
    optimizer = plugin("adamw_torch").make_optimizer(make_run(model)).build(model)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["fused"] is True
    losses = train(model, optimizer)

    model = small_model()
    plain = torch.optim.AdamW(model.parameters(), lr=5e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    assert losses == pytest.approx(train(model, plain), rel=1e-6)


def test_what_cannot_be_fused_is_not(make_run):
    model = nn.Module()
    model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    factory = plugin("adamw_torch").make_optimizer(make_run(model))
    assert "fused" not in factory.kwargs
    factory.build(model)
    with pytest.raises(ConfigurationError, match=r"dtype torch.complex64. Use optim='adamw_torch'\."):
        plugin("adamw_torch_fused").make_optimizer(make_run(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_floating_dtype_can_be_fused(make_run, dtype):
    model = nn.Linear(3, 2).to(dtype)
    optimizer = plugin("adamw_torch").make_optimizer(make_run(model, learning_rate=0.1)).build(model)
    assert optimizer.param_groups[0]["fused"] is True
    before = model.weight.detach().clone()
    model(torch.ones(1, 3, dtype=dtype)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.weight, before - 0.1, rtol=1e-2, atol=1e-2)


def test_class_and_kwargs_by_the_arguments_alone(make_run):
    run = make_run(learning_rate=0.1, adam_beta2=0.95)
    cls, kwargs = plugin("adamw_torch").class_and_kwargs(run.args)
    assert (cls, kwargs) == (torch.optim.AdamW, {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8})
    for name, expected in (("sgd", torch.optim.SGD), ("adagrad", torch.optim.Adagrad)):
        assert plugin(name).class_and_kwargs(run.args) == (expected, {"lr": 0.1})


@pytest.mark.parametrize("name", NAMES)
def test_state_is_found_again(make_run, name):
    model = small_model()
    factory = plugin(name).make_optimizer(make_run(model, optim=name, learning_rate=0.01, weight_decay=0.1))
    optimizer = factory.build(model)
    train(model, optimizer, 0, 5)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = train(model, optimizer, 5, 15)

    again = small_model()
    again.load_state_dict(weights)
    fresh = factory.build(again)
    fresh.load_state_dict(state)
    assert train(again, fresh, 5, 15) == expected


def test_adafactor_of_torch_gives_other_numbers():
    """Why Adafactor is our own: torch's cannot leave out the parameter's scale. Remove ours if this fails."""
    model = small_model()
    losses = train(model, torch.optim.Adafactor(model.parameters(), lr=1e-3))
    case = next(case for case in FACTS if case.startswith("adafactor") and "0.001" in case)
    assert losses != pytest.approx(FACTS[case]["losses"], rel=1e-3)


def test_adafactor_in_half_precision_keeps_its_state_in_float32(make_run):
    model = small_model().to(torch.bfloat16)
    optimizer = plugin("adafactor", beta1=0.9).make_optimizer(make_run(model)).build(model)
    train(model, optimizer, 0, 2)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {
        value.dtype
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    } == {torch.float32}


def test_adamw_hf_without_correction_takes_larger_first_steps(make_run):
    moved = []
    for text in (None, "correct_bias=false"):
        model = small_model()
        before = model[2].weight.detach().clone()
        run = make_run(model, optim="adamw_hf", optim_args=text, learning_rate=0.01)
        train(model, plugin("adamw_hf").make_optimizer(run).build(model), 0, 1)
        moved.append((model[2].weight - before).norm().item())
    # (1 - b1) / sqrt(1 - b2) = 3.16 times the step.
    assert moved[1] == pytest.approx(moved[0] * 0.1 / 0.001**0.5, rel=1e-3)


@pytest.mark.parametrize("name", ["adamw_hf", "adafactor"])
def test_closure_and_sparse_gradients(make_run, name):
    model = small_model()
    optimizer = plugin(name).make_optimizer(make_run(model)).build(model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.tensor([[1, 2, 3]])).sum()
        loss.backward()
        return loss

    assert torch.is_tensor(optimizer.step(closure))
    sparse = nn.Embedding(5, 2, sparse=True)
    optimizer = plugin(name).make_optimizer(make_run(sparse)).build(sparse)
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()


# -- muon ------------------------------------------------------------------------------------------------


def test_muon_takes_hidden_matrices_and_leaves_the_rest_to_adamw(make_run):
    model = small_model()
    run = make_run(model, optim="muon", learning_rate=0.01, weight_decay=0.1)
    optimizer = plugin("muon").make_optimizer(run).build(model)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = [
        (group["use_muon"], group["weight_decay"], [names[id(p)] for p in group["params"]])
        for group in optimizer.param_groups
    ]
    assert seen == [
        (False, 0.1, ["0.weight", "5.weight"]),  # embedding and head
        (False, 0.0, ["2.bias", "3.weight", "3.bias", "5.bias"]),
        (True, 0.1, ["2.weight"]),
    ]


def test_muon_is_torchs_muon_beside_torchs_adamw(make_run):
    model = small_model()
    run = make_run(model, optim="muon", learning_rate=0.01, weight_decay=0.1, adam_beta2=0.95)
    optimizer = plugin("muon").make_optimizer(run).build(model)
    losses = train(model, optimizer)

    again = small_model()
    muon = torch.optim.Muon([again[2].weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [{"params": [again[0].weight, again[5].weight], "weight_decay": 0.1}]
    rest.append({"params": [again[2].bias, *again[3].parameters(), again[5].bias], "weight_decay": 0.0})
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)

    class Both:
        def step(self) -> None:
            muon.step()
            adamw.step()

        def zero_grad(self) -> None:
            again.zero_grad()

    assert losses == train(again, Both())  # type: ignore[arg-type]
    assert losses[-1] < losses[0]


def test_muon_is_scheduled_and_copied_as_one_optimizer(make_run):
    model = small_model()
    optimizer = plugin("muon").make_optimizer(make_run(model, learning_rate=0.01)).build(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a scheduler that is stepped before its optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.0 if update else 1.0)
        scheduler.step()
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, 0, 3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    copied = copy.deepcopy(optimizer)
    assert [len(g["params"]) for g in copied.param_groups] == [
        len(g["params"]) for g in optimizer.param_groups
    ]


def test_muon_leaves_tied_and_named_parameters_to_adamw(make_run):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.hidden = nn.Linear(4, 4)
            self.special = nn.Linear(4, 4)
            self.head = nn.Linear(4, 7)
            self.head.weight = self.embed.weight

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    model = Tied()
    optimizer = plugin("muon", adamw=("special.*",)).make_optimizer(make_run(model)).build(model)
    muon = [p for group in optimizer.param_groups if group["use_muon"] for p in group["params"]]
    assert [id(p) for p in muon] == [id(model.hidden.weight)]
    with pytest.raises(ConfigurationError, match="no parameter matches adamw='nothing'"):
        plugin("muon", adamw=("nothing",)).make_optimizer(make_run(model))


# -- options ---------------------------------------------------------------------------------------------


def test_optim_args_set_typed_options(make_run):
    run = make_run(optim="sgd", optim_args="momentum = 0.9, nesterov=true", learning_rate=0.1)
    kwargs = plugin("sgd").class_and_kwargs(run.args)[1]
    assert kwargs == {"lr": 0.1, "momentum": 0.9, "nesterov": True}
    run = make_run(optim="adafactor", optim_args="eps=1e-20;1e-2,beta1=0.9")
    kwargs = plugin("adafactor").class_and_kwargs(run.args)[1]
    assert (kwargs["eps"], kwargs["beta1"]) == ((1e-20, 1e-2), 0.9)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "sgd",
            "momentun=0.9",
            "Optimizer 'sgd' (optim_args) has no option 'momentun'. Did you mean 'momentum'?",
        ),
        ("sgd", "momentum=high", "option 'momentum' must be a number, not 'high'"),
        ("sgd", "nesterov=true", "option 'nesterov' needs a momentum above 0"),
        ("sgd", "momentum=-1", "option 'momentum' must not be negative"),
        ("sgd", "lr=0.1", "optim_args must not set 'lr'; use learning_rate."),
        ("adamw_torch", "momentum", "must read 'key=value,key=value'; 'momentum' does not"),
        ("adafactor", "eps=1e-3", "option 'eps' must be 2 values, each a number, not '1e-3'"),
        ("muon", "adjust_lr_fn=best", "option 'adjust_lr_fn' must be one of 'match_rms_adamw', 'original'"),
        ("muon", "ns_steps=0", "option 'ns_steps' must lie between 1 and 99"),
    ],
)
def test_wrong_optim_args_are_one_sentence_before_the_run(make_run, name, text, sentence):
    args = make_run(optim=name, optim_args=text).args
    problems = getattr(kind, name.upper()).probe(args)
    assert len(problems) == 1
    assert sentence in problems[0]


def test_an_option_given_twice_is_refused(make_run):
    run = make_run(optim="sgd", optim_args="momentum=0.5")
    with pytest.raises(ConfigurationError, match=r"'momentum' is given twice, as 0\.9 and as 0\.5; keep one"):
        plugin("sgd", momentum=0.9).make_optimizer(run)


# -- an optimizer of the user's ----------------------------------------------------------------------------


def test_a_class_or_import_string(make_run):
    model = small_model()
    run = make_run(model, learning_rate=0.1, weight_decay=0.01, optim_args="momentum=0.9,nesterov=True")
    for own in (torch.optim.SGD, "torch.optim:SGD"):
        optimizer = own_optimizer_factory(own, run).build(model)
        assert type(optimizer) is torch.optim.SGD
        assert optimizer.defaults["lr"] == 0.1
        assert optimizer.defaults["momentum"] == 0.9
        assert optimizer.defaults["nesterov"] is True
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_adams_arguments_reach_a_class_once_they_are_changed(make_run):
    factory = own_optimizer_factory(torch.optim.NAdam, make_run())
    assert factory.kwargs == {"lr": 5e-5}
    factory = own_optimizer_factory(torch.optim.NAdam, make_run(adam_beta1=0.8, adam_epsilon=1e-6))
    assert factory.kwargs == {"lr": 5e-5, "betas": (0.8, 0.999), "eps": 1e-6}


@pytest.mark.parametrize(
    ("own", "arguments", "sentence"),
    [
        (
            torch.optim.SGD,
            {"optim_args": "momentun=1"},
            "takes no 'momentun' (optim_args). Did you mean 'momentum'?",
        ),
        (torch.optim.SGD, {"optim_args": "lr=1"}, "optim_args must not set 'lr'; use learning_rate."),
        (
            torch.optim.SGD,
            {"adam_beta1": 0.5},
            "takes no 'betas', but adam_beta1 or adam_beta2 is set; remove it.",
        ),
        (
            torch.optim.Rprop,
            {"weight_decay": 0.5},
            "takes no 'weight_decay', but weight_decay is set; remove it.",
        ),
        ("torch.optim:SGDD", {}, "optim='torch.optim:SGDD' cannot be imported"),
        ("torch.optim:lr_scheduler", {}, "which cannot be called"),
        (3, {}, "optim must be a name, a class, or an import string"),
    ],
)
def test_what_a_class_does_not_take_is_said(make_run, own, arguments, sentence):
    with pytest.raises(ConfigurationError) as caught:
        own_optimizer_factory(own, make_run(**arguments))
    assert len(caught.value.problems) == 1
    assert sentence in caught.value.problems[0]


def test_parse_optim_args():
    assert parse_optim_args(None) == {}
    assert parse_optim_args("a=1, b = x") == {"a": "1", "b": "x"}
    with pytest.raises(ConfigurationError, match="'a=1=2' does not"):
        parse_optim_args("a=1=2")
