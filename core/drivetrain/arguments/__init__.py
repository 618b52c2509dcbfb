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
    OnNanLoss,
    OnSaveError,
    OptimizerNames,
    ParallelMode,
    SchedulerType,
    ShardedDDPOption,
)
from drivetrain.arguments.order import ORDER
from drivetrain.arguments.parsing import (
    Row,
    convert,
    field_table,
    from_file,
    from_mapping,
    from_words,
    read_file,
)
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
    "OnNanLoss",
    "OnSaveError",
    "OptimizerNames",
    "ParallelMode",
    "Row",
    "SchedulerType",
    "ShardedDDPOption",
    "TrainingArguments",
    "convert",
    "declared",
    "field_table",
    "from_file",
    "from_mapping",
    "from_words",
    "owners_of",
    "read_file",
]
