"""Every option of precision and compilation beside plain float32: training, evaluation, prediction, and a resume.

By itself it runs them and writes what it found: `precision_options.py FOLDER STRATEGY [NAME...]`, under torchrun for
several processes.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drivetrain import Trainer, TrainingArguments, hookimpl
from drivetrain.checkpoint import load_checkpoint
from drivetrain.slots import PrecisionPolicy
from drivetrain_plugins.precision.base import PlainPrecision


class HalfOnCPU(PlainPrecision):
    """fp16 where its plugin refuses to: autocast and GradScaler are torch's own, and a CPU has them too."""

    name = "fp16_on_cpu"
    init_scale = 2.0**10

    def policy_of(self, args: Any) -> PrecisionPolicy:
        scale = {"init_scale": self.init_scale, "growth_interval": 3}
        return PrecisionPolicy(self.name, compute=torch.float16, loss_scale=scale)

    @hookimpl
    def make_precision(self, run: Any) -> PlainPrecision:
        return super().make_precision(run)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.inner, self.outer = nn.Linear(32, 64), nn.Linear(64, 32)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.outer(torch.relu(self.inner(self.norm(x)))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(32, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(32, 3)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x.mean(1))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


# Name, arguments, and how far losses, metrics and predictions may be from those of float32, by the largest
# element's difference over the largest element, and weights by the norm of the difference. 0 is equal in every bit.
OPTIONS: dict[str, tuple[dict[str, Any], float]] = {
    "full_determinism": ({"full_determinism": True}, 0.0),
    "gradient_checkpointing": ({"gradient_checkpointing": True}, 0.0),
    "torch_compile eager": ({"torch_compile_backend": "eager"}, 1e-5),
    "torch_compile aot_eager": ({"torch_compile_backend": "aot_eager"}, 1e-5),
    "torch_compile, gradient_checkpointing": (
        {"torch_compile_backend": "aot_eager", "gradient_checkpointing": True},
        1e-5,
    ),
    "jit_mode_eval": ({"jit_mode_eval": True}, 1e-5),
    "torch_compile, jit_mode_eval": ({"torch_compile_backend": "eager", "jit_mode_eval": True}, 1e-5),
    "bf16_full_eval": ({"bf16_full_eval": True}, 2e-2),
    "bf16": ({"bf16": True}, 3e-2),
    "bf16, torch_compile": ({"bf16": True, "torch_compile_backend": "aot_eager"}, 3e-2),
    "bf16, gradient_checkpointing": ({"bf16": True, "gradient_checkpointing": True}, 3e-2),
    "bf16, jit_mode_eval": ({"bf16": True, "jit_mode_eval": True}, 3e-2),
    "fp16 on a CPU": ({"precision": HalfOnCPU}, 5e-3),
    "float8 emulated": ({"precision": "float8", "plugins": {"float8": {"emulate": True}}}, 1e-1),
}


def rows(count: int = 64) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"ids": torch.randint(0, 32, (6,), generator=generator), "labels": i % 3} for i in range(count)]


def trainer(folder: Path, **arguments: Any) -> Trainer:
    own = arguments.pop("precision", None)
    objects = [own()] if isinstance(own, type) else []
    if isinstance(own, str):
        arguments["precision"] = own
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = TrainingArguments(
        str(folder), max_steps=8, per_device_train_batch_size=8 // world, gradient_accumulation_steps=2,
        per_device_eval_batch_size=8, learning_rate=2e-3, logging_steps=1, save_steps=4, report_to="none", use_cpu=True,
        disable_tqdm=True, **arguments,
    )  # fmt: skip
    return Trainer(Net(), args, train_dataset=rows(), eval_dataset=rows(20), plugins=objects)


def results(folder: Path, **arguments: Any) -> dict[str, Any]:
    """What a run gives, an evaluation and a prediction after it, and a run that goes on from its middle."""
    made = trainer(folder, **arguments)
    made.train()
    losses = [row["loss"] for row in made.state.log_history if "loss" in row]
    found = {
        "weights": {name: tensor.clone() for name, tensor in made.model.state_dict().items()},
        "losses": torch.tensor(losses),
        "evaluation": torch.tensor(made.evaluate()["eval_loss"]),
        "predictions": torch.from_numpy(made.predict(rows(11)).predictions),
    }
    scale = last_scale(made)
    resumed = trainer(folder, **arguments)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    found["resumed"] = dict(resumed.model.state_dict())
    found["scale"] = scale, last_scale(resumed)
    return found


def last_scale(made: Trainer) -> Any:
    """The loss scale's state in the last checkpoint."""
    if not made.is_world_process_zero():
        return None
    return load_checkpoint(os.path.join(made.args.output_dir, "checkpoint-8")).train_state.loss_scale


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """All weights together: Adam makes a whole step of the smallest gradient, whatever rounding makes of its sign."""
    distance = sum(float((tensor - expected[name]).square().sum()) for name, tensor in found.items())
    return float((distance / sum(float(tensor.square().sum()) for tensor in expected.values())) ** 0.5)


def compare(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """How far a run is from another, and from its own continuation."""
    told = {name: far(found[name], expected[name]) for name in ("losses", "evaluation", "predictions")}
    told["weights"] = apart(found["weights"], expected["weights"])
    told["resume"] = apart(found["resumed"], found["weights"])
    return told


def table(folder: Path, names: Any, **common: Any) -> dict[str, dict[str, Any]]:
    """The differences of options from float32."""
    told: dict[str, dict[str, Any]] = {}
    expected = results(folder / "plain", **common)
    for number, name in enumerate(names):
        torch._dynamo.reset()
        found = results(folder / f"option-{number}", **OPTIONS[name][0], **common)
        told[name] = {**compare(found, expected), "scale": found["scale"]}
    return told


def main() -> None:
    warnings.simplefilter("ignore")
    folder, strategy = Path(sys.argv[1]), sys.argv[2]
    told = table(folder, sys.argv[3:] or list(OPTIONS), strategy=strategy)
    if int(os.environ.get("RANK", "0")) == 0:
        (folder / "told.json").write_text(json.dumps(told))
        for name, row in told.items():
            numbers = [f"{value:.0e}" if value else "=" for value in row.values() if isinstance(value, float)]
            print(f"| {name} |", " | ".join(numbers), f"| {OPTIONS[name][1]:.0e} |")


if __name__ == "__main__":
    main()
