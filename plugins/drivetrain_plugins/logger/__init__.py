"""Loggers that come with drivetrain: what they say of themselves. `report_to` chooses them by name."""

from __future__ import annotations

from drivetrain.plugin import PluginInfo
from drivetrain_plugins.logger import probes

TENSORBOARD = PluginInfo(
    name="tensorboard",
    kind="logger",
    summary="Event files for TensorBoard, in logging_dir.",
    implementation="drivetrain_plugins.logger.tensorboard:TensorBoardLogger",
    options="drivetrain_plugins.logger.options:LoggerOptions",
    arguments=("report_to", "logging_dir"),
    requires=("tensorboard",),
    extra="tensorboard",
)

WANDB = PluginInfo(
    name="wandb",
    kind="logger",
    summary="Weights & Biases; written offline where nobody is logged in. Reads the WANDB_* environment.",
    implementation="drivetrain_plugins.logger.wandb:make",
    options="drivetrain_plugins.logger.options:SharedOptions",
    arguments=("report_to", "run_name"),
    requires=("wandb",),
    extra="wandb",
)

CSV = PluginInfo(
    name="csv",
    kind="logger",
    summary="The log as a file for spreadsheets, log.csv in output_dir. Only when it is named.",
    implementation="drivetrain_plugins.logger.csv:CsvLogger",
    options="drivetrain_plugins.logger.options:FileOptions",
    arguments=("report_to",),
    by_name_alone=True,
)

JSONL = PluginInfo(
    name="jsonl",
    kind="logger",
    summary="The log as JSON lines, log.jsonl in output_dir, and the configuration. Only when it is named.",
    implementation="drivetrain_plugins.logger.jsonl:JsonlLogger",
    options="drivetrain_plugins.logger.options:FileOptions",
    arguments=("report_to", "run_name"),
    by_name_alone=True,
)

MLFLOW = PluginInfo(
    name="mlflow",
    kind="logger",
    summary="MLflow. Reads the MLFLOW_* environment.",
    implementation="drivetrain_plugins.logger.mlflow:MlflowLogger",
    options="drivetrain_plugins.logger.options:LoggerOptions",
    arguments=("report_to", "run_name"),
    requires=("mlflow",),
    extra="mlflow",
    probe=probes.mlflow,
)

COMET_ML = PluginInfo(
    name="comet_ml",
    kind="logger",
    summary="Comet, online or offline. Reads the COMET_* environment.",
    implementation="drivetrain_plugins.logger.comet_ml:CometLogger",
    options="drivetrain_plugins.logger.options:SharedOptions",
    arguments=("report_to", "run_name"),
    requires=("comet-ml",),
    extra="comet_ml",
)

CLEARML = PluginInfo(
    name="clearml",
    kind="logger",
    summary="ClearML. Reads the CLEARML_* environment.",
    implementation="drivetrain_plugins.logger.clearml:ClearmlLogger",
    options="drivetrain_plugins.logger.options:SharedOptions",
    arguments=("report_to", "run_name"),
    requires=("clearml",),
    extra="clearml",
)

CODECARBON = PluginInfo(
    name="codecarbon",
    kind="logger",
    summary="Energy and emissions of a training, by CodeCarbon, in output_dir.",
    implementation="drivetrain_plugins.logger.codecarbon:CodecarbonLogger",
    options="drivetrain_plugins.logger.options:CodecarbonOptions",
    arguments=("report_to",),
    requires=("codecarbon",),
    extra="codecarbon",
)

TRACKIO = PluginInfo(
    name="trackio",
    kind="logger",
    summary="Trackio, in a database on this machine. Reads TRACKIO_PROJECT and TRACKIO_SPACE_ID.",
    implementation="drivetrain_plugins.logger.trackio:TrackioLogger",
    options="drivetrain_plugins.logger.options:SharedOptions",
    arguments=("report_to", "run_name"),
    requires=("trackio",),
    extra="trackio",
)

SWANLAB = PluginInfo(
    name="swanlab",
    kind="logger",
    summary="SwanLab, online or offline. Reads the SWANLAB_* environment.",
    implementation="drivetrain_plugins.logger.swanlab:SwanlabLogger",
    options="drivetrain_plugins.logger.options:SharedOptions",
    arguments=("report_to", "run_name"),
    requires=("swanlab",),
    extra="swanlab",
)

DAGSHUB = PluginInfo(
    name="dagshub",
    kind="logger",
    summary="MLflow as DagsHub keeps it, and the output folder. Needs MLFLOW_TRACKING_URI.",
    implementation="drivetrain_plugins.logger.dagshub:DagshubLogger",
    options="drivetrain_plugins.logger.options:LoggerOptions",
    arguments=("report_to", "run_name"),
    requires=("dagshub", "mlflow"),
    extra="dagshub",
    probe=probes.dagshub,
)

NEPTUNE = PluginInfo(
    name="neptune",
    kind="logger",
    summary="Neptune, online or offline. Reads the NEPTUNE_* environment.",
    implementation="drivetrain_plugins.logger.neptune:NeptuneLogger",
    options="drivetrain_plugins.logger.options:NeptuneOptions",
    arguments=("report_to", "run_name"),
    requires=("neptune",),
    extra="neptune",
)

FLYTE = PluginInfo(
    name="flyte",
    kind="logger",
    summary="In a Flyte task: the log as a deck, and checkpoints that Flyte keeps. Only when it is named.",
    implementation="drivetrain_plugins.logger.flyte:FlyteLogger",
    options="drivetrain_plugins.logger.options:FlyteOptions",
    arguments=("report_to",),
    requires=("flytekit",),
    extra="flyte",
    by_name_alone=True,
)

AZURE_ML = PluginInfo(
    name="azure_ml",
    kind="logger",
    summary="Metrics of the Azure ML run that the process belongs to, by azureml-core.",
    implementation="drivetrain_plugins.logger.azure_ml:AzureLogger",
    options="drivetrain_plugins.logger.options:LoggerOptions",
    arguments=("report_to",),
    requires=("azureml-core",),
    extra="azure_ml",
    probe=probes.azure_ml,
)
