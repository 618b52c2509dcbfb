"""How long training lasts, how much an update takes in, and how the learning rate moves."""

from dataclasses import dataclass

from drivetrain.arguments.checks import scheduler_name
from drivetrain.arguments.field import NameOrClass, argument


@dataclass
class Schedule:
    """The arguments about how long, in what portions, at what pace."""

    per_device_train_batch_size: int = argument(
        8, "Rows that each device takes at once in training.", least=1
    )
    gradient_accumulation_steps: int = argument(
        1, "Micro-batches whose gradients are summed before one update.", owner="core, strategy", least=1
    )
    num_train_epochs: float = argument(
        3.0, "Passes over the training data; a fraction ends within an epoch.", least=0
    )
    max_steps: int = argument(
        -1, "Updates to make in all; when positive it decides instead of num_train_epochs."
    )
    lr_scheduler_type: NameOrClass = argument(
        "linear",
        "The learning rate's schedule, by the name of an installed scheduler.",
        owner="scheduler",
        check=scheduler_name,
        accepts="a name, or a class",
    )
    warmup_ratio: float = argument(
        0.0, "The share of all updates over which the rate rises from 0.", owner="scheduler", least=0, most=1
    )
    warmup_steps: int = argument(
        0,
        "Updates over which the rate rises from 0; when positive it wins over warmup_ratio.",
        owner="scheduler",
        least=0,
    )
    auto_find_batch_size: bool = argument(
        False, "After an out-of-memory error, halve the batch and start again from the initial weights."
    )
