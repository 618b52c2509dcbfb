"""Older and later spellings of other arguments; `aliases.py` says what becomes of each."""

from dataclasses import dataclass, field

from drivetrain.arguments.checks import token
from drivetrain.arguments.enums import IntervalStrategy
from drivetrain.arguments.field import about, argument


@dataclass
class Deprecated:
    """The arguments about other spellings."""

    per_gpu_train_batch_size: int | None = argument(
        None, "Older spelling of per_device_train_batch_size.", least=1
    )
    per_gpu_eval_batch_size: int | None = argument(
        None, "Older spelling of per_device_eval_batch_size.", least=1
    )
    no_cuda: bool = argument(False, "Older spelling of use_cpu.")
    use_mps_device: bool = argument(False, "Not needed any more: Apple's GPU is used where there is one.")
    tpu_metrics_debug: bool = argument(
        False, "Older spelling of debug=tpu_metrics_debug.", owner="callback:tpu_metrics"
    )
    fsdp_min_num_params: int = argument(
        0, "Older spelling of fsdp_config's min_num_params.", owner="strategy:fsdp", least=0
    )
    fsdp_transformer_layer_cls_to_wrap: str | None = argument(
        None, "Older spelling of fsdp_config's transformer_layer_cls_to_wrap.", owner="strategy:fsdp"
    )
    adafactor: bool = argument(False, "Older spelling of optim=adafactor.", owner="optimizer")
    use_legacy_prediction_loop: bool = argument(
        False, "Evaluate by Trainer.prediction_loop; override evaluation_loop instead."
    )
    fp16_backend: str = argument("auto", "Older spelling of half_precision_backend.", owner="precision")
    push_to_hub_model_id: str | None = argument(None, "Older spelling of hub_model_id.", owner="hub")
    push_to_hub_organization: str | None = argument(
        None, "Older spelling of the OWNER in hub_model_id.", owner="hub"
    )
    push_to_hub_token: str | None = argument(
        None, "Older spelling of hub_token.", owner="hub", check=token, secret=True
    )
    mp_parameters: str = argument("", "SageMaker's model parallelism, which is not there.", owner="strategy")
    torchdynamo: str | None = argument(
        None, "Older spelling of torch_compile_backend.", owner="transform:torch_compile"
    )
    dispatch_batches: bool | None = argument(None, "Not there: every process reads its own rows.")
    eval_strategy: IntervalStrategy | str | None = field(
        default=None, kw_only=True, metadata=about("Later spelling of evaluation_strategy.")
    )
    xpu_backend: str | None = field(
        default=None, kw_only=True, metadata=about("Older spelling of ddp_backend.", owner="strategy")
    )
