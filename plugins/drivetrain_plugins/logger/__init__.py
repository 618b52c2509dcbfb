"""Loggers that come with drivetrain: what they say of themselves. `report_to` chooses them by name."""

from __future__ import annotations

from drivetrain.plugin import PluginInfo

TENSORBOARD = PluginInfo(
    name="tensorboard",
    kind="logger",
    summary="Event files for TensorBoard, in logging_dir.",
    implementation="drivetrain_plugins.logger.tensorboard:TensorBoardLogger",
    arguments=("report_to", "logging_dir"),
    requires=("tensorboard",),
    extra="tensorboard",
)

WANDB = PluginInfo(
    name="wandb",
    kind="logger",
    summary="Weights & Biases; written offline where nobody is logged in. Reads the WANDB_* environment.",
    implementation="drivetrain_plugins.logger.wandb:WandbLogger",
    arguments=("report_to", "run_name"),
    requires=("wandb",),
    extra="wandb",
)
