"""The words that arguments choose from. Every member is a string, prints as one and equals one."""

from enum import StrEnum
from typing import Any

from drivetrain.errors import did_you_mean


class Choice(StrEnum):
    """A string enum whose error names the nearest word and every choice."""

    @classmethod
    def _missing_(cls, value: object) -> Any:
        known = [member.value for member in cls]
        meant = did_you_mean(str(value), known)
        raise ValueError(f"Unknown {cls.__name__} {str(value)!r}.{meant} Choices: {', '.join(known)}.")


class IntervalStrategy(Choice):
    """When something is due: never, every so many updates, or at the end of each epoch."""

    NO = "no"
    STEPS = "steps"
    EPOCH = "epoch"


class EvaluationStrategy(Choice):
    """The same words as `IntervalStrategy`, under the name that older scripts use."""

    NO = "no"
    STEPS = "steps"
    EPOCH = "epoch"


class SchedulerType(Choice):
    """Learning-rate schedules that ship with drivetrain. An installed plugin's name works as well."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"
    REDUCE_ON_PLATEAU = "reduce_lr_on_plateau"
    PIECEWISE = "piecewise"
    EXPONENTIAL = "exponential"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"


class OptimizerNames(Choice):
    """Optimizers with a documented name. An installed plugin's name works as well."""

    ADAMW_HF = "adamw_hf"
    ADAMW_TORCH = "adamw_torch"
    ADAMW_TORCH_FUSED = "adamw_torch_fused"
    ADAMW_TORCH_XLA = "adamw_torch_xla"
    ADAMW_APEX_FUSED = "adamw_apex_fused"
    ADAFACTOR = "adafactor"
    ADAMW_ANYPRECISION = "adamw_anyprecision"
    SGD = "sgd"
    ADAGRAD = "adagrad"
    ADAMW_BNB = "adamw_bnb_8bit"
    ADAMW_8BIT = "adamw_8bit"
    LION_8BIT = "lion_8bit"
    LION = "lion_32bit"
    PAGED_ADAMW = "paged_adamw_32bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"
    PAGED_LION = "paged_lion_32bit"
    PAGED_LION_8BIT = "paged_lion_8bit"
    RMSPROP = "rmsprop"


DOCUMENTED: dict[str, tuple[str, ...]] = {
    "optimizer": tuple(name.value for name in OptimizerNames),
    "logger": (
        "azure_ml",
        "clearml",
        "codecarbon",
        "comet_ml",
        "dagshub",
        "flyte",
        "mlflow",
        "neptune",
        "tensorboard",
        "wandb",
    ),
}
"""Words of `optim` and `report_to` that are no mistake, whether or not a plugin brings them."""


class ParallelMode(Choice):
    """How the processes of a run share the work; scripts read its `.value`."""

    NOT_PARALLEL = "not_parallel"
    NOT_DISTRIBUTED = "not_distributed"
    DISTRIBUTED = "distributed"
    SAGEMAKER_MODEL_PARALLEL = "sagemaker_model_parallel"
    SAGEMAKER_DATA_PARALLEL = "sagemaker_data_parallel"
    TPU = "tpu"


class HubStrategy(Choice):
    """What goes to the hub, and when."""

    END = "end"
    EVERY_SAVE = "every_save"
    CHECKPOINT = "checkpoint"
    ALL_CHECKPOINTS = "all_checkpoints"


class DebugOption(Choice):
    """What `debug` watches for."""

    UNDERFLOW_OVERFLOW = "underflow_overflow"
    TPU_METRICS_DEBUG = "tpu_metrics_debug"


class ShardedDDPOption(Choice):
    """FairScale's modes, for `sharded_ddp`."""

    SIMPLE = "simple"
    ZERO_DP_2 = "zero_dp_2"
    ZERO_DP_3 = "zero_dp_3"
    OFFLOAD = "offload"
    AUTO_WRAP = "auto_wrap"


class FSDPOption(Choice):
    """Modes of PyTorch's FSDP, for `fsdp`."""

    FULL_SHARD = "full_shard"
    SHARD_GRAD_OP = "shard_grad_op"
    NO_SHARD = "no_shard"
    HYBRID_SHARD = "hybrid_shard"
    OFFLOAD = "offload"
    AUTO_WRAP = "auto_wrap"


class HalfPrecisionBackend(Choice):
    """Who does mixed precision: torch's autocast (`auto`, `cuda_amp`, `cpu_amp`), or NVIDIA's apex."""

    AUTO = "auto"
    CUDA_AMP = "cuda_amp"
    CPU_AMP = "cpu_amp"
    APEX = "apex"


class LossReduction(Choice):
    """What an update's loss is the mean over."""

    MICRO_BATCHES = "micro_batches"
    TOKENS = "tokens"


class OnSaveError(Choice):
    """What a failed save does to the run."""

    STOP = "stop"
    WARN = "warn"


class OnNanLoss(Choice):
    """What a NaN or infinite loss, or norm of the gradients, does to the run."""

    IGNORE = "ignore"
    WARN = "warn"
    STOP = "stop"
    SKIP = "skip"


LOG_LEVELS: dict[str, int] = {
    "detail": 10,
    "debug": 10,
    "info": 20,
    "warning": 30,
    "error": 40,
    "critical": 50,
    "passive": -1,
}
"""Words of `log_level`, as levels of the standard library's logging; -1 leaves the level as it stands."""
