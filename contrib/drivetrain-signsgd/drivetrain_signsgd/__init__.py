"""SignSGD for drivetrain: what the plugin says about itself. Listing plugins imports this and nothing else."""

from drivetrain import PluginInfo

SIGNSGD = PluginInfo(
    name="signsgd",
    kind="strategy",
    summary="One bit of each gradient is sent; what that loses is kept, and sent later.",
    implementation="drivetrain_signsgd.strategy:SignSGDPlugin",
    options="drivetrain_signsgd.strategy:SignSGDOptions",
    arguments=("max_grad_norm", "gradient_accumulation_steps", "local_rank", "ddp_backend", "ddp_timeout"),
    distribution="drivetrain-signsgd",
    conflicts={
        "precision:fp16": "gradients that a loss scale has made infinite have no size to be sent; use bf16=True."
    },
)
