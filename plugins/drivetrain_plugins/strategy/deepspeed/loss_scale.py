"""The loss scale of fp16=True, which is autocast over weights in single precision, on DeepSpeed's optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivetrain_plugins.strategy.deepspeed.configuration import Configuration


class LossScale:
    """A factor that doubles after a number of good updates, and is halved by an overflow.

    The rule and the state's keys are those of `torch.amp.GradScaler`, so that checkpoints are exchanged; the
    engine is what finds overflows.

    Args:
        scale: to begin with.
        growth_factor: after `growth_interval` good updates.
        backoff_factor: at an overflow.
        growth_interval: updates.
        least: the smallest scale.
        fixed: never changes.
    """

    def __init__(
        self,
        scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        least: float = 0.0,
        fixed: bool = False,
    ) -> None:
        self.scale = scale
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval = growth_interval
        self.least, self.fixed = least, fixed
        self.good = 0

    @classmethod
    def of(cls, policy: Mapping[str, Any], config: Configuration) -> LossScale:
        """As the configuration's block "fp16" says, and where it says nothing, the precision plugin.

        Args:
            policy: options of `torch.amp.GradScaler`.
            config: its `fp16.loss_scale`, `initial_scale_power`, `loss_scale_window` and `min_loss_scale` are
                read.
        """
        options = {
            "scale": float(policy.get("init_scale", 65536.0)),
            **{
                key: policy[key]
                for key in ("growth_factor", "backoff_factor", "growth_interval")
                if key in policy
            },
        }
        power, window = config.get("fp16.initial_scale_power"), config.get("fp16.loss_scale_window")
        if power is not None:
            options["scale"] = 2.0 ** float(power)
        if window is not None:
            options["growth_interval"] = int(window)
        fixed = float(config.get("fp16.loss_scale", 0) or 0)
        if fixed:
            options["scale"] = fixed
        least = float(config.get("fp16.min_loss_scale", 0) or 0)
        return cls(**options, least=least, fixed=bool(fixed))

    def update(self, stepped: bool) -> None:
        """After an update."""
        if self.fixed:
            return
        if not stepped:
            self.scale, self.good = max(self.scale * self.backoff_factor, self.least), 0
            return
        self.good += 1
        if self.good == self.growth_interval:
            self.scale, self.good = self.scale * self.growth_factor, 0

    def state_dict(self) -> dict[str, Any]:
        """In the form of torch's scaler."""
        return {
            "scale": self.scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self.good,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict`, or torch's scaler, gave."""
        if not self.fixed:
            self.scale, self.good = float(state["scale"]), int(state["_growth_tracker"])
            self.growth_factor, self.backoff_factor = state["growth_factor"], state["backoff_factor"]
            self.growth_interval = int(state["growth_interval"])
