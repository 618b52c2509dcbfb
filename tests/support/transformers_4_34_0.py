"""Checkpoints that transformers 4.34.0 wrote, and how it went on from them: what the tests go on from.

    python tests/support/transformers_4_34_0.py tests/core/checkpoint/from_4_34_0

writes them anew, in an environment with `transformers==4.34.0`, `accelerate==0.23.0` and `numpy<2`, as `nox -s parity`
makes it. Each folder holds `checkpoint-STEP`, as it was written, and `continued.json`: the run that 4.34.0 itself made
of it, with the loss of every forward pass and the weights at the end; of `as_begun` the run that never stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

STEPS = {"adamw": 9, "adafactor": 4, "plateau": 5, "two_processes": 4, "as_begun": 9}
"""Name -> the update after which the checkpoint was written."""

_SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.1, "warmup_steps": 3},  # in the middle of the second epoch
    "adafactor": {
        "optim": "adafactor",
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "save_safetensors": True,
    },
    "plateau": {
        "optim": "sgd",
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "evaluation_strategy": "steps",
        "eval_steps": 1,
        "learning_rate": 1.0,
    },
    "as_begun": {"evaluation_strategy": "steps", "eval_steps": 4},  # without dropout, in the second epoch
    "two_processes": {"ddp_backend": "gloo"},  # in the second of two epochs of three updates
}


class Net(torch.nn.Module):
    """A classifier with dropout; it writes down its losses in training."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.losses: list[float] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            self.inner = torch.nn.Linear(6, 8)
            self.norm = torch.nn.LayerNorm(8)
            self.outer = torch.nn.Linear(8, 3)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.outer(self.dropout(torch.relu(self.norm(self.inner(x)))))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        if self.training:
            self.losses.append(float(loss.detach()))
        return {"loss": loss, "logits": logits}


def rows(name: str) -> list[dict[str, Any]]:
    """22 rows make six batches of four, the last of them short; 24 make three of two processes."""
    count = 24 if name == "two_processes" else 22
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    y = torch.randint(0, 3, (count,), generator=generator)
    return [{"x": x[i], "labels": int(y[i])} for i in range(count)]


def make(trainer: type, arguments: type, name: str, folder: Any, **more: Any) -> Any:
    """The trainer of a checkpoint, of either library."""
    settings = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.01,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_steps": 1,
        **_SETTINGS[name],
        **more,
    }
    data = rows(name)
    model = Net(dropout=0.0 if name == "as_begun" else 0.3)
    return trainer(model, arguments(str(folder), **settings), train_dataset=data, eval_dataset=data[:8])


def outcome(trainer: Any) -> dict[str, Any]:
    """What is compared."""
    model, state = trainer.model, trainer.state
    return {
        "losses": model.losses,
        "weights": {key: value.tolist() for key, value in model.state_dict().items()},
        "log": [
            {k: v for k, v in row.items() if not k.endswith(("runtime", "per_second", "train_loss"))}
            for row in state.log_history
        ],
        "global_step": state.global_step,
        "epoch": state.epoch,
    }


def _run(name: str, folder: Path, result: Path | None, resume: str | None) -> None:
    from transformers import Trainer, TrainingArguments, __version__

    if __version__ != "4.34.0":
        sys.exit(f"These are checkpoints of transformers 4.34.0, and {__version__} is installed here.")
    trainer = make(Trainer, TrainingArguments, name, folder)
    trainer.train(resume_from_checkpoint=resume)
    if result is not None and int(os.environ.get("RANK", "0")) == 0:
        found = outcome(trainer)
        found["losses"] = found["losses"] if resume else found["losses"][STEPS[name] :]
        result.write_text(json.dumps(found) + "\n", encoding="utf-8")


def _write(target: Path, names: list[str]) -> None:
    # Random states are arrays of numpy, which 4.34.0 reads with a torch of its time or by this.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    for name in names or STEPS:
        step = STEPS[name]
        with tempfile.TemporaryDirectory() as work:
            place, checkpoint = target / name, target / name / f"checkpoint-{step}"
            shutil.rmtree(place, ignore_errors=True)
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            start = [
                sys.executable,
                *(launcher if name == "two_processes" else []),
                str(Path(__file__).resolve()),
            ]
            # In its folder, so that no path of this machine is written.
            result = str(Path(work) / "whole.json" if name != "as_begun" else place / "continued.json")
            place.mkdir()
            subprocess.run([*start, name, "out", result], check=True, env=environment, cwd=work)
            # Its arguments are never opened, and tell the machine that they were written on.
            unopened = shutil.ignore_patterns("training_args.bin")
            shutil.copytree(f"{work}/out/checkpoint-{step}", checkpoint, ignore=unopened)
            again = [name, "resumed", str(place / "continued.json"), str(checkpoint)]
            if name != "as_begun":
                subprocess.run([*start, *again], check=True, env=environment, cwd=work)


if __name__ == "__main__":
    if sys.argv[1] in STEPS:
        result, resume = [*sys.argv[3:5], None, None][:2]
        _run(sys.argv[1], Path(sys.argv[2]), Path(result) if result else None, resume)
    else:
        _write(Path(sys.argv[1]).resolve(), sys.argv[2:])
