"""A model with what is hard to shard, small enough to train in a moment, and how its runs are told and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import history, rows, trainer
from torch import nn

from drivetrain import Trainer, TrainerCallback

ROWS_IN_ALL = 8  # of a micro-batch, over all ranks


class Block(nn.Module):
    """One that is repeated; counts its forward passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("forwards", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            self.forwards += 1
        return x + torch.tanh(self.inner(self.norm(x)))


class Hard(nn.Module):
    """5 rows (over 2 and 4 ranks uneven, one rank of 4 without any), a tied weight, buffers, a scalar, a frozen one."""

    def __init__(self, frozen: bool = True, scalar: bool = True, branch: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(8, 5)
        self.up = nn.Linear(5, 12)
        self.blocks = nn.ModuleList(Block(12) for _ in range(3))
        self.down = nn.Linear(12, 5)
        self.head = nn.Linear(5, 5)
        self.again = nn.Linear(5, 5)
        self.again.weight = self.head.weight
        if frozen:
            self.mixing = nn.Parameter(torch.randn(5, 3), requires_grad=False)
        else:
            self.register_buffer("mixing", torch.randn(5, 3))
        if branch:
            self.spare = nn.Linear(3, 3)
        if scalar:
            self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = self.up(torch.relu(self.first(x)))
        for block in self.blocks:
            hidden = block(hidden)
        out = torch.tanh(self.head(self.down(hidden)))
        logits = self.again(out) @ self.mixing
        if hasattr(self, "scale"):
            logits = logits * self.scale
        if hasattr(self, "spare") and labels is not None and (chosen := labels == 2).any():
            logits = logits + self.spare(logits) * chosen[:, None]  # a rank may have no such row
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Look(TrainerCallback):
    """What the engine is like after the second update; fails at a step where it is told to."""

    def __init__(self, fail_at: int | None = None, memory: bool = False) -> None:
        self.memory = memory
        self.seen: dict[str, Any] = {}
        self.norms: list[float] = []
        self.fail_at = fail_at
        self.trainer: Trainer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        run = self.trainer.run
        assert run.update is not None
        if run.update.grad_norm is not None:
            assert run.update.grad_norm.dim() == 0
            self.norms.append(float(run.update.grad_norm))
        if state.global_step == 2:
            self.seen = look(run)
        if state.global_step == self.fail_at:
            raise RuntimeError("as it was told")
        if self.memory:
            self.memory = False
            self.norms.clear()
            raise torch.OutOfMemoryError("as if the batch were too large")


def elements(tensors: Any) -> int:
    """Elements that this rank keeps of tensors."""
    return sum((t.to_local() if hasattr(t, "to_local") else t).numel() for t in tensors)


def look(run: Any) -> dict[str, Any]:
    """What the engine is, and how much of the model this rank has."""
    engine = getattr(run.strategy, "engine", None)
    seen: dict[str, Any] = {
        "strategy": type(run.strategy).__name__,
        "wrapped": [found.__name__ for found in type(run.model_wrapped).__mro__],
        "wrapped_modules": [
            f"{found.__module__}.{found.__name__}" for found in type(run.model_wrapped).__mro__
        ],
    }
    if engine is None:
        return seen
    held = {id(piece.holder): piece.holder for piece in engine.pieces.values()}
    states = [
        value for entry in run.optimizer.state.values() for value in entry.values() if torch.is_tensor(value)
    ]
    seen |= {
        "kept": elements(held.values()),
        "whole": sum(piece.shape.numel() for piece in engine.pieces.values()),
        "state_kept": elements(value for value in states if value.dim()),
        "units": sorted(engine.plan.units),
        "mesh": list(engine.plan.mesh.shape),
        "forwards": int(run.model.blocks[0]._fsdp_wrapped_module.forwards)
        if hasattr(run.model.blocks[0], "_fsdp_wrapped_module")
        else int(run.model.blocks[0].forwards),
    }
    return seen | (_first(run) if engine.plan.settings.version == 1 else _second(run))


def _first(run: Any) -> dict[str, Any]:
    wrapper = run.model_wrapped
    handle = wrapper._handle
    return {
        "sharding": wrapper.sharding_strategy.name,
        "backward_prefetch": getattr(wrapper.backward_prefetch, "name", None),
        "forward_prefetch": wrapper.forward_prefetch,
        "limit_all_gathers": wrapper.limit_all_gathers,
        "use_orig_params": handle._use_orig_params,
        "reduce_dtype": str(handle._reduce_dtype),
        "param_dtype": str(handle._fwd_bwd_param_dtype),
        "state_dict_type": wrapper._state_dict_type.name,
    }


def _second(run: Any) -> dict[str, Any]:
    block = run.model.blocks[0]
    root = run.model._get_fsdp_state()
    if not hasattr(block, "_get_fsdp_state"):
        return {}
    state = block._get_fsdp_state()
    group = state._fsdp_param_groups[0]
    return {
        "reshards_after_forward": group.post_forward_mesh_info is not None,
        "forward_prefetch": len(state._states_to_forward_prefetch),
        "param_dtype": str(group.mp_policy.param_dtype),
        "reduce_dtype": str(group.mp_policy.reduce_dtype),
        "unused": group.reduce_scatter_unused_params,
        "syncs": root._fsdp_param_groups[0].reduce_grads,
    }


def build(folder: Path, processes: int, fail_at: int | None = None, **settings: Any) -> tuple[Trainer, Look]:
    """A trainer of a hard model, that shuffles nothing that the number of processes could change."""
    torch.manual_seed(0)
    model = settings.pop("model", None)
    model = Hard(**(settings.pop("hard", {}))) if model is None else model
    optimizer = settings.pop("finished", False)
    if optimizer:
        settings["optimizers"] = finished(model)
    seen = Look(fail_at, settings.pop("memory", False))
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": ROWS_IN_ALL // processes,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.5,
        "weight_decay": 0.1,
        "overwrite_output_dir": True,
    }
    made = trainer(folder, data=rows(53), model=model, callbacks=[seen], **{**defaults, **settings})
    seen.trainer = made
    return made, seen


def finished(model: nn.Module) -> tuple[Any, Any]:
    """An optimizer with groups, and a scheduler on it, as users hand them in; it has a state already."""
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and "weight" in n]
    others = [p for n, p in model.named_parameters() if p.requires_grad and "weight" not in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "lr": 3e-2}, {"params": others}], lr=1e-2, weight_decay=0.1
    )
    for parameter in (*decayed, *others):
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)


