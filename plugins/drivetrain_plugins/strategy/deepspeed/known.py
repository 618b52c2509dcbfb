"""The names that a configuration of DeepSpeed has at its top; DeepSpeed itself passes over what it does not know."""

from __future__ import annotations

from collections.abc import Iterator

from drivetrain.errors import did_you_mean
from drivetrain_plugins.strategy.deepspeed.configuration import Configuration

# Of its documentation and its reader, up to 0.19.
NAMES = frozenset(
    [
        "activation_checkpointing",
        "aio",
        "amp",
        "autotuning",
        "bf16",
        "bfloat16",
        "checkpoint",
        "comet",
        "comms_logger",
        "communication_data_type",
        "compile",
        "compression_training",
        "csv_monitor",
        "curriculum_learning",
        "data_efficiency",
        "data_types",
        "dataloader_drop_last",
        "datastates_ckpt",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "eigenvalue",
        "elasticity",
        "expert_parallel",
        "flops_profiler",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_allreduce_op",
        "gradient_clipping",
        "gradient_predivide_factor",
        "hybrid_engine",
        "legacy_fusion",
        "log_level",
        "managed_gradient_accumulation",
        "memory_breakdown",
        "monitor_config",
        "nebula",
        "optimizer",
        "pipeline",
        "prescale_gradients",
        "progressive_layer_drop",
        "scheduler",
        "seq_parallel_communication_data_type",
        "sequence_parallel_size",
        "sparse_attention",
        "sparse_gradients",
        "steps_per_print",
        "tensor_parallel",
        "tensorboard",
        "timers",
        "torch_autocast",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "use_data_before_expert_parallelism",
        "vocabulary_size",
        "wall_clock_breakdown",
        "wandb",
        "weight_quantization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    ]
)


def misspelt(config: Configuration) -> Iterator[str]:
    """One sentence for each name that is nearly one of DeepSpeed's."""
    for name in config.content:
        if name not in NAMES and (near := did_you_mean(name, NAMES)):
            yield f"deepspeed has no option {name!r}.{near}"


def unheard_of(config: Configuration) -> list[str]:
    """One sentence for each name that is like none: a later DeepSpeed may know it, and this one passes over it."""
    return [
        f"deepspeed: {name} is not known here, and DeepSpeed passes over what it does not know: "
        "see whether it is meant."
        for name in config.content
        if name not in NAMES and not did_you_mean(name, NAMES)
    ]
