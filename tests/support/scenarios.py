"""Many small runs in one launch: a process group is expensive, a run of a toy is not.

Run by torchrun with a folder that holds `scenarios.json`, `{name: settings}`; what each run came to is written to
`NAME.pt`. In one process `run` does the same without a launch.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from drivetrain import Trainer, TrainerCallback, TrainingArguments
from drivetrain.errors import DrivetrainError
from drivetrain.processes import current
from support.launch import torchrun
from support.toy import history, rows, trainer

ROWS_IN_ALL = 8  # of a micro-batch, over all ranks


class Rich(torch.nn.Module):
    """Uneven shapes, a tied weight, a buffer, a frozen layer, and a layer that only some rows reach."""

    def __init__(
        self,
        frozen: bool = False,
        unused: bool = False,
        branch: bool = False,
        tied: bool = True,
        alternating: bool = False,
    ) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 13)
        self.norm = torch.nn.LayerNorm(13)
        self.middle = torch.nn.Linear(13, 13, bias=False)
        self.again = torch.nn.Linear(13, 13)
        if tied:
            self.again.weight = self.middle.weight
        self.last = torch.nn.Linear(13, 3)
        self.spare = torch.nn.Linear(5, 7)
        self.register_buffer("forwards", torch.zeros((), dtype=torch.long))
        self.branch, self.alternating = branch, alternating
        if not unused and not branch and not alternating:
            del self.spare
        if branch or alternating:
            self.spare = torch.nn.Linear(3, 3)
        if frozen:
            self.first.requires_grad_(False)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if self.training:
            self.forwards += 1
        hidden = self.norm(torch.relu(self.first(x)))
        logits = self.last(torch.relu(self.again(torch.relu(self.middle(hidden)))))
        if self.alternating and self.forwards % 2 == 1:
            logits = logits + self.spare(logits)
        if self.branch and labels is not None:
            # Only rows of class 2 reach the spare layer, so a rank may have none in a batch.
            chosen = labels == 2
            if chosen.any():
                logits = logits.clone()
                logits[chosen] = logits[chosen] + self.spare(logits[chosen])
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Wide(torch.nn.Module):
    """A few megabytes of parameters, so that buckets of one fill."""

    def __init__(self, normalised: bool = False) -> None:
        super().__init__()
        width = 16 if normalised else 512
        norm: torch.nn.Module = torch.nn.BatchNorm1d(width) if normalised else torch.nn.Identity()
        layers = [torch.nn.Linear(8, width), norm, torch.nn.ReLU()]
        layers += [
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
        ]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(width, 3))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.layers(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Deep(torch.nn.Module):
    """Repeated blocks, which gradient checkpointing finds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 12)
        block = [torch.nn.Linear(12, 12), torch.nn.Tanh()]
        self.blocks = torch.nn.ModuleList(torch.nn.Sequential(*map(copy.deepcopy, block)) for _ in range(3))
        for layer in self.blocks:
            torch.nn.init.orthogonal_(layer[0].weight)
        self.last = torch.nn.Linear(12, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.first(x))
        for layer in self.blocks:
            hidden = layer(hidden)
        logits = self.last(hidden)
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


MODELS: dict[str, Any] = {
    "deep": Deep,
    "wide": Wide,
    "normalised": lambda: Wide(normalised=True),
    "rich": Rich,
    "untied": lambda: Rich(tied=False),
    "frozen": lambda: Rich(frozen=True),
    "unused": lambda: Rich(unused=True),
    "branch": lambda: Rich(branch=True),
    "alternating": lambda: Rich(alternating=True),
    "mixed": lambda: _mixed(),
}


def _mixed() -> torch.nn.Module:
    model = Rich()
    model.last.double()
    return model


class Look(TrainerCallback):
    """What the engine looks like in the middle of the run, and what is called in an evaluation by itself."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.wrapped: Any = lambda: None
        self.gradients = 0
        self.evaluated_by = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self.trainer.run  # type: ignore[attr-defined]
        if not hasattr(run.optimizer, "register_step_pre_hook"):
            return

        def count(*_: Any) -> None:
            held = [p.grad for p in run.model.parameters() if p.grad is not None]
            self.gradients = sum(gradient.numel() for gradient in held)

        run.optimizer.register_step_pre_hook(count)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self.trainer.run  # type: ignore[attr-defined]
        if not run.is_training:
            self.evaluated_by = type(run.model_wrapped).__name__

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            run = self.trainer.run  # type: ignore[attr-defined]
            self.seen = look(run)
            self.wrapped = weakref.ref(run.model_wrapped)


def look(run: Any) -> dict[str, Any]:
    inner = getattr(run.optimizer, "optim", run.optimizer)
    elements = sum(
        value.numel()
        for entry in inner.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor) and value.dim()
    )
    kinds = [f"{found.__module__}.{found.__name__}" for found in type(run.model_wrapped).__mro__]
    logged = getattr(run.model_wrapped, "_get_ddp_logging_data", dict)()
    seen = {
        "ddp": {key: value for key, value in logged.items() if isinstance(value, (str, int))},
        "static_graph": getattr(run.model_wrapped, "static_graph", None),
        "wrapped": kinds,
        "optimizer": f"{type(run.optimizer).__module__}.{type(run.optimizer).__name__}",
        "inner": type(inner).__name__,
        "state_elements": elements,
        "parameter_elements": sum(p.numel() for p in run.model.parameters()),
        "trained_elements": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
    }
    return seen


class Secretive(torch.optim.SGD):
    """It keeps one of its arguments to itself."""

    def __init__(self, params: Any, secret: float) -> None:
        super().__init__(params, lr=secret)


def own_optimizer(name: str, model: torch.nn.Module) -> tuple[Any, Any]:
    """A finished optimizer with groups, and a scheduler of the user's on it."""
    decayed = [p for n, p in model.named_parameters() if "weight" in n and p.requires_grad]
    others = [p for n, p in model.named_parameters() if "weight" not in n and p.requires_grad]
    if name == "secretive":
        return Secretive(model.parameters(), secret=0.1), None
    if name == "partial":  # some that are trained are in no group
        return torch.optim.SGD([{"params": decayed}], lr=0.05, momentum=0.9), None
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "lr": 3e-2}, {"params": others}], lr=1e-2, weight_decay=0.1
    )
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)


