"""What the plugin says about itself. Listing plugins imports this module and nothing else."""

from drivetrain import PluginInfo

AVERAGE = PluginInfo(
    name="average",
    kind="strategy",
    summary="Gradients of all processes are averaged before the step.",
    implementation="drivetrain_average.strategy:AveragePlugin",
    arguments=("max_grad_norm", "gradient_accumulation_steps", "local_rank", "ddp_backend", "ddp_timeout"),
    distribution="drivetrain-average",
    restarts=True,
)
