"""Every optimizer in a real run of 50 updates, against its paper's formula, and exactly again from update 25."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from support import forge
from support.optimizer_formulas import GAP, RANK, STEPS, WARMUP, adamw
from torch import nn

from drivetrain import Trainer, TrainingArguments, discover
from drivetrain.checkpoint import load_checkpoint
from drivetrain.errors import CheckpointError
from drivetrain.plugin import import_string

UPDATES = 50
RATE = 0.01
OTHER_RATE = 0.003  # of the group that a pattern makes
DECAY = 0.1
VENDORS = {
    "bnb": "bitsandbytes", "8bit": "bitsandbytes", "lion_32bit": "bitsandbytes", "paged": "bitsandbytes",
    "adamw_torch_": "torchao", "lion": "pytorch_optimizer", "galore": "pytorch_optimizer",
    "schedule_free": "schedulefree",
}  # fmt: skip
WORDS = [*STEPS, "adamw_hf", "adafactor", "sgd", "adagrad", "rmsprop", "muon"]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "galore_adamw": {"optim_args": f"target_modules=re:^(wide|tall);sm*,rank={RANK},update_proj_gap={GAP}"},
    "sgd": {"optim_args": "momentum=0.9"},
    "schedule_free_adamw": {"warmup_steps": WARMUP},
    "schedule_free_sgd": {"warmup_steps": WARMUP},
}
FEW_BITS = [word for word in STEPS if "8bit" in word or "4bit" in word]


class Odd(nn.Module):
    """Parameters of odd shapes; the gradient of each is noise that depends on the update alone, and a tenth of it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {
            "wide": (34, 128), "tall": (70, 61), "small": (5, 3), "deep": (3, 5, 2), "row": (7,), "number": (),
            "big_bias": (4352,), "unused": (4, 4),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))
        self.register_buffer("calls", torch.tensor(0))

    def noise(self, call: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(100 + call)
        return {name: torch.randn(p.shape, generator=generator) for name, p in self.named_parameters()}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = self.noise(int(self.calls))
        self.calls += 1
        used = [(p, noise[name]) for name, p in self.named_parameters() if name != "unused"]
        return {"loss": sum((p * n).sum() + 0.05 * p.square().sum() for p, n in used)}


def by_hand(word: str) -> dict[str, torch.Tensor]:
    """The parameters after the updates, by the formula."""
    model = Odd()
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    states: dict[str, dict[str, Any]] = {name: {} for name in values}
    for update in range(UPDATES):
        noise = model.noise(update)
        for name in values:
            if name == "unused":
                continue
            step = STEPS[word]
            if word == "galore_adamw" and name not in ("wide", "tall", "small"):
                step = decaying_after
            gradient = noise[name] + 0.1 * values[name]
            rate = OTHER_RATE if name == "deep" else RATE
            decay = 0.0 if "bias" in name else DECAY
            values[name] = step(values[name], gradient, states[name], rate, decay, update + 1)
    return {name: states[name].get("x", value) for name, value in values.items()}


def decaying_after(p: Any, g: Any, state: Any, lr: float, decay: float, t: int) -> Any:
    return adamw(p, g, state, lr, 0.0, t) * (1 - lr * decay)


def trained(word: Any, folder: Path, resume: Path | None = None, **arguments: Any) -> Trainer:
    args = TrainingArguments(
        str(folder), report_to="none", disable_tqdm=True, use_cpu=True, logging_strategy="no", optim=word,
        learning_rate=RATE, weight_decay=DECAY, max_grad_norm=0.0, lr_scheduler_type="constant",
        param_groups=[{"match": "deep", "lr": OTHER_RATE}],
        **{"max_steps": UPDATES, "save_steps": 25, **ARGUMENTS.get(word, {}), **arguments},
    )  # fmt: skip
    trainer = Trainer(Odd(), args, train_dataset=[{"x": torch.zeros(1)}] * 8)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


@pytest.fixture(autouse=True)
def eager(request: pytest.FixtureRequest) -> Iterator[None]:
    """torchao's update is compiled for minutes; the same one is run as it is written, but in `soak`."""
    compiled = request.node.get_closest_marker("soak") is not None
    with nullcontext() if compiled else torch.compiler.set_stance("force_eager"):
        yield


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Weights, the optimizer's state and its groups, flat."""
    found: dict[str, Any] = {}

    def note(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                note(f"{path}/{key}", inner)
        else:
            found[path] = value

    state = load_checkpoint(str(checkpoint), 0, 1).train_state
    assert state is not None
    note(
        "", {"weights": state.weights, "optimizer": state.optimizer, "groups": dict(enumerate(state.groups))}
    )
    return found


def needs(word: str) -> None:
    for part, module in VENDORS.items():
        if part in word:
            pytest.importorskip(module)
            return


def compare(word: str, weights: dict[str, torch.Tensor]) -> None:
    """Distances are in steps of the learning rate."""
    exact = by_hand("lion" if "lion" in word else "adamw_torch") if word in FEW_BITS else {}
    for name, expected in by_hand(word).items():
        far = (weights[name] - expected).abs() / RATE
        if word in FEW_BITS and not torch.equal(expected, exact[name]):
            # A value between two entries of the table may go to either: seldom, and never without bounds.
            assert far.mean() < 0.02, name
            assert far.mean() < 0.5 * ((weights[name] - exact[name]).abs() / RATE).mean(), name
        else:
            assert far.max() < 0.01, name
        assert far.max() < 0.1 * (weights[name] - getattr(Odd(), name)).abs().max() / RATE or name == "unused"


@pytest.mark.parametrize("word", WORDS)
def test_fifty_updates_are_the_papers_and_a_resume_is_exact(tmp_path, word):
    needs(word)
    whole = trained(word, tmp_path / "whole")
    weights = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    assert torch.equal(weights["unused"], Odd().unused)
    if word in STEPS:
        compare(word, weights)

    again = trained(word, tmp_path / "again", resume=tmp_path / "whole" / "checkpoint-25")
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    one, other = (state_of(tmp_path / run / "checkpoint-50") for run in ("whole", "again"))
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key


@pytest.mark.parametrize(
    ("word", "other", "differs"),
    [
        ("adamw_8bit", "adamw_bnb_8bit", {}),
        ("paged_adamw_8bit", "adamw_bnb_8bit", {"is_paged": True}),
        ("paged_lion_8bit", "lion_8bit", {"is_paged": True}),
        ("paged_lion_32bit", "lion_32bit", {"is_paged": True}),
        ("adamw_torch_fused", "adamw_torch", {"fused": True}),
    ],
)
def test_words_that_mean_the_same_but_for_an_option(word, other, differs):
    needs(word)
    one, its = by_arguments(word)
    two, others = by_arguments(other)
    assert (one, its) == (two, {**others, **differs})


def by_arguments(word: str) -> tuple[Any, dict[str, Any]]:
    info = discover.load_info("optimizer", word)
    plugin = import_string(info.implementation)()
    return plugin.class_and_kwargs(TrainingArguments("out", optim=word, report_to="none", use_cpu=True))


class Strange(torch.optim.Optimizer):
    """An optimizer of a stranger's, which keeps more than groups and state."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.steps: list[torch.Tensor] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.steps.append(torch.ones(()))
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p.sub_(mean.lerp_(p.grad, 0.1), alpha=group["lr"])


BROKEN = ["muon", "lion", "galore_adamw", "schedule_free_adamw", "adamw_bnb_8bit", "adamw_torch_8bit", "adamw_hf",
          "adamw_anyprecision", Strange]  # fmt: skip


@pytest.mark.parametrize("word", BROKEN, ids=str)
def test_a_state_that_the_optimizer_cannot_go_on_with_is_refused_before_training(tmp_path, word):
    name = word if isinstance(word, str) else "strange"
    needs(name)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    trained(word, tmp_path / "whole", max_steps=2, save_steps=2)
    again = trained(word, tmp_path / "again", checkpoint, max_steps=3, save_steps=2)
    if word is Strange:
        assert len(again.optimizer.steps) == 1  # the rehearsal was another one's step

    tree = json.loads((checkpoint / "optimizer.json").read_text())
    entry = tree["state"]["tall"]
    entry = entry.get("__bnb_optimizer_quant_state__", entry)
    entry[next(key for key, value in entry.items() if isinstance(value, dict))] = "x"
    (checkpoint / "optimizer.json").write_text(json.dumps(tree))
    forge.seal_anything(checkpoint)
    with pytest.raises(CheckpointError, match=r"cannot go on with|refuses the optimizer state"):
        trained(word, tmp_path / "third", checkpoint, max_steps=3, save_steps=2)


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore:.*_stable_hash_for_caching")
@pytest.mark.parametrize("word", ["adamw_torch_8bit", "adamw_torch_4bit"])
def test_torchaos_update_compiled_is_the_one_that_is_written(tmp_path, word):
    needs(word)
    compiled = trained(word, tmp_path / "compiled")
    again = trained(word, tmp_path / "again", tmp_path / "compiled" / "checkpoint-25")
    assert all(map(torch.equal, compiled.model.parameters(), again.model.parameters()))
    with torch.compiler.set_stance("force_eager"):
        written = trained(word, tmp_path / "written")
    for (name, one), other in zip(compiled.model.named_parameters(), written.model.parameters(), strict=True):
        far = (one - other).abs() / RATE
        assert far.mean() < 0.02, name
