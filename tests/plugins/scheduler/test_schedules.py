"""Schedules against transformers 4.34.0 and closed formulas, and MultiplierLR against torch's LambdaLR."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from drivetrain.errors import ConfigurationError
from drivetrain.own_scheduler import own_scheduler_factory
from drivetrain.plugin import import_string
from drivetrain_plugins import scheduler as kind
from drivetrain_plugins.scheduler.multiplier import MultiplierLR

FACTS = json.loads((Path(__file__).parent / "facts_4_34_0.json").read_text())
MULTIPLIERS = [
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "piecewise",
    "exponential",
    "cosine_with_min_lr",
    "warmup_stable_decay",
]
NEEDED = {"cosine_with_min_lr": {"min_lr_rate": 0.1}}


def plugin(name: str, **options: Any) -> Any:
    info = getattr(kind, name.upper())
    return import_string(info.implementation)(info.options_class()(**options))


def sgd(lr: float = 3e-3, second: float | None = None) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": [torch.nn.Parameter(torch.zeros(2))]}]
    if second is not None:
        groups.append({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": second})
    return torch.optim.SGD(groups, lr=lr)


def rates(scheduler: Any, optimizer: torch.optim.Optimizer, updates: int) -> list[list[float]]:
    """The learning rates of each group at each update."""
    found = []
    for _ in range(updates):
        found.append([group["lr"] for group in optimizer.param_groups])
        assert scheduler.get_last_lr() == found[-1]
        optimizer.step()
        scheduler.step()
    return found


def build(make_run: Any, name: str, warmup: int, total: int, optimizer: Any, **kwargs: Any) -> Any:
    run = make_run(max_steps=total, warmup_steps=warmup, lr_scheduler_kwargs=kwargs or None)
    return plugin(name).make_scheduler(run).build(optimizer)


@pytest.mark.parametrize("case", FACTS["schedules"])
def test_schedules_are_those_of_transformers(make_run, case):
    name, warmup, total = case.split()
    optimizer = sgd(second=3e-4)
    scheduler = build(make_run, name, int(warmup), int(total), optimizer)
    found = rates(scheduler, optimizer, int(total) + 3)
    for ours, theirs in zip(found, FACTS["schedules"][case], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("case", FACTS["options"])
def test_options_are_those_of_transformers(make_run, case):
    name, warmup, total, kwargs = json.loads(case)
    optimizer = sgd()
    scheduler = build(make_run, name, warmup, total, optimizer, **kwargs)
    found = [group[0] for group in rates(scheduler, optimizer, 16)]
    assert found == pytest.approx(FACTS["options"][case], rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_defaults_rise_over_the_warmup_and_then_never_exceed_the_rate(make_run, name):
    optimizer = sgd(lr=1.0)
    kwargs = NEEDED.get(name, {})
    found = [r[0] for r in rates(build(make_run, name, 5, 50, optimizer, **kwargs), optimizer, 51)]
    if name != "constant":
        assert found[:5] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert found[5] == pytest.approx(1.0)
    assert max(found) == pytest.approx(1.0)
    ends = {"piecewise": 0.01, "exponential": 0.01, "cosine_with_min_lr": 0.1, "polynomial": 1e-7}
    ends |= {"constant": 1.0, "constant_with_warmup": 1.0, "inverse_sqrt": math.sqrt(5 / 50)}
    assert found[50] == pytest.approx(ends.get(name, 0.0), abs=1e-12)


def test_inverse_sqrt_without_warmup(make_run):
    optimizer = sgd(lr=1.0)
    found = rates(build(make_run, "inverse_sqrt", 0, 50, optimizer), optimizer, 3)
    assert [r[0] for r in found] == pytest.approx([1.0, math.sqrt(10000 / 10001), math.sqrt(10000 / 10002)])


def test_piecewise(make_run):
    optimizer = sgd(lr=2.0)
    scheduler = build(make_run, "piecewise", 0, 10, optimizer, boundaries=[3, 0.5], values=[1, 0.5, 0.1])
    found = [r[0] for r in rates(scheduler, optimizer, 12)]
    assert found == pytest.approx([2.0] * 3 + [1.0] * 2 + [0.2] * 7)
    optimizer = sgd(lr=1.0)
    scheduler = build(make_run, "piecewise", 4, 10, optimizer, boundaries=[2], values=[1, 0.5])
    assert [r[0] for r in rates(scheduler, optimizer, 6)] == pytest.approx([0, 0.25, 0.25, 0.375, 0.5, 0.5])


def test_exponential(make_run):
    optimizer = sgd(lr=1.0)
    scheduler = build(make_run, "exponential", 2, 10, optimizer, gamma=0.5)
    assert [r[0] for r in rates(scheduler, optimizer, 6)] == pytest.approx([0, 0.5, 1, 0.5, 0.25, 0.125])


def test_cosine_with_min_lr(make_run):
    for kwargs in ({"min_lr": 0.3}, {"min_lr_rate": 0.15}):
        optimizer = sgd(lr=2.0)
        found = [
            r[0]
            for r in rates(build(make_run, "cosine_with_min_lr", 0, 8, optimizer, **kwargs), optimizer, 9)
        ]
        assert found == pytest.approx([0.3 + 1.7 * (1 + math.cos(math.pi * u / 8)) / 2 for u in range(9)])
    with pytest.raises(ConfigurationError, match=r"min_lr=3\.0 is above the learning rate 2\.0; lower it"):
        build(make_run, "cosine_with_min_lr", 0, 8, sgd(lr=2.0), min_lr=3)
    with pytest.raises(ConfigurationError, match="needs a least value: lr_scheduler_kwargs="):
        build(make_run, "cosine_with_min_lr", 0, 8, sgd(lr=2.0))


@pytest.mark.parametrize("decay_type", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("warmup_type", ["linear", "cosine", "1-sqrt"])
def test_warmup_stable_decay(make_run, warmup_type, decay_type):
    optimizer = sgd(lr=1.0)
    kwargs = {"num_decay_steps": 4, "min_lr_ratio": 0.2, "warmup_type": warmup_type, "decay_type": decay_type}
    found = [
        r[0] for r in rates(build(make_run, "warmup_stable_decay", 4, 12, optimizer, **kwargs), optimizer, 14)
    ]
    up = {
        "linear": lambda x: x,
        "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
        "1-sqrt": lambda x: 1 - math.sqrt(1 - x),
    }[warmup_type]
    down = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
        "1-sqrt": lambda x: 1 - math.sqrt(x),
    }[decay_type]
    expected = [0.2 + 0.8 * up(u / 4) for u in range(4)] + [1.0] * 4
    expected += [0.2 + 0.8 * down(u / 4) for u in range(4)] + [0.2] * 2
    assert found == pytest.approx(expected)


def test_warmup_stable_decay_by_share_and_too_long(make_run):
    optimizer = sgd(lr=1.0)
    scheduler = build(
        make_run, "warmup_stable_decay", 0, 10, optimizer, num_decay_steps=0.2, decay_type="linear"
    )
    assert [r[0] for r in rates(scheduler, optimizer, 11)] == pytest.approx([1.0] * 9 + [0.5, 0.0])
    with pytest.raises(
        ConfigurationError, match="5 updates of warmup and 6 of decay are more than the run's 10"
    ):
        build(make_run, "warmup_stable_decay", 5, 10, sgd(), num_decay_steps=6)


def test_later_schedules_are_those_of_todays_transformers(make_run):
    transformers = pytest.importorskip(
        "transformers", minversion="5.0", reason="today's transformers has them"
    )
    for name, kwargs in (
        ("cosine_with_min_lr", {"min_lr": 1e-4}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.2, "num_cycles": 1.5}),
        ("warmup_stable_decay", {"num_decay_steps": 5, "min_lr_ratio": 0.1, "decay_type": "1-sqrt"}),
    ):
        ours, theirs = sgd(), sgd()
        scheduler = build(make_run, name, 3, 20, ours, **kwargs)
        other = transformers.get_scheduler(name, theirs, 3, 20, scheduler_specific_kwargs=dict(kwargs))
        found = [r[0] for r in rates(scheduler, ours, 22)]
        assert found == pytest.approx([r[0] for r in rates(other, theirs, 22)], rel=1e-12)


def test_warmup_is_a_share_of_the_run(make_run):
    run = make_run(max_steps=20, warmup_ratio=0.2)
    optimizer = sgd(lr=1.0)
    found = rates(plugin("linear").make_scheduler(run).build(optimizer), optimizer, 6)
    assert [r[0] for r in found] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 15 / 16])


# -- the scheduler object --------------------------------------------------------------------------------


def test_multiplier_lr_is_a_lambda_lr(make_run):
    def multiple(update: int) -> float:
        return 1 / (1 + update)

    ours, theirs = sgd(second=1e-4), sgd(second=1e-4)
    a, b = MultiplierLR(ours, multiple), LambdaLR(theirs, multiple)
    assert isinstance(a, LambdaLR)
    assert "step" not in vars(ours)  # torch's LambdaLR wraps it
    assert rates(a, ours, 7) == rates(b, theirs, 7)
    state = a.state_dict()
    assert {"_get_lr_called_within_step": False, **state} == b.state_dict()
    assert json.loads(json.dumps(state)) == state
    a.load_state_dict(b.state_dict())
    b.load_state_dict(state)
    assert rates(a, ours, 3) == rates(b, theirs, 3)
    a.step(3)
    assert ours.param_groups[0]["lr"] == pytest.approx(3e-3 / 4)
    assert a.last_epoch == 3


def test_multiplier_lr_leaves_an_optimizer_that_another_scheduler_wrapped():
    optimizer = sgd()
    LambdaLR(optimizer, lambda update: 1.0)
    wrapped = optimizer.step
    MultiplierLR(optimizer, lambda update: 1.0)
    assert optimizer.step is wrapped


def test_a_learning_rate_that_is_a_tensor_is_filled():
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=rate)
    scheduler = MultiplierLR(optimizer, lambda update: 1 / (1 + update))
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.25
    assert [float(r) for r in scheduler.get_last_lr()] == [0.25]


@pytest.mark.parametrize("name", [*MULTIPLIERS, "reduce_lr_on_plateau"])
def test_state_is_found_again(make_run, name):
    def step(scheduler: Any, optimizer: Any, update: int) -> float:
        optimizer.step()
        scheduler.step(*([1.0 + update] if name == "reduce_lr_on_plateau" else []))
        return float(optimizer.param_groups[0]["lr"])

    kwargs = {"patience": 2} if name == "reduce_lr_on_plateau" else NEEDED.get(name, {})
    optimizer = sgd()
    scheduler = build(make_run, name, 3, 20, optimizer, **kwargs)
    for update in range(6):
        step(scheduler, optimizer, update)
    state, of_optimizer = json.loads(json.dumps(scheduler.state_dict())), optimizer.state_dict()
    expected = [step(scheduler, optimizer, update) for update in range(6, 22)]

    again = sgd()
    restored = build(make_run, name, 3, 20, again, **kwargs)
    again.load_state_dict(of_optimizer)
    restored.load_state_dict(state)
    assert restored.get_last_lr() == [group["lr"] for group in again.param_groups]
    assert [step(restored, again, update) for update in range(6, 22)] == expected


def test_plateau_is_torchs_and_stepped_after_evaluations(make_run):
    run = make_run(lr_scheduler_kwargs={"patience": 1, "factor": 0.5})
    factory = plugin("reduce_lr_on_plateau").make_scheduler(run)
    assert factory.per_evaluation
    optimizer = sgd(lr=1.0)
    scheduler = factory.build(optimizer)
    assert type(scheduler) is ReduceLROnPlateau
    for metric in (1.0, 1.0, 1.0):
        scheduler.step(metric)
    assert optimizer.param_groups[0]["lr"] == 0.5
    defaults = plugin("reduce_lr_on_plateau").make_scheduler(make_run()).build(sgd())
    assert defaults.state_dict() == ReduceLROnPlateau(sgd()).state_dict()


# -- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        (
            "cosine",
            {"num_cycle": 2},
            "(lr_scheduler_kwargs) has no option 'num_cycle'. Did you mean 'num_cycles'?",
        ),
        ("cosine", {"num_cycles": "many"}, "option 'num_cycles' must be a number, not 'many'"),
        ("cosine_with_restarts", {"num_cycles": 1.5}, "option 'num_cycles' must be a whole number, not 1.5"),
        ("cosine_with_restarts", {"num_cycles": 0}, "must be at least 1, and is 0"),
        ("linear", {"power": 2}, "Scheduler 'linear' (lr_scheduler_kwargs) has no options; remove 'power'."),
        ("constant", {"x": 2}, "has no options; remove 'x'"),
        ("piecewise", {"boundaries": [1], "values": [1]}, "one more entry than 'boundaries' (1), and has 1"),
        ("piecewise", {"boundaries": 5}, "option 'boundaries' must be a list, each a number, not 5"),
        ("exponential", {"gamma": 2}, "option 'gamma' must lie above 0 and at most at 1"),
        ("inverse_sqrt", {"timescale": 0}, "option 'timescale' must be at least 1"),
        ("reduce_lr_on_plateau", {"mode": "up"}, "option 'mode' must be one of 'min', 'max', not 'up'"),
        ("reduce_lr_on_plateau", {"factor": 1.5}, "option 'factor' must be below 1"),
        (
            "cosine_with_min_lr",
            {"min_lr": 0, "min_lr_rate": 0},
            "'min_lr' and 'min_lr_rate' say the same; keep one",
        ),
        (
            "warmup_stable_decay",
            {"decay_type": "sine"},
            "must be one of 'linear', 'cosine', '1-sqrt', not 'sine'",
        ),
    ],
)
def test_wrong_options_are_one_sentence_before_the_run(make_run, name, kwargs, sentence):
    run = make_run(lr_scheduler_kwargs=kwargs)
    problems = getattr(kind, name.upper()).probe(run.args)
    assert len(problems) == 1
    assert sentence in problems[0]
    with pytest.raises(ConfigurationError):
        plugin(name).make_scheduler(run)


def test_polynomial_needs_an_end_below_the_rate(make_run):
    with pytest.raises(
        ConfigurationError, match=r"lr_end=1\.0 must be below the learning rate 0\.5; lower it"
    ):
        build(make_run, "polynomial", 0, 8, sgd(lr=0.5), lr_end=1.0)


def test_piecewise_boundaries_must_rise(make_run):
    with pytest.raises(
        ConfigurationError, match=r"boundaries must rise, and in updates, of 10, are \[8, 5\]"
    ):
        build(make_run, "piecewise", 0, 10, sgd(), boundaries=[8, 0.5], values=[1, 1, 1])


# -- a scheduler of the user's -----------------------------------------------------------------------------


def from_function(
    optimizer: Any, num_warmup_steps: int, num_training_steps: int, power: float = 1.0
) -> LambdaLR:
    return LambdaLR(optimizer, lambda u: min(u / num_warmup_steps, 1 - (u / num_training_steps) ** power))


def test_a_class_with_arguments(make_run):
    run = make_run(lr_scheduler_kwargs={"step_size": 2, "gamma": 0.5})
    for own in (torch.optim.lr_scheduler.StepLR, "torch.optim.lr_scheduler:StepLR"):
        optimizer = sgd(lr=1.0)
        factory = own_scheduler_factory(own, run)
        assert not factory.per_evaluation
        found = rates(factory.build(optimizer), optimizer, 5)
        assert [r[0] for r in found] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_what_the_run_knows_is_filled_in(make_run):
    optimizer = sgd(lr=1.0)
    run = make_run(max_steps=10, warmup_steps=4, lr_scheduler_kwargs={"power": 2.0})
    found = rates(own_scheduler_factory(from_function, run).build(optimizer), optimizer, 6)
    assert [r[0] for r in found] == pytest.approx([min(u / 4, 1 - (u / 10) ** 2) for u in range(6)])
    cosine = own_scheduler_factory("torch.optim.lr_scheduler:CosineAnnealingLR", make_run(max_steps=10))
    assert cosine.build(sgd()).T_max == 10
    one_cycle = own_scheduler_factory(
        torch.optim.lr_scheduler.OneCycleLR, make_run(max_steps=10, lr_scheduler_kwargs={"max_lr": 1.0})
    )
    assert one_cycle.build(sgd()).total_steps == 10
    kwargs = {"max_lr": 1.0, "epochs": 3, "steps_per_epoch": 5}
    by_epochs = own_scheduler_factory(
        torch.optim.lr_scheduler.OneCycleLR, make_run(lr_scheduler_kwargs=kwargs)
    )
    assert by_epochs.build(sgd()).total_steps == 15


def test_a_plateau_of_the_users_is_stepped_after_evaluations(make_run):
    assert own_scheduler_factory(ReduceLROnPlateau, make_run()).per_evaluation


@pytest.mark.parametrize(
    ("own", "arguments", "sentence"),
    [
        (
            torch.optim.lr_scheduler.StepLR,
            {},
            "Scheduler 'StepLR' needs 'step_size'; give it in lr_scheduler_kwargs.",
        ),
        (
            torch.optim.lr_scheduler.ExponentialLR,
            {"lr_scheduler_kwargs": {"gama": 1, "gamma": 1}},
            "takes no 'gama' (lr_scheduler_kwargs). Did you mean 'gamma'?",
        ),
        (
            torch.optim.lr_scheduler.ConstantLR,
            {"warmup_steps": 5},
            "takes no 'num_warmup_steps', but warmup_steps is set; remove it.",
        ),
        ("torch.optim:Nothing", {}, "lr_scheduler_type='torch.optim:Nothing' cannot be imported"),
        ("torch:float32", {}, "which cannot be called"),
        (3, {}, "lr_scheduler_type must be a name, a class, or an import string"),
    ],
)
def test_what_a_scheduler_does_not_take_is_said(make_run, own, arguments, sentence):
    with pytest.raises(ConfigurationError) as caught:
        own_scheduler_factory(own, make_run(**arguments))
    assert len(caught.value.problems) == 1
    assert sentence in caught.value.problems[0]
