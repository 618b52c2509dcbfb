"""The arguments of a run: a dataclass split by topic, and its parsing from TOML, JSON and command lines."""

from drivetrain.arguments.enums import (
    LOG_LEVELS,
    DebugOption,
    EvaluationStrategy,
    FSDPOption,
    HalfPrecisionBackend,
    HubStrategy,
    IntervalStrategy,
    LossReduction,
    OnSaveError,
    OptimizerNames,
    ParallelMode,
    SchedulerType,
    ShardedDDPOption,
)
from drivetrain.arguments.order import ORDER
from drivetrain.arguments.training_arguments import TOPICS, TrainingArguments, declared, owners_of

__all__ = [
    "LOG_LEVELS",
    "ORDER",
    "TOPICS",
    "DebugOption",
    "EvaluationStrategy",
    "FSDPOption",
    "HalfPrecisionBackend",
    "HubStrategy",
    "IntervalStrategy",
    "LossReduction",
    "OnSaveError",
    "OptimizerNames",
    "ParallelMode",
    "SchedulerType",
    "ShardedDDPOption",
    "TrainingArguments",
    "declared",
    "owners_of",
]
