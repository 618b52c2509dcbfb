"""Sending a model and its checkpoints to a hub while training goes on. The hub itself is a plugin."""

from drivetrain.hub.pushing import Pushing
from drivetrain.hub.uploads import Uploads

__all__ = ["Pushing", "Uploads"]
