"""Transforms, loggers and the bar with two processes: transforms on each, and one voice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")

SCRIPT = """
import json, os, sys, torch
from torch import nn
from drivetrain import Trainer, TrainingArguments, hookimpl

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 2)
    def forward(self, x, labels=None):
        logits = self.head(self.layers(x[:, None, :])[:, 0])
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

seen = {}
graphs = []

def counting(graph, inputs):
    graphs.append(graph)
    return graph.forward

torch._dynamo.register_backend(counting, name="counting")

class Looks:
    name = "looks"
    @hookimpl
    def on_step_end(self, run):
        seen["wrapped"] = type(run.model_wrapped).__name__
        seen["compiled"] = run.model_wrapped._compiled_call_impl is not None
        seen["checkpointed"] = sum("forward" in vars(layer) for layer in run.model.layers.layers)

torch.manual_seed(1)
rows = [{"x": torch.randn(8), "labels": i % 2} for i in range(32)]
args = TrainingArguments(
    sys.argv[1], num_train_epochs=1, logging_steps=1, learning_rate=1e-2, save_strategy="no",
    report_to="tensorboard", logging_dir=sys.argv[1] + "/events", use_cpu=True,
    per_device_train_batch_size=4, **json.loads(sys.argv[2]),
)
trainer = Trainer(Net(), args, train_dataset=rows, eval_dataset=rows, plugins=[Looks()])
trainer.train()
seen["graphs"] = len(graphs)
seen["loss"] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
seen["keys"] = list(trainer.model.state_dict())
seen["left"] = trainer.model._compiled_call_impl is not None
with open(f"{sys.argv[1]}/seen-{args.process_index}.json", "w") as file:
    json.dump(seen, file)
"""


def run(folder: Path, **arguments: Any) -> tuple[list[dict[str, Any]], str]:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(script), str(folder), json.dumps(arguments)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)], done.stdout


def test_two_processes(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain")
    both, printed = run(tmp_path / "both", gradient_checkpointing=True, torch_compile_backend="counting")
    for rank in range(2):
        assert plain[rank]["wrapped"] == both[rank]["wrapped"] == "DistributedDataParallel"
        assert not plain[rank]["compiled"]
        assert both[rank]["compiled"]
        assert both[rank]["checkpointed"] == 2
        assert both[rank]["graphs"] >= 1
        assert both[rank]["keys"] == plain[rank]["keys"]
        assert not both[rank]["left"]
        assert both[rank]["loss"] == pytest.approx(plain[rank]["loss"], rel=1e-4)
    # One voice: four rows of training and the summary, each once, and one file of events.
    assert len(re.findall(r"^step ", printed, flags=re.MULTILINE)) == 5
    assert len(list((tmp_path / "both" / "events").iterdir())) == 1
