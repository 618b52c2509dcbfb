"""A model too small to wait for, and its data."""

from __future__ import annotations

from typing import Any

import torch

from drivetrain import Trainer, TrainingArguments


class Toy(torch.nn.Module):
    """Three classes from eight numbers."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.second = torch.nn.Linear(16, 3)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.second(self.dropout(torch.relu(self.norm(self.first(x)))))
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(count: int = 101, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    y = x[:, :3].argmax(1)
    return [{"x": x[i], "labels": int(y[i])} for i in range(count)]


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def trainer(
    output_dir: Any, *, dropout: float = 0.0, data: Any = None, cls: type = Trainer, **kwargs: Any
) -> Trainer:
    """A trainer of a toy; keywords that Trainer knows go to it, all others to the arguments."""
    known = (
        "callbacks",
        "compute_metrics",
        "eval_dataset",
        "optimizers",
        "trace_hooks",
        "model_init",
        "model",
        "data_collator",
        "tokenizer",
        "processing_class",
        "preprocess_logits_for_metrics",
    )
    own = {name: kwargs.pop(name) for name in known if name in kwargs}
    if isinstance(kwargs.get("plugins"), list):  # objects; options by name are an argument
        own["plugins"] = kwargs.pop("plugins")
    settings: dict[str, Any] = {
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "use_cpu": True,
    }
    settings.update(kwargs)
    torch.manual_seed(0)
    if "model" not in own and "model_init" not in own:
        own["model"] = Toy(dropout)
    data = rows() if data is None else data
    own.setdefault("eval_dataset", data)
    return cls(args=TrainingArguments(str(output_dir), **settings), train_dataset=data, **own)


def weights_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def history(trained: Trainer) -> list[dict[str, Any]]:
    """The log without what the clock says."""
    return [
        {key: value for key, value in row.items() if "runtime" not in key and "per_second" not in key}
        for row in trained.state.log_history
    ]