def outcome(made: Trainer, seen: Look, loss: float) -> dict[str, Any]:
    """What a run came to, the bare model afterwards included."""
    model = made.model
    return {
        "seen": seen.seen,
        "norms": seen.norms,
        "loss": loss,
        "history": [row["loss"] for row in history(made) if "loss" in row],
        "weights": {key: value.clone() for key, value in model.state_dict().items()},
        "evaluated": made.evaluate()["eval_loss"],
        "predictions": torch.as_tensor(made.predict(rows(11, seed=3)).predictions),
    }


def plainness(model: nn.Module) -> dict[str, Any]:
    """What could be left behind by an engine on a model."""
    hooks = (
        "_forward_pre_hooks",
        "_forward_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
    )
    return {
        name: (
            type(module).__name__,
            sorted(key for key in vars(module) if key != "training"),
            {hook: len(getattr(module, hook)) for hook in hooks},
            list(module._parameters),
            list(module._modules),
        )
        for name, module in model.named_modules()
    }


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 2e-5) -> None:
    """Two runs that must have come to the same."""
    assert other["loss"] == pytest.approx(one["loss"], rel=tolerance)
    assert other["history"] == pytest.approx(one["history"], rel=max(tolerance, 2e-4))  # rounded to 4 digits
    assert other["norms"] == pytest.approx(one["norms"], rel=max(tolerance, 1e-4))
    assert list(one["weights"]) == list(other["weights"])
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(
            other["weights"][name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert other["evaluated"] == pytest.approx(one["evaluated"], rel=tolerance)
    torch.testing.assert_close(other["predictions"], one["predictions"], rtol=1e-3, atol=max(tolerance, 1e-5))
