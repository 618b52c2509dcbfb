"""Local SGD keeps the contract of every strategy."""

from __future__ import annotations

from drivetrain.testing import StrategyContract


class TestLocalSGD(StrategyContract):
    """DiLoCo, in rounds that end neither with an epoch nor where a checkpoint is written."""

    strategy = "localsgd"
    options = {"every": 4, "outer_learning_rate": 0.7, "outer_momentum": 0.9, "nesterov": True}
    differs = "Within a round each process updates weights of its own."
    refuses = {"loss_scale": "Each process would skip updates of its own."}
    equal_with = {
        "options": {"every": 1, "outer_learning_rate": 1.0, "outer_momentum": 0.0, "nesterov": False},
        "settings": {"optim": "sgd", "max_grad_norm": 0.0},
    }
