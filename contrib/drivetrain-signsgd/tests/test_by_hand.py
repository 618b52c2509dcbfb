"""The algorithm, written by hand for all processes in one, gives the very weights that the processes end with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from record import ROWS, ROWS_A_PROCESS, Model  # noqa: E402

WORLD, EPOCHS = 2, 6
EVEN = {
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "learning_rate": 0.05,
    "lr_scheduler_type": "linear",
    "num_train_epochs": EPOCHS,
    "save_strategy": "epoch",
    "logging_steps": 100,
}
VOTE = {"error_feedback": False, "momentum": 0.8}
PLAN: dict[str, dict[str, Any]] = {
    "feedback": {**EVEN, "max_grad_norm": 0.5, "log_level": "info"},
    "accumulated": {**EVEN, "max_grad_norm": 0.0, "gradient_accumulation_steps": 4},
    "vote": {**EVEN, "max_grad_norm": 0.0, "learning_rate": 0.01, "plugins": {"signsgd": VOTE}},
    "vote_accumulated": {
        **EVEN,
        "max_grad_norm": 0.0,
        "learning_rate": 0.01,
        "gradient_accumulation_steps": 4,
        "plugins": {"signsgd": VOTE},
    },
}


AGAIN = {"again": {**PLAN["accumulated"], "resume": "accumulated/checkpoint-1"}}
SPOILT = {
    "spoilt": {**PLAN["feedback"], "spoilt": True, "on_nan_loss": "skip", "num_train_epochs": 2},
    "spoilt_vote": {**PLAN["vote"], "spoilt": True, "on_nan_loss": "skip", "num_train_epochs": 2},
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


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, dict[str, Any]]]:
    return launch(folder, {**PLAN, **AGAIN, **SPOILT}, WORLD)


def micro_batches(
    ranks: list[dict[str, dict[str, Any]]], name: str
) -> list[list[tuple[dict[str, Tensor], float]]]:
    """Of each micro-batch what each process ran, and the share of its rows: 1 of an even batch."""
    made = []
    whole, rest = divmod(ROWS, WORLD * ROWS_A_PROCESS)
    for number in range(len(ranks[0][name]["batches"])):
        short = number % (whole + 1) == whole
        own = [rest // WORLD + (rank < rest % WORLD) if short else ROWS_A_PROCESS for rank in range(WORLD)]
        batches = [ranks[rank][name]["batches"][number] for rank in range(WORLD)]
        assert [max(count, 1) for count in own] == [len(batch["x"]) for batch in batches]
        made.append([(batch, count * WORLD / sum(own)) for batch, count in zip(batches, own, strict=True)])
    return made


def sign(value: Tensor, step: int) -> Tensor:
    """With the zeros in turn."""
    return torch.where(value == 0, torch.tensor(1.0 if step % 2 else -1.0), value.sign())


def gradients_of(
    model: Model, batches: Any, accumulation: int
) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Each process's own gradients of an update, and its share of the rows."""
    found, shares = [], []
    for rank in range(WORLD):
        model.zero_grad()
        for micro_batch in batches:
            inputs, weight = micro_batch[rank]
            (model(**inputs)["loss"] * weight / accumulation).backward()
        named = model.named_parameters()
        found.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        shares.append(sum(micro_batch[rank][1] for micro_batch in batches) / accumulation)
    return found, shares


def by_hand(ranks: list[dict[str, dict[str, Any]]], name: str) -> tuple[Model, list[dict[str, Tensor]], Any]:
    """The model that comes of it, the gradients that were agreed on, and what each process has kept after each update."""
    settings = PLAN[name]
    options = settings.get("plugins", {}).get("signsgd", {})
    feedback, momentum = options.get("error_feedback", True), options.get("momentum", 0.0)
    accumulation = settings.get("gradient_accumulation_steps", 1)
    model = Model()
    kept: list[dict[str, Tensor]] = [
        {n: torch.zeros_like(p) for n, p in model.named_parameters()} for _ in range(WORLD)
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=settings["learning_rate"], momentum=0.9)
    batches = micro_batches(ranks, name)
    updates = len(batches) // accumulation
    agreed, history = [], []
    for step in range(updates):
        of_update = batches[step * accumulation : (step + 1) * accumulation]
        own, shares = gradients_of(model, of_update, accumulation)
        model.zero_grad()
        for n, parameter in model.named_parameters():
            sent = []
            for rank in range(WORLD):
                has = n in own[rank]
                gradient = own[rank].get(n, torch.zeros_like(parameter))
                mine = (
                    kept[rank][n] + gradient
                    if feedback
                    else momentum * kept[rank][n] + (1 - momentum) * gradient
                )
                size = mine.abs().mean() if feedback else (shares[rank] if has else 0.0)
                sent.append(sign(mine, step) * size)
                kept[rank][n] = mine - sent[rank] if feedback and any(n in o for o in own) else mine
            if any(n in of_rank for of_rank in own):
                total = sent[0] + sent[1]
                parameter.grad = total / WORLD if feedback else total.sign()
        agreed.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        if settings["max_grad_norm"]:
            ordered = sorted(
                model.named_parameters(), key=lambda named: named[0].endswith("bias")
            )  # the groups' order
            torch.nn.utils.clip_grad_norm_([p for _, p in ordered], settings["max_grad_norm"])
        optimizer.param_groups[0]["lr"] = settings["learning_rate"] * ((updates - step) / updates)
        optimizer.step()
        history.append([dict(of_rank) for of_rank in kept])
    return model, agreed, history


