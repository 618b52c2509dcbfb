"""The algorithm, written by hand for all processes in one, gives the very weights that the processes end with."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from record import ROWS, ROWS_A_PROCESS, Model, rows  # noqa: E402

WORLD, EPOCHS = 2, 5
ADAMW = {
    "optim": "adamw_torch",
    "learning_rate": 0.02,
    "lr_scheduler_type": "linear",
    "num_train_epochs": EPOCHS,
    "evaluation_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 100,
    "max_grad_norm": 0.3,
}
PLAN: dict[str, dict[str, Any]] = {
    # 30 updates in rounds of 7: evaluations and checkpoints lie within rounds, and so does the end.
    "diloco": {
        **ADAMW,
        "plugins": {
            "localsgd": {"every": 7, "outer_learning_rate": 0.7, "outer_momentum": 0.9, "nesterov": True}
        },
    },
    # 7 updates of four micro-batches, in rounds of 2; two micro-batches are left over in each epoch.
    "accumulated": {
        **ADAMW,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 7,
        "save_strategy": "epoch",
        "max_grad_norm": 0.0,
        "plugins": {"localsgd": {"every": 2}},
    },
}


def launch(out: Path, plan: dict[str, dict[str, Any]], processes: int) -> list[dict[str, dict[str, Any]]]:
    """Runs `record.py`; what each rank wrote, by the plan's names."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    process = subprocess.Popen(
        [*command, str(HERE / "record.py"), str(out), json.dumps(plan)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its workers, which lead groups of their own
        process.communicate(timeout=60)
        raise
    assert process.returncode == 0, printed[-8000:]
    return [
        {name: torch.load(out / f"{name}-{rank}.pt", weights_only=True) for name in plan}
        for rank in range(processes)
    ]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have: sums are in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("by-hand")


RESUMED = {
    # the fourth update of a round is done
    "diloco_again": {**PLAN["diloco"], "resume": "diloco/checkpoint-18"},
    # one update of a round is done, and six micro-batches of the next eight
    "accumulated_again": {**PLAN["accumulated"], "resume": "accumulated/checkpoint-1"},
    "accumulated_later": {**PLAN["accumulated"], "resume": "accumulated/checkpoint-4"},
}


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, dict[str, Any]]]:
    return launch(folder, PLAN | copy.deepcopy(RESUMED), WORLD)


def shares(number: int) -> list[tuple[int, float]]:
    """Of a micro-batch, each process's rows, and what its loss is multiplied by: 1 in an even batch."""
    whole, rest = divmod(ROWS, WORLD * ROWS_A_PROCESS)
    short = number % (whole + 1) == whole
    own = [rest // WORLD + (rank < rest % WORLD) if short else ROWS_A_PROCESS for rank in range(WORLD)]
    return [(count, count * WORLD / sum(own)) for count in own]


def mean(models: list[Model]) -> dict[str, Tensor]:
    """Of the processes' parameters."""
    named = [dict(model.named_parameters()) for model in models]
    return {name: (named[0][name].detach() + named[1][name].detach()) / WORLD for name in named[0]}


class ByHand:
    """Every process's model and inner optimizer; the outer one's step is written out.

    Attributes:
        means: the mean of the models after each update.
        evaluations: of it, over all rows, after each `eval_steps` updates.
    """

    def __init__(self, ranks: list[dict[str, dict[str, Any]]], name: str) -> None:
        settings = PLAN[name]
        options = {"outer_learning_rate": 1.0, "outer_momentum": 0.0, **settings["plugins"]["localsgd"]}
        accumulation = settings.get("gradient_accumulation_steps", 1)
        batches = [of_rank[name]["batches"] for of_rank in ranks]
        updates = len(batches[0]) // accumulation
        models = [Model() for _ in range(WORLD)]
        inner = [torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0) for model in models]
        anchor = {n: p.detach().clone() for n, p in models[0].named_parameters()}
        velocity = {n: torch.zeros_like(value) for n, value in anchor.items()}
        self.means: list[dict[str, Tensor]] = []
        self.evaluations: list[float] = []
        for step in range(updates):
            for rank, (model, optimizer) in enumerate(zip(models, inner, strict=True)):
                model.train()
                model.zero_grad()
                for number in range(step * accumulation, (step + 1) * accumulation):
                    rows_here, weight = shares(number)[rank]
                    inputs = batches[rank][number]
                    assert len(inputs["x"]) == max(rows_here, 1)
                    (model(**inputs)["loss"] * weight / accumulation).backward()
                if settings["max_grad_norm"]:
                    ordered = sorted(model.named_parameters(), key=lambda named: named[0].endswith("bias"))
                    torch.nn.utils.clip_grad_norm_([p for _, p in ordered], settings["max_grad_norm"])
                optimizer.param_groups[0]["lr"] = 0.02 * ((updates - step) / updates)
                optimizer.step()
            if (step + 1) % options["every"] == 0:
                found = mean(models)
                for n, value in anchor.items():
                    gradient = value - found[n]
                    velocity[n] = options["outer_momentum"] * velocity[n] + gradient
                    move = (
                        gradient + options["outer_momentum"] * velocity[n]
                        if options.get("nesterov")
                        else velocity[n]
                    )
                    anchor[n] = value - options["outer_learning_rate"] * move
                    for model in models:
                        dict(model.named_parameters())[n].data.copy_(anchor[n])
            self.means.append(mean(models))
            if (step + 1) % settings["eval_steps"] == 0:
                self.evaluations.append(self.evaluate())

    @torch.no_grad()
    def evaluate(self) -> float:
        model = Model().eval()
        model.load_state_dict(self.means[-1], strict=False)
        everything = rows()
        inputs = {name: torch.stack([row[name] for row in everything]) for name in everything[0]}
        return float(model(**inputs)["loss"])


def largest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


@pytest.mark.parametrize("name", PLAN)
def test_it_is_the_algorithm(ranks: list[dict[str, dict[str, Any]]], folder: Path, name: str) -> None:
    """Weights at the end, within a round; those in checkpoints; losses of evaluations, which change nothing of it all."""
    hand = ByHand(ranks, name)
    for of_rank in ranks:
        assert largest(of_rank[name]["weights"], hand.means[-1]) < 1e-6
        assert of_rank[name]["evaluations"] == pytest.approx(hand.evaluations, rel=1e-5)
    assert largest(ranks[0][name]["weights"], ranks[1][name]["weights"]) == 0  # the buffer too
    for checkpoint in (folder / name).glob("checkpoint-*"):
        step = int(checkpoint.name.rpartition("-")[2])
        assert largest(load_file(checkpoint / "model.safetensors"), hand.means[step - 1]) < 1e-6


@pytest.mark.parametrize("name", RESUMED)
def test_a_resume_goes_on_exactly(ranks: list[dict[str, dict[str, Any]]], name: str) -> None:
    """Each process has its own weights, moments and gradients again, and all have the round and the outer step."""
    whole = name.rpartition("_")[0]
    for of_rank in ranks:
        assert largest(of_rank[name]["weights"], of_rank[whole]["weights"]) == 0
        assert 0 < len(of_rank[name]["batches"]) < len(of_rank[whole]["batches"])
        assert of_rank[name]["evaluations"] == of_rank[whole]["evaluations"]
