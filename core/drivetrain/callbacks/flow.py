"""The default flow: what is due after a step or an epoch, by the arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drivetrain.callbacks.base import TrainerCallback

if TYPE_CHECKING:
    from drivetrain.arguments import TrainingArguments
    from drivetrain.callbacks.control import TrainerControl
    from drivetrain.callbacks.state import TrainerState


class DefaultFlowCallback(TrainerCallback):
    """Sets the flags of `TrainerControl` by the logging, evaluation and saving strategies."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """What is due by steps, and the end of training."""
        step = state.global_step
        if step == 1 and args.logging_first_step:
            control.should_log = True
        if args.logging_strategy == "steps" and step % state.logging_steps == 0:
            control.should_log = True
        if (
            args.evaluation_strategy == "steps"
            and step % state.eval_steps == 0
            and (args.eval_delay or 0) <= step
        ):
            control.should_evaluate = True
        if args.save_strategy == "steps" and state.save_steps > 0 and step % state.save_steps == 0:
            control.should_save = True
        if step >= state.max_steps:
            control.should_training_stop = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """What is due by epochs."""
        if args.logging_strategy == "epoch":
            control.should_log = True
        if args.evaluation_strategy == "epoch" and (args.eval_delay or 0) <= (state.epoch or 0):
            control.should_evaluate = True
        if args.save_strategy == "epoch":
            control.should_save = True
        return control
