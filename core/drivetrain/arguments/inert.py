"""Arguments of the core that are set and, by their documentation, do nothing under the others."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from drivetrain.processes import asked_for, on_one_node
from drivetrain.requeue import job_of_slurm

if TYPE_CHECKING:
    from drivetrain.arguments.training_arguments import TrainingArguments

Condition = Callable[[Any], bool]


def _has_accelerator() -> bool:
    import torch  # whoever asks is about to train, and arguments alone need no torch

    return torch.accelerator.is_available()


INERT: tuple[tuple[tuple[str, ...], Condition, str], ...] = (
    (
        ("logging_steps",),
        # Evaluations without a rhythm of their own follow that of the log.
        lambda args: (
            args.logging_strategy != "steps"
            and (args.evaluation_strategy != "steps" or args.is_set("eval_steps"))
        ),
        "logging_strategy is not 'steps'",
    ),
    (
        ("logging_nan_inf_filter",),
        lambda args: args.logging_strategy == "no" and not args.logging_first_step,
        "logging_strategy is 'no'",
    ),
    (
        ("dataloader_pin_memory",),
        lambda args: not _has_accelerator(),
        "there is no accelerator",
    ),
    (
        ("eval_accumulation_steps",),
        lambda args: args.use_cpu or not _has_accelerator(),
        "the device is a CPU, whose memory is the host's",
    ),
    (("log_level_replica",), lambda args: asked_for() == 1, "there is one process"),
    (("log_on_each_node", "save_on_each_node"), lambda args: on_one_node(), "there is one node"),
    (("save_steps",), lambda args: args.save_strategy != "steps", "save_strategy is not 'steps'"),
    (
        ("save_total_limit", "save_async", "on_save_error", "requeue", "save_on_exception"),
        lambda args: args.save_strategy == "no",
        "save_strategy is 'no'",
    ),
    (
        ("keep_effective_batch_size",),
        lambda args: not args.auto_find_batch_size,
        "auto_find_batch_size is False",
    ),
    (
        ("batch_eval_metrics",),
        lambda args: args.prediction_loss_only,
        "prediction_loss_only is True",
    ),
    (("requeue",), lambda args: job_of_slurm() is None, "this is no job of SLURM"),
    (
        ("eval_steps",),
        lambda args: args.evaluation_strategy != "steps",
        "evaluation_strategy is not 'steps'",
    ),
    (("eval_delay",), lambda args: args.evaluation_strategy == "no", "evaluation_strategy is 'no'"),
    (
        ("load_best_model_at_end",),
        lambda args: args.evaluation_strategy == "no",
        "nothing is evaluated while training",
    ),
    (
        ("metric_for_best_model", "greater_is_better"),
        lambda args: args.evaluation_strategy == "no",
        "nothing is evaluated while training",
    ),
    (
        ("greater_is_better",),
        lambda args: args.evaluation_strategy != "no" and args.metric_for_best_model is None,
        "metric_for_best_model names no metric",
    ),
    (("num_train_epochs",), lambda args: args.max_steps > 0, "max_steps decides"),
    (("warmup_ratio",), lambda args: args.warmup_steps > 0, "warmup_steps decides"),
    (("length_column_name",), lambda args: not args.group_by_length, "group_by_length is False"),
    (
        ("save_safetensors",),
        lambda args: not args.save_safetensors,
        "weights are safetensors all the same, which from_pretrained reads",
    ),
)
"""Names, when they do nothing, and why. What a plugin owns is the resolver's to say."""


def inert(args: "TrainingArguments") -> Iterator[str]:
    """One sentence for each argument that is set in vain."""
    for names, condition, reason in INERT:
        if condition(args):
            yield from (f"{args.shown(name)} has no effect: {reason}." for name in names if args.is_set(name))
