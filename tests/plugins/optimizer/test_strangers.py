"""Optimizers that come by `pip install`: a package with a word of its own, and any class of any package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import strangers
from support.toy import rows, trainer, weights_equal

from drivetrain.errors import ConfigurationError
from drivetrain.resolve import resolve

SOURCE = '''
from dataclasses import dataclass

import torch

from drivetrain import PluginInfo, hookimpl
from drivetrain.own_optimizer import groups_of
from drivetrain.slots import OptimizerFactory


class Signum(torch.optim.Optimizer):
    """SGD by the sign of a momentum."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, momentum=0.9):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 1 - group["momentum"])
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(mean.sign(), alpha=group["lr"])


@dataclass(frozen=True)
class Options:
    momentum: float = 0.9


class Plugin:
    def __init__(self, options):
        self.options = options

    @hookimpl
    def make_optimizer(self, run):
        args = run.args
        kwargs = {"lr": args.learning_rate, "momentum": self.options.momentum}
        return OptimizerFactory(Signum, kwargs, groups_of(args, Signum, check_with=run.model))


INFO = PluginInfo(
    name="signum", kind="optimizer", summary="SGD by the sign of a momentum.",
    implementation="stranger_signum:Plugin", options=Options,
    arguments=("learning_rate", "weight_decay", "param_groups"),
)
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[strangers.Site]:
    yield from strangers.site(tmp_path / "site", monkeypatch)


def resumed(folder: Path, **values: Any) -> Any:
    settings = {"data": rows(40), "max_steps": 8, "save_strategy": "steps", "save_steps": 4, "weight_decay": 0.1,
                "lr_scheduler_type": "cosine", "warmup_steps": 2, **values}  # fmt: skip
    whole = trainer(folder / "whole", **settings)
    whole.train()
    again = trainer(folder / "again", **settings)
    again.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-4"))
    assert weights_equal(whole.model, again.model)
    return again


def test_a_package_brings_a_word(site, tmp_path):
    site.add("drivetrain-signum", {"optimizer": {"signum": "stranger_signum:INFO"}}, stranger_signum=SOURCE)
    groups = [{"match": "first.*", "lr": 1e-3, "momentum": 0.5}]
    run = resumed(tmp_path, optim="signum", param_groups=groups, plugins={"signum": {"momentum": 0.8}})
    assert type(run.optimizer).__name__ == "Signum"
    seen = [(g["momentum"], g["weight_decay"], len(g["params"])) for g in run.optimizer.param_groups]
    assert seen == [(0.8, 0.1, 1), (0.8, 0.0, 3), (0.5, 0.1, 1), (0.5, 0.0, 1)]
    # A schedule is a multiple of each group's own rate.
    rates = [group["lr"] for group in run.optimizer.param_groups]
    assert rates[2] == pytest.approx(rates[0] * 0.1)
    assert rates[0] < 1e-2
    with pytest.raises(ConfigurationError, match=r"Unknown optimizer 'signun'. Did you mean 'signum'"):
        resolve(trainer(tmp_path / "wrong", optim="signun").args)
    inert = resolve(trainer(tmp_path / "inert", optim="signum", adam_beta1=0.5).args).inert
    assert "adam_beta1=0.5 has no effect under the optimizer signum." in inert
    with pytest.raises(ConfigurationError, match=r"Signum has no option 'momentun'. Did you mean 'momentum'"):
        trainer(tmp_path / "option", optim="signum", param_groups=[{"match": "*", "momentun": 1}]).train()


@pytest.mark.parametrize(
    ("name", "arguments", "betas"),
    [
        ("AdEMAMix", {"optim_args": "betas=0.9;0.99;0.9999,weight_decouple=true"}, (0.9, 0.99, 0.9999)),
        ("StableAdamW", {"optim_args": "weight_decouple=true", "adam_beta2": 0.95}, (0.9, 0.95)),
    ],
)
def test_any_class_of_any_package(tmp_path, name, arguments, betas):
    pytest.importorskip("pytorch_optimizer")
    run = resumed(tmp_path, optim=f"pytorch_optimizer:{name}", **arguments)
    assert type(run.optimizer).__name__ == name
    assert run.optimizer.defaults["weight_decouple"] is True
    assert run.optimizer.defaults["betas"] == betas


PATTERNS = [{"match": "first.*", "lr": 1e-3}, {"match": "re:^second\\.weight$", "weight_decay": 0.0}]
GROUPED = ["adamw_torch", "adamw_hf", "adamw_anyprecision", "adafactor", "sgd", "adagrad", "rmsprop", "muon", "lion",
           "lion_32bit", "adamw_bnb_8bit", "schedule_free_adamw", "schedule_free_sgd"]  # fmt: skip


@pytest.mark.parametrize("word", GROUPED)
def test_rates_and_decay_by_name_under_every_optimizer(tmp_path, word):
    for part, module in (("lion_", "bitsandbytes"), ("bnb", "bitsandbytes"), ("lion", "pytorch_optimizer"),
                         ("schedule_free", "schedulefree")):  # fmt: skip
        if part in word:
            pytest.importorskip(module)
            break
    run = resumed(tmp_path, optim=word, param_groups=PATTERNS, lr_scheduler_type="linear")
    names = {id(p): name for name, p in run.model.named_parameters()}
    options = {
        names[id(p)]: (round(group["initial_lr"], 5), group["weight_decay"])
        for group in run.optimizer.param_groups
        for p in group["params"]
    }
    assert options == {
        "first.weight": (1e-3, 0.1), "first.bias": (1e-3, 0.0), "norm.weight": (1e-2, 0.0), "norm.bias": (1e-2, 0.0),
        "second.weight": (1e-2, 0.0), "second.bias": (1e-2, 0.0),
    }  # fmt: skip
    assert all(
        torch.as_tensor(group["lr"]) == 0 for group in run.optimizer.param_groups
    )  # at the end of the line
