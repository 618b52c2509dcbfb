"""Local SGD for drivetrain: what the plugin says about itself. Listing plugins imports this and nothing else."""

from drivetrain import PluginInfo

LOCALSGD = PluginInfo(
    name="localsgd",
    kind="strategy",
    summary="Processes train by themselves, and average their weights every so many updates.",
    implementation="drivetrain_localsgd.strategy:LocalSGDPlugin",
    options="drivetrain_localsgd.strategy:LocalSGDOptions",
    arguments=("max_grad_norm", "gradient_accumulation_steps", "local_rank", "ddp_backend", "ddp_timeout"),
    distribution="drivetrain-localsgd",
    conflicts={
        "precision:fp16": "each process would have a loss scale of its own, and skip other updates than the rest; "
        "use bf16=True."
    },
)
