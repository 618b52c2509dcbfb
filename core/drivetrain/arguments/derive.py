"""Arguments that follow from others where nobody sets them."""

import logging
import os
import socket
from datetime import datetime
from typing import TYPE_CHECKING

from drivetrain.arguments.enums import IntervalStrategy, SchedulerType

if TYPE_CHECKING:
    from drivetrain.arguments.training_arguments import TrainingArguments


def derive(args: "TrainingArguments") -> None:
    """Fill in what is still unset. Every value written here counts as derived, not as set by the user."""
    fill = args._fill
    if args.logging_dir is None:
        stamp = datetime.now().strftime("%b%d_%H-%M-%S")
        fill("logging_dir", os.path.join(args.output_dir, "runs", f"{stamp}_{socket.gethostname()}"))
    if args.run_name is None:
        fill("run_name", args.output_dir)
    if args.disable_tqdm is None:
        fill("disable_tqdm", logging.getLogger("drivetrain").getEffectiveLevel() > logging.WARNING)
    if args.__dict__["local_rank"] == -1:
        fill("local_rank", int(os.environ.get("LOCAL_RANK", "0")))
    if args.eval_delay is None:
        fill("eval_delay", 0)
    if args.ddp_timeout is None:
        fill("ddp_timeout", 1800)
    if args.evaluation_strategy != IntervalStrategy.NO and not args.do_eval:
        fill("do_eval", True)
    if args.evaluation_strategy == IntervalStrategy.STEPS and not args.eval_steps and args.logging_steps:
        fill("eval_steps", args.logging_steps)
    plateau = args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
    if (args.load_best_model_at_end or plateau) and args.metric_for_best_model is None:
        fill("metric_for_best_model", "loss")
    if args.metric_for_best_model is not None and args.greater_is_better is None:
        fill("greater_is_better", args.metric_for_best_model not in ("loss", "eval_loss"))
    compiles = args.torch_compile_backend is not None or args.torch_compile_mode is not None
    if compiles and not args.torch_compile:
        fill("torch_compile", True)
    if args.torch_compile and args.torch_compile_backend is None:
        fill("torch_compile_backend", "inductor")
