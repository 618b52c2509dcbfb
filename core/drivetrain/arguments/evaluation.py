"""When the model is evaluated, on what terms, and what the best checkpoint is."""

from dataclasses import dataclass

from drivetrain.arguments.enums import IntervalStrategy
from drivetrain.arguments.field import argument


@dataclass
class Evaluation:
    """The arguments about evaluation and the best checkpoint."""

    evaluation_strategy: IntervalStrategy | str = argument("no", "When to evaluate while training.")
    prediction_loss_only: bool = argument(False, "Evaluation and prediction return the loss alone.")
    per_device_eval_batch_size: int = argument(
        8, "Rows that each device takes at once in evaluation.", least=1
    )
    eval_accumulation_steps: int | None = argument(
        None, "Move predictions to host memory every so many steps; None keeps them on the device.", least=1
    )
    eval_delay: float | None = argument(
        0, "Epochs or updates, as the strategy counts, before the first evaluation.", least=0
    )
    eval_steps: float | None = argument(
        None,
        "Updates between two evaluations; below 1 it is a share of all updates. By default logging_steps.",
        least=0,
    )
    past_index: int = argument(
        -1, "The place in the model's output of what the next step is given as mems; -1 gives nothing."
    )
    load_best_model_at_end: bool | None = argument(
        False, "When training ends, load the checkpoint whose metric was best."
    )
    metric_for_best_model: str | None = argument(
        None, "The metric that says which checkpoint is best, with or without eval_; by default the loss."
    )
    greater_is_better: bool | None = argument(
        None, "Whether more of that metric is better; by default yes, unless it is the loss."
    )
    include_inputs_for_metrics: bool = argument(False, "Hand the inputs to compute_metrics too.")
