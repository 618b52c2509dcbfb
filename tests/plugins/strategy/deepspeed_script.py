"""Trains a small model under DeepSpeed in many ways, in one launch: importing it takes longer than any of them.

    deepspeed_script.py FOLDER FILE    FILE: JSON, a list of scenarios, {"name": ..., "settings": ..., ...}

Each rank saves what the test compares in FOLDER/NAME.RANK.pt.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from support.toy import accuracy, history

from drivetrain import Trainer, TrainerCallback, TrainingArguments
from drivetrain.plugin import hookimpl
from drivetrain.slots import PrecisionPolicy

WORLD = int(os.environ.get("WORLD_SIZE", "1"))


class Uneven(torch.nn.Module):
    """Shapes that divide by nothing, a tied weight, a buffer, and parameters with and without decay."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 5)
        self.first = torch.nn.Linear(5, 7)
        self.norm = torch.nn.LayerNorm(7)
        self.second = torch.nn.Linear(7, 5)
        self.head = torch.nn.Linear(5, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = torch.relu(self.norm(self.first(self.embed(ids).mean(1))))
        logits = self.head(self.second(hidden)) * self.factor
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 11, (count, 4), generator=generator)
    return [{"ids": ids[i], "labels": int(ids[i].sum()) % 11} for i in range(count)]


class Facts(TrainerCallback):
    """What the engine is and holds, seen from inside the run, by the rank that asks."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        strategy = self.trainer.run.strategy
        engine = getattr(strategy, "engine", None)
        if engine is None:
            return
        pieces = strategy.pieces
        self.seen = {
            "engine": f"{type(engine).__module__}.{type(engine).__name__}",
            "optimizer": type(engine.optimizer).__name__,
            "inner": type(engine.basic_optimizer).__name__,
            "updated": sum(row.numel() for row in pieces.rows) if pieces is not None else None,
            "held": sum(getattr(p, "ds_tensor", p).numel() for p in self.trainer.model.parameters()),
            "whole": sum(getattr(p, "ds_numel", p.numel()) for p in self.trainer.model.parameters()),
            "dtype": str(next(self.trainer.model.parameters()).dtype),
            "scale": getattr(strategy.scaler or strategy.loss_scale, "state_dict", dict)().get("scale"),
            "training": engine.training and self.trainer.model.training,
        }


class Failing(TrainerCallback):
    """Fails at the third update, on the ranks that are named."""

    def __init__(self, ranks: list[int]) -> None:
        self.ranks = ranks

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and args.process_index in self.ranks:
            raise ArithmeticError(f"rank {args.process_index} fails at step 3")


class Scaled:
    """Single precision with a loss scale: what fp16 asks of a strategy, where there is no fp16."""

    name = "scaled"
    policy = PrecisionPolicy("scaled", loss_scale={"init_scale": 1024.0, "growth_interval": 3})

    @hookimpl
    def make_precision(self, run: Any) -> Any:
        return self

    def setup(self, run: Any) -> None:
        pass

    def autocast(self, device_type: str) -> Any:
        return contextlib.nullcontext()

    def close(self) -> None:
        pass


class Overflowing(Trainer):
    """The gradients of the third update are infinite."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        found = super().compute_loss(model, inputs, return_outputs)
        if model.training and self.state.global_step == 2 and not getattr(self, "overflowed", False):
            self.overflowed = True
            return found * float("inf")
        return found


def leftovers(model: torch.nn.Module) -> list[str]:
    """Names on parameters and modules that a plain model does not have."""
    found = [f"{name}.{key}" for name, p in model.named_parameters() for key in vars(p)]
    plain = set(vars(torch.nn.Module()))
    for name, module in model.named_modules():
        found += [
            f"{name}.{key}" for key in vars(module) if key.startswith(("ds_", "_ds")) or "external" in key
        ]
        found += [
            f"{name}.{key}"
            for key, value in vars(module).items()
            if "hooks" in key and value and key in plain
        ]
        if type(module._parameters) is not dict:
            found.append(f"{name}._parameters is a {type(module._parameters).__name__}")
    if torch.nn.functional.linear.__module__.startswith("deepspeed"):
        found.append("torch.nn.functional.linear")
    return found


def make(folder: str, scenario: dict[str, Any], **extra: Any) -> Trainer:
    settings = {
        "per_device_train_batch_size": scenario.get("rows_in_all", 8) // scenario.get("world", WORLD),
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.5,
        "weight_decay": 0.1,
        "learning_rate": 2e-2,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        **scenario.get("settings", {}),
    }
    data = rows(scenario.get("rows", 101))
    facts = Facts()
    torch.manual_seed(0)
    if scenario.get("model_init"):
        extra["model_init"] = Uneven
    else:
        extra["model"] = Uneven()
        if scenario.get("freeze"):
            extra["model"].first.requires_grad_(False)
    if scenario.get("sgd"):
        extra["optimizers"] = (torch.optim.SGD(extra["model"].parameters(), lr=0.1, momentum=0.9), None)
    cls = Overflowing if scenario.get("overflow") else Trainer
    if scenario.get("scaled"):
        extra["plugins"] = [Scaled()]
    failing = [Failing(scenario["failing"])] if "failing" in scenario else []
    trainer = cls(
        args=TrainingArguments(f"{folder}/{scenario['name']}", **settings),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=accuracy,
        callbacks=[facts, *failing],
        **extra,
    )
    facts.trainer = trainer
    trainer.facts = facts
    return trainer


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def run(folder: str, scenario: dict[str, Any]) -> dict[str, Any]:
    trainer = make(folder, scenario)
    result: dict[str, Any] = {}
    if scenario.get("evaluate_only"):
        result["metrics"] = trainer.evaluate()
    else:
        for _ in range(scenario.get("times", 1)):
            try:
                outcome = trainer.train(resume_from_checkpoint=scenario.get("resume"))
                result["loss"] = outcome.training_loss
            except ArithmeticError as error:
                if len(scenario["failing"]) < WORLD:
                    raise
                result["error"] = str(error)
                print(f"told by rank {trainer.args.process_index}: {error}", flush=True)
        result["history"] = history(trainer)
    if scenario.get("save_model"):
        trainer.save_model(f"{folder}/{scenario['name']}-saved")
    predicted = trainer.predict(trainer.eval_dataset)
    outputs = trainer.model(torch.zeros(1, 4, dtype=torch.long))["logits"]
    assert outputs.isfinite().all()
    return {
        **result,
        "weights": weights_of(trainer),
        "tied": trainer.model.head.weight is trainer.model.embed.weight,
        "predictions": torch.as_tensor(predicted.predictions),
        "facts": trainer.facts.seen,
        "leftovers": leftovers(trainer.model),
        "strategy": type(trainer.run.strategy).__name__,
        "rank": trainer.args.process_index,
    }


def main(folder: str, scenarios: list[dict[str, Any]]) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("default", module="deepspeed|pydantic|torch.jit|torch.utils.cpp_extension")
    for scenario in scenarios:
        try:
            result = run(folder, scenario)
        except Exception as error:
            if not scenario.get("fails"):
                raise
            result = {"error": f"{type(error).__name__}: {error}", "rank": int(os.environ.get("RANK", "0"))}
        torch.save(result, f"{folder}/{scenario['name']}.{result['rank']}.pt")
        if torch.distributed.is_initialized() and WORLD > 1:
            torch.distributed.barrier()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
