"""When checkpoints are written and which are kept."""

from dataclasses import dataclass

from drivetrain.arguments.enums import IntervalStrategy
from drivetrain.arguments.field import argument


@dataclass
class Saving:
    """The arguments about checkpoints."""

    save_strategy: IntervalStrategy | str = argument("steps", "When to save a checkpoint.")
    save_steps: float = argument(
        500, "Updates between two checkpoints; below 1 it is a share of all updates.", least=0
    )
    save_total_limit: int | None = argument(
        None,
        "How many checkpoints to keep, the oldest going first; under load_best_model_at_end the best one"
        " and the"
        " latest are spared. 0 or None keeps all.",
    )
    save_safetensors: bool | None = argument(
        True, "Weights are always safetensors here; False is refused, because loading never unpickles."
    )
    save_on_each_node: bool = argument(
        False, "With several nodes, save on every one instead of on the first alone."
    )
