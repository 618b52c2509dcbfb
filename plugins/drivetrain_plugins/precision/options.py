"""Options of the precisions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossScaleOptions:
    """The dynamic loss scale of fp16 (`torch.amp.GradScaler`), as `plugins={"fp16": {"init_scale": 1024}}`.

    Attributes:
        init_scale: the scale at the beginning.
        growth_factor: what it is multiplied by after a stretch without overflow.
        backoff_factor: what it is multiplied by after an overflow; that update is skipped.
        growth_interval: updates without overflow before it grows.
    """

    init_scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        if self.init_scale <= 0.0:
            raise ValueError(f"option 'init_scale' must be positive, and is {self.init_scale}.")
        if self.growth_factor <= 1.0:
            raise ValueError(f"option 'growth_factor' must be above 1, and is {self.growth_factor}.")
        if not 0.0 < self.backoff_factor < 1.0:
            raise ValueError(
                f"option 'backoff_factor' must lie between 0 and 1, and is {self.backoff_factor}."
            )
        if self.growth_interval < 1:
            raise ValueError(f"option 'growth_interval' must be at least 1, and is {self.growth_interval}.")
