"""drivetrain: the PyTorch trainer in which everything but the loop is a plugin.

Everything here is imported at first use, so that `import drivetrain` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from drivetrain.arguments import TrainingArguments as TrainingArguments
    from drivetrain.callbacks import DefaultFlowCallback as DefaultFlowCallback
    from drivetrain.callbacks import EarlyStoppingCallback as EarlyStoppingCallback
    from drivetrain.callbacks import TrainerCallback as TrainerCallback
    from drivetrain.callbacks import TrainerControl as TrainerControl
    from drivetrain.callbacks import TrainerState as TrainerState
    from drivetrain.collecting import average as average
    from drivetrain.collecting import broadcast as broadcast
    from drivetrain.collecting import collect as collect
    from drivetrain.collecting import gather as gather
    from drivetrain.data import DataCollatorWithPadding as DataCollatorWithPadding
    from drivetrain.data import default_data_collator as default_data_collator
    from drivetrain.errors import CheckpointError as CheckpointError
    from drivetrain.errors import ConfigurationError as ConfigurationError
    from drivetrain.errors import DrivetrainError as DrivetrainError
    from drivetrain.errors import HubError as HubError
    from drivetrain.errors import NonFiniteError as NonFiniteError
    from drivetrain.errors import PluginError as PluginError
    from drivetrain.errors import Preempted as Preempted
    from drivetrain.errors import ProcessError as ProcessError
    from drivetrain.evaluation import EvalPrediction as EvalPrediction
    from drivetrain.evaluation import speed_metrics as speed_metrics
    from drivetrain.plugin import Claim as Claim
    from drivetrain.plugin import PluginInfo as PluginInfo
    from drivetrain.plugin import Weight as Weight
    from drivetrain.plugin import hookimpl as hookimpl
    from drivetrain.run import Run as Run
    from drivetrain.slots import Hub as Hub
    from drivetrain.slots import Launcher as Launcher
    from drivetrain.slots import LRScheduler as LRScheduler
    from drivetrain.slots import OptimizerFactory as OptimizerFactory
    from drivetrain.slots import Precision as Precision
    from drivetrain.slots import PrecisionPolicy as PrecisionPolicy
    from drivetrain.slots import Prepared as Prepared
    from drivetrain.slots import SchedulerFactory as SchedulerFactory
    from drivetrain.slots import Search as Search
    from drivetrain.slots import Strategy as Strategy
    from drivetrain.slots import TrainState as TrainState
    from drivetrain.slots import Update as Update
    from drivetrain.slots import Upload as Upload
    from drivetrain.trainer import Trainer as Trainer
    from drivetrain.whole_parameters import WholeParameters as WholeParameters

# Where each public name lives. A name with a slash is a plugin's, found by its entry point: KIND/NAME.
_HOMES: dict[str, str] = {
    "Trainer": "drivetrain.trainer",
    "TrainingArguments": "drivetrain.arguments",
    "TrainerCallback": "drivetrain.callbacks",
    "TrainerControl": "drivetrain.callbacks",
    "TrainerState": "drivetrain.callbacks",
    "CallbackHandler": "drivetrain.callbacks",
    "DefaultFlowCallback": "drivetrain.callbacks",
    "EarlyStoppingCallback": "drivetrain.callbacks",
    "ProgressCallback": "callback/progress",
    "PrinterCallback": "callback/printer",
    "DataCollatorWithPadding": "drivetrain.data",
    "default_data_collator": "drivetrain.data",
    "EvalPrediction": "drivetrain.evaluation",
    "EvalLoopOutput": "drivetrain.evaluation",
    "PredictionOutput": "drivetrain.evaluation",
    "TrainOutput": "drivetrain.trainer",
    "speed_metrics": "drivetrain.evaluation",
    "set_seed": "drivetrain.seeding",
    "IntervalStrategy": "drivetrain.arguments",
    "EvaluationStrategy": "drivetrain.arguments",
    "SchedulerType": "drivetrain.arguments",
    "HubStrategy": "drivetrain.arguments",
    "ParallelMode": "drivetrain.arguments",
    "ConfigurationError": "drivetrain.errors",
    "DrivetrainError": "drivetrain.errors",
    "NonFiniteError": "drivetrain.errors",
    "PluginError": "drivetrain.errors",
    "CheckpointError": "drivetrain.errors",
    "HubError": "drivetrain.errors",
    "ProcessError": "drivetrain.errors",
    "Preempted": "drivetrain.errors",
    "PluginInfo": "drivetrain.plugin",
    "Claim": "drivetrain.plugin",
    "Weight": "drivetrain.plugin",
    "hookimpl": "drivetrain.plugin",
    "Run": "drivetrain.run",
    "Strategy": "drivetrain.slots",
    "Precision": "drivetrain.slots",
    "Hub": "drivetrain.slots",
    "Search": "drivetrain.slots",
    "Launcher": "drivetrain.slots",
    "LRScheduler": "drivetrain.slots",
    "OptimizerFactory": "drivetrain.slots",
    "SchedulerFactory": "drivetrain.slots",
    "PrecisionPolicy": "drivetrain.slots",
    "Prepared": "drivetrain.slots",
    "TrainState": "drivetrain.slots",
    "Update": "drivetrain.slots",
    "Upload": "drivetrain.slots",
    "BestRun": "drivetrain.search",
    "WholeParameters": "drivetrain.whole_parameters",
    "average": "drivetrain.collecting",
    "broadcast": "drivetrain.collecting",
    "collect": "drivetrain.collecting",
    "gather": "drivetrain.collecting",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'drivetrain' has no attribute {name!r}")
    if "/" in home:
        from drivetrain.discover import load_info
        from drivetrain.plugin import import_string

        kind, _, plugin = home.partition("/")
        found = import_string(load_info(kind, plugin).implementation)
    else:
        found = getattr(importlib.import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
