"""The documented callbacks: `TrainerCallback`, its state and control, and those that always run."""

from drivetrain.callbacks.adapter import CallbackAdapter
from drivetrain.callbacks.base import CALLBACK_EVENTS, TrainerCallback
from drivetrain.callbacks.control import TrainerControl
from drivetrain.callbacks.early_stopping import EarlyStoppingCallback
from drivetrain.callbacks.flow import DefaultFlowCallback
from drivetrain.callbacks.handler import CallbackHandler
from drivetrain.callbacks.state import TrainerState

__all__ = [
    "CALLBACK_EVENTS",
    "CallbackAdapter",
    "CallbackHandler",
    "DefaultFlowCallback",
    "EarlyStoppingCallback",
    "TrainerCallback",
    "TrainerControl",
    "TrainerState",
]
