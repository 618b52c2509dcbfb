"""What arguments must hold between them. Each rule names the arguments it reads and yields problems."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from drivetrain.arguments.enums import HalfPrecisionBackend, IntervalStrategy, SchedulerType

if TYPE_CHECKING:
    from drivetrain.arguments.training_arguments import TrainingArguments

Rule = Callable[["TrainingArguments"], Iterator[str]]
RULES: list[tuple[frozenset[str], Rule]] = []


def rule(*reads: str) -> Callable[[Rule], Rule]:
    """Register a rule; it is skipped when one of the arguments it reads is wrong by itself already."""

    def register(function: Rule) -> Rule:
        RULES.append((frozenset(reads), function))
        return function

    return register


def broken(args: "TrainingArguments", wrong: set[str]) -> Iterator[str]:
    """Every problem between arguments, leaving out rules that read one of `wrong`."""
    for reads, function in RULES:
        if not reads & wrong:
            yield from function(args)


def _steps(args: "TrainingArguments", what: str, strategy: str, steps: str) -> Iterator[str]:
    """Under the strategy `steps` the number must be positive, and whole from 1 on, then kept as an int."""
    if getattr(args, strategy) != IntervalStrategy.STEPS:
        return
    value = getattr(args, steps)
    if not value:
        yield (
            f"{strategy}='steps' needs {steps} above 0: set it, or choose {strategy}='no' to {what} nothing."
        )
    elif value >= 1:
        if value != int(value):
            yield f"{steps}={value!r} must be a whole number, or a share of all updates below 1."
        else:
            setattr(args, steps, int(value))


@rule("logging_strategy", "logging_steps")
def logging_is_due(args: "TrainingArguments") -> Iterator[str]:
    """A number of updates is there to log by."""
    yield from _steps(args, "log", "logging_strategy", "logging_steps")


@rule("save_strategy", "save_steps")
def saving_is_due(args: "TrainingArguments") -> Iterator[str]:
    """A number of updates is there to save by."""
    yield from _steps(args, "save", "save_strategy", "save_steps")


@rule("evaluation_strategy", "eval_steps", "logging_steps")
def evaluation_is_due(args: "TrainingArguments") -> Iterator[str]:
    """A number of updates is there to evaluate by."""
    yield from _steps(args, "evaluate", "evaluation_strategy", "eval_steps")


@rule(
    "load_best_model_at_end",
    "evaluation_strategy",
    "save_strategy",
    "eval_steps",
    "save_steps",
    "logging_steps",
)
def best_model_is_saved(args: "TrainingArguments") -> Iterator[str]:
    """Every evaluation that could be the best one has its checkpoint."""
    if not args.load_best_model_at_end:
        return
    if args.evaluation_strategy != args.save_strategy:
        yield (
            "load_best_model_at_end=True needs a checkpoint at every evaluation, but"
            f" evaluation_strategy='{args.evaluation_strategy}' and save_strategy='{args.save_strategy}':"
            " give both the same."
        )
        return
    save, evaluate = args.save_steps, args.eval_steps
    if args.evaluation_strategy != IntervalStrategy.STEPS or not save or not evaluate:
        return
    if (save < 1) != (evaluate < 1):
        yield (
            f"load_best_model_at_end=True cannot compare save_steps={save!r} with"
            f" eval_steps={evaluate!r}: give both"
            " as numbers of updates, or both as shares."
        )
    elif not math.isclose(times := save / evaluate, round(times), rel_tol=1e-6) or times < 0.5:
        yield (
            f"load_best_model_at_end=True needs save_steps to be a multiple of eval_steps, and {save!r}"
            " is none of"
            f" {evaluate!r}."
        )


@rule("lr_scheduler_type", "evaluation_strategy")
def plateau_needs_evaluation(args: "TrainingArguments") -> Iterator[str]:
    """A schedule that follows a metric has one."""
    if (
        args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
        and args.evaluation_strategy == IntervalStrategy.NO
    ):
        yield (
            "lr_scheduler_type='reduce_lr_on_plateau' follows a metric, and nothing is evaluated: set"
            " evaluation_strategy to 'steps' or 'epoch'."
        )


@rule("bf16", "fp16", "bf16_full_eval", "fp16_full_eval")
def one_precision(args: "TrainingArguments") -> Iterator[str]:
    """One half-precision format at most."""
    if args.bf16 and args.fp16:
        yield "bf16=True and fp16=True contradict each other: keep one of them."
    if args.bf16_full_eval and args.fp16_full_eval:
        yield "bf16_full_eval=True and fp16_full_eval=True contradict each other: keep one of them."


@rule("bf16", "half_precision_backend")
def bf16_works_with(args: "TrainingArguments") -> Iterator[str]:
    """bfloat16 is asked of those who can do it."""
    if args.bf16 and args.half_precision_backend == HalfPrecisionBackend.APEX:
        yield "bf16=True does not work with half_precision_backend='apex': use 'auto'."


@rule("adam_beta1", "adam_beta2")
def betas_decay(args: "TrainingArguments") -> Iterator[str]:
    """Adam's averages move."""
    for name in ("adam_beta1", "adam_beta2"):
        if getattr(args, name) == 1:
            yield f"{name}=1 must be below 1, or Adam's average never moves."


@rule("fsdp", "fsdp_config")
def one_way_to_wrap(args: "TrainingArguments") -> Iterator[str]:
    """FSDP is told one way to choose what it wraps."""
    config: Any = args.fsdp_config
    if args.fsdp and config["min_num_params"] > 0 and config.get("transformer_layer_cls_to_wrap"):
        yield (
            "fsdp_config has both min_num_params and transformer_layer_cls_to_wrap, two ways to choose"
            " what is"
            " wrapped: keep one of them."
        )