def largest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).detach().abs().max()) for name in wanted)


@pytest.mark.parametrize("name", PLAN)
def test_it_is_the_algorithm(ranks: list[dict[str, dict[str, Any]]], name: str) -> None:
    model, agreed, _ = by_hand(ranks, name)
    for rank in range(WORLD):
        made = ranks[rank][name]
        assert len(made["gradients"]) == len(agreed)
        for step, wanted in enumerate(agreed):
            assert largest(made["gradients"][step], wanted) == 0, (rank, step)
        weights = {n: made["weights"][n] for n, _ in model.named_parameters()}
        assert largest(weights, dict(model.named_parameters())) == 0
    assert largest(ranks[0][name]["weights"], ranks[1][name]["weights"]) == 0  # buffers too


def test_what_nobody_used_stays(ranks: list[dict[str, dict[str, Any]]]) -> None:
    """It has no gradient, so that it is not even decayed; what one process used alone is moved on both."""
    seen = [set(of_update) for of_update in ranks[0]["feedback"]["gradients"]]
    assert not any(name.startswith("never") for names in seen for name in names)
    assert {"seldom.weight" in names for names in seen} == {True, False}
    assert torch.equal(ranks[0]["feedback"]["weights"]["never.weight"], Model().never.weight)


def test_one_bit_an_element_is_sent(ranks: list[dict[str, dict[str, Any]]]) -> None:
    """And for each tensor its size, and whether it was used."""
    updates = len(ranks[0]["feedback"]["gradients"])
    parameters = list(Model().parameters())
    bits = sum(-(-p.numel() // 8) for p in parameters)
    sent = updates * (bits + 8 * len(parameters))
    assert ranks[0]["feedback"]["sent"] * 1e6 == pytest.approx(sent)
    whole = updates * 4 * sum(p.numel() for p in parameters)
    assert ranks[0]["feedback"]["said"] == [
        f"Each process sent {sent / 1e6:.3f} MB of {whole / 1e6:.3f} MB of gradients."
    ]


def test_a_resume_goes_on_exactly(ranks: list[dict[str, dict[str, Any]]]) -> None:
    """From the midst of an accumulation: what each process had kept, and its own gradients, are its own again."""
    for rank in range(WORLD):
        whole, again = ranks[rank]["accumulated"], ranks[rank]["again"]
        assert largest(again["weights"], whole["weights"]) == 0
        assert len(again["gradients"]) == len(whole["gradients"]) - 1
    assert largest(ranks[0]["again"]["kept"], ranks[1]["again"]["kept"]) > 0  # they are not the same


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_no_number_is_seen_and_leaves_nothing(
    ranks: list[dict[str, dict[str, Any]]], name: str
) -> None:
    """On all processes the gradient is none, so that all can skip the update, and train on from what they had kept."""
    spoilt = [
        sum(
            any(bool(g.isnan().any()) for g in of_update.values()) for of_update in of_rank[name]["gradients"]
        )
        for of_rank in ranks
    ]
    assert spoilt == [2, 2]  # the row comes once an epoch, to one of them
    for of_rank in ranks:
        assert all(bool(value.isfinite().all()) for value in of_rank[name]["weights"].values())
    assert largest(ranks[0][name]["weights"], ranks[1][name]["weights"]) == 0


def test_another_number_of_processes_takes_the_mean_of_what_was_kept(folder: Path, ranks: Any) -> None:
    more = {**AGAIN["again"], "per_device_train_batch_size": ROWS_A_PROCESS // 2, "max_steps": 2}
    _, _, history = by_hand(ranks, "accumulated")
    first, second = history[0]
    mean = {name: (first[name] + second[name]) / WORLD for name in first}
    for of_rank in launch(folder, {"more": more}, 2 * WORLD):
        assert largest(of_rank["more"]["kept"], mean) == 0