def run(folder: Path, name: str, settings: dict[str, Any], processes: int) -> dict[str, Any]:
    """One run, and what it came to."""
    settings = dict(settings)
    resume = settings.pop("resume", None)
    model = settings.pop("model", None)
    finished = settings.pop("finished", None)
    twice = settings.pop("twice", False)
    count = settings.pop("rows", 53)
    torch.manual_seed(0)
    if model is not None:
        settings["model"] = MODELS[model]()
        if finished is not None:
            settings["optimizers"] = own_optimizer(finished, settings["model"])
    seen = Look()
    result: dict[str, Any] = {"error": None}
    defaults = {
        "per_device_train_batch_size": ROWS_IN_ALL // processes,
        "num_train_epochs": 2,
        "logging_steps": 2,
        "save_strategy": "no",
        "callbacks": [seen],
    }
    trained: Trainer | None = None
    try:
        trained = trainer(folder / name, data=rows(count), **{**defaults, **settings})
        seen.trainer = trained  # type: ignore[attr-defined]
        outcome = trained.train(resume_from_checkpoint=resume)
        if twice:
            outcome = trained.train()
    except DrivetrainError as error:
        result["error"] = f"{type(error).__name__}: {error}"
        return result
    result.update(seen.seen)
    bare = trained.model
    result["whole_elements"] = sum(p.numel() for p in bare.parameters())
    result["whole_tensors"] = len(list(bare.parameters()))
    result["hooks_left"] = sum(
        len(p._post_accumulate_grad_hooks or ()) + len(p._backward_hooks or ()) for p in bare.parameters()
    )
    result["views_left"] = sum(p._base is not None for p in bare.parameters())
    result["loss"] = outcome.training_loss
    result["weights"] = {key: value.clone() for key, value in bare.state_dict().items()}
    result["history"] = [row for row in history(trained) if "loss" in row or "eval_loss" in row]
    result["strategy"] = type(trained.run.strategy).__name__
    result["evaluated"] = trained.evaluate()["eval_loss"]
    result["evaluated_by"] = seen.evaluated_by
    result["gradient_elements"] = seen.gradients
    gc.collect()
    result["wrapper_left"] = seen.wrapped() is not None and seen.wrapped() is not bare
    if processes > 1 and dist.get_rank() > 0:
        return result
    # The bare model, used as anybody would, on one rank alone.
    batch = torch.stack([row["x"] for row in rows(4)])
    labels = torch.tensor([row["labels"] for row in rows(4)])
    bare.zero_grad()
    bare.train()
    bare(batch, labels)["loss"].backward()
    result["bare_gradients"] = sum(p.grad is not None for p in bare.parameters())
    return result


def among_ranks(result: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's result, with what must be looked at on every rank."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, result)
    first = everyone[0]
    first["errors"] = [other["error"] for other in everyone]
    if first["error"] is None:
        for name in ("state_elements", "gradient_elements", "parameter_elements"):
            first[f"all_{name}"] = [other.get(name) for other in everyone]
        first["ranks_equal"] = all(
            torch.equal(first["weights"][key], other["weights"][key])
            for other in everyone
            for key in first["weights"]
            if first["weights"][key].is_floating_point()
        )
    return first


def launch(
    folder: Path, scenarios: dict[str, dict[str, Any]], processes: int = 2
) -> dict[str, dict[str, Any]]:
    """Every scenario, one after another, in one process group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    torchrun(Path(__file__), str(folder), processes=processes, timeout=max(240, 30 * len(scenarios)))
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in scenarios}


def without_engine(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the same run in one process."""
    engine = (
        "plugins",
        "strategy",
        "sharded_ddp",
        "torch_compile",
        "torch_compile_backend",
        "gradient_checkpointing",
    )
    return {key: value for key, value in settings.items() if key not in engine}


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 2e-5) -> None:
    """The same run: losses, log, evaluation, weights."""
    assert one["error"] is None
    assert other["error"] is None
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], tensor, rtol=tolerance, atol=tolerance)
    assert other["loss"] == pytest.approx(one["loss"], rel=tolerance)
    assert other["evaluated"] == pytest.approx(one["evaluated"], rel=tolerance)
    assert len(one["history"]) == len(other["history"])
    for a, b in zip(one["history"], other["history"], strict=True):
        assert b == pytest.approx(a, rel=max(1e-4, tolerance))


def main(folder: Path) -> None:
    """All scenarios of the folder."""
    if os.environ.get("TEST_ONLY_FAIRSCALE_SHIM"):
        from support import fairscale_shim

        fairscale_shim.install()
    processes = current(TrainingArguments(str(folder), use_cpu=True)).world_size
    for name, settings in json.loads((folder / "scenarios.json").read_text()).items():
        start = time.perf_counter()
        result = among_ranks(run(folder, name, settings, processes))
        if dist.get_rank() == 0:
            torch.save(result, folder / f"{name}.pt")
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
