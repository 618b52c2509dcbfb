"""What `skip_memory_metrics=False`, `include_tokens_per_second` and `debug` add, and where they put it."""

from __future__ import annotations

from typing import Any

import torch
from fixtures import bert, data, text_rows, tokenizer
from kit import Kit, case


def _kinds(metrics: dict[str, Any] | None) -> list[str]:
    return sorted(key for key in metrics or {} if "_mem_" in key or "tokens" in key)


@case("debugging/memory-metrics")
def _(k: Kit) -> None:
    """The keys of each stage, those of the making with the first of them, and what the log has."""
    trained = k.trainer(skip_memory_metrics=False, watch=False)
    k.record["trained"] = _kinds(trained.train().metrics)
    k.record["evaluated"] = _kinds(trained.evaluate())
    k.record["predicted"] = _kinds(trained.predict(data(6)).metrics)
    k.record["logged"] = [_kinds(row) for row in trained.state.log_history if "train_runtime" in row]
    evaluated = k.trainer(skip_memory_metrics=False, watch=False)
    k.record["evaluated first"] = _kinds(evaluated.evaluate())
    k.record["trained then"] = _kinds(evaluated.train().metrics)
    k.record["shown"] = trained.metrics_format(
        {"train_mem_cpu_alloc_delta": 5 << 20, "train_mem_gpu_alloc_delta": -1}
    )
    nested = k.trainer(skip_memory_metrics=False, evaluation_strategy="steps", eval_steps=2, watch=False)
    nested.train()
    k.record["within"] = [_kinds(row) for row in nested.state.log_history if "eval_loss" in row]
    k.trainers.clear()  # whose figures of memory are their own


@case("debugging/tokens-per-second")
def _(k: Kit) -> None:
    """The number of tokens, by the rate times the time; of whole epochs and of so many updates."""
    for name, arguments in {
        "epochs": {},
        "updates": {"max_steps": 3, "gradient_accumulation_steps": 2},
    }.items():
        trained = k.trainer(
            bert(),
            text_rows(16),
            tokenizer=tokenizer(),
            include_tokens_per_second=True,
            watch=False,
            **arguments,
        )
        metrics = trained.train().metrics
        k.record[name] = round(metrics["train_tokens_per_second"] * metrics["train_runtime"] / 4)
        k.record[f"{name}: keys"] = _kinds(metrics)
    # 4.34.0 reads the data once before it trains, and so draws random numbers, which changes the order of rows.
    k.trainers.clear()
    k.hf.set_seed(0)


@case("debugging/underflow-overflow")
def _(k: Kit) -> None:
    """The update in which NaN ends the run, and that a run without it is the same run."""

    class Spoils(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.first, self.second = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)
            self.calls = 0

        def forward(self, x: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
            self.calls += 1
            hidden = self.first(x)
            if self.calls == spoilt:
                hidden = hidden * float("nan")
            return {"loss": torch.nn.functional.cross_entropy(self.second(hidden), labels)}

    for spoilt in (4, 0):
        trained = k.trainer(Spoils(), debug="underflow_overflow", watch=False)
        try:
            trained.train()
            ended = "whole"
        except (ValueError, ArithmeticError):
            ended = "ended"
        k.record[f"spoilt at {spoilt}"] = [ended, trained.state.global_step]
        if not spoilt:
            k.record["weights"] = [round(float(weight.sum()), 4) for weight in trained.model.parameters()]
    k.trainers.clear()
    k.hf.set_seed(0)
