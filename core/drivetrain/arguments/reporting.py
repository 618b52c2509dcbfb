"""What is logged, when, and to whom."""

from dataclasses import dataclass

from drivetrain.arguments.checks import debug_options, optional_folder, report_names
from drivetrain.arguments.enums import LOG_LEVELS, DebugOption, IntervalStrategy
from drivetrain.arguments.field import Names, argument


@dataclass
class Reporting:
    """The arguments about logs, loggers and what is watched."""

    log_level: str = argument(
        "passive",
        "The log level of the main process; passive leaves it as it stands.",
        choices=tuple(LOG_LEVELS),
    )
    log_level_replica: str = argument(
        "warning", "The log level of every other process.", choices=tuple(LOG_LEVELS)
    )
    log_on_each_node: bool = argument(
        True, "Log on the first process of every node, or on the first node's alone."
    )
    logging_dir: str | None = argument(
        None,
        "TensorBoard's folder; by default runs/DATE_HOST in output_dir.",
        owner="logger:tensorboard",
        check=optional_folder,
    )
    logging_strategy: IntervalStrategy | str = argument("steps", "When to log.")
    logging_first_step: bool = argument(False, "Log the first update as well.")
    logging_steps: float = argument(
        500, "Updates between two logs; below 1 it is a share of all updates.", least=0
    )
    logging_nan_inf_filter: bool = argument(
        True, "In what is logged, and only there, a NaN or infinite loss counts as the mean of its window."
    )
    run_name: str | None = argument(None, "What loggers call the run; by default output_dir.", owner="logger")
    disable_tqdm: bool | None = argument(
        None,
        "No progress bar; by default there is one unless only errors are logged.",
        owner="callback:progress",
    )
    report_to: Names = argument(
        None,
        "The loggers, by name: all (the default) is every one that is installed, none is no logger.",
        owner="logger",
        check=report_names,
        accepts="a name, or a list of names",
    )
    debug: str | list[DebugOption] = argument(
        "",
        "What to watch for: underflow_overflow traces NaN and infinity to the module that made them.",
        owner="callback",
        check=debug_options,
        accepts="words, or a list of words",
    )
    skip_memory_metrics: bool = argument(
        True, "False adds each stage's memory figures to the metrics.", owner="callback:memory_metrics"
    )
    include_tokens_per_second: bool | None = argument(
        False, "Add tokens a second and device to the metrics.", owner="callback:tokens_per_second"
    )
