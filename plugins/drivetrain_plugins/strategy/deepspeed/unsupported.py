"""Options of DeepSpeed that cannot be had here, each with the reason and the cure."""

from __future__ import annotations

from collections.abc import Iterator

from drivetrain_plugins.strategy.deepspeed.configuration import Configuration
from drivetrain_plugins.strategy.deepspeed.known import misspelt, unheard_of

_SWITCHES = {
    "elasticity": "it would change the batch size behind the arguments' back; a run resumes at another number "
    "of processes as it is",
    "autotuning": "it is started by DeepSpeed's own launcher, and tries scripts of its own; run it on its own",
    "curriculum_learning": "it needs DeepSpeed's own data loader; order the rows of the data set",
    "data_efficiency": "it needs DeepSpeed's own data loader; sample the rows in the data set",
    "hybrid_engine": "it is for generation while training; leave it out",
    "torch_autocast": "precision is an argument; leave it out and set bf16=True or fp16=True",
}
_WHOLE_BLOCKS = {
    "tensor_parallel": "tensor parallelism is not there; leave it out",
    "expert_parallel": "expert parallelism is not there; leave it out",
    "compression_training": "it changes the model by a call of its own; compress the model before it is trained",
}
_TRUE = {
    "compile.deepcompile": "set torch_compile=True instead",
    "checkpoint.load_universal": "checkpoints are drivetrain's, which load at any number of processes as they are",
    "zero_optimization.offload_optimizer.super_offload": "it cannot be saved by parameter name; leave it out",
}
_OWN_CHECKPOINTS = ("checkpoint", "zero_optimization.elastic_checkpoint", "nebula", "datastates_ckpt")

# State and update go element by element, so that flattened parts of parameters can be updated and saved by name.
ELEMENT_WISE = ("adam", "adamw", "adagrad", "lion")
REFUSED_OPTIMIZERS = ("lamb", "onebitadam", "zerooneadam", "onebitlamb", "muadam", "muadamw", "musgd", "muon")


def problems(config: Configuration, on_cuda: bool) -> Iterator[str]:
    """One sentence for each option that cannot be had.

    Args:
        config: the configuration, filled.
        on_cuda: whether the run will be on a CUDA device.
    """
    yield from misspelt(config)
    for block, cure in _SWITCHES.items():
        if config.on(block):
            yield f"deepspeed: {block} cannot be used here: {cure}."
    for block, cure in _WHOLE_BLOCKS.items():
        if config.get(block):
            yield f"deepspeed: {block} cannot be used here: {cure}."
    for name, cure in _TRUE.items():
        if config.get(name) is True:
            yield f"deepspeed: {name}=true cannot be used here: {cure}."
    if config.get("zero_optimization.zenflow") is not None:
        yield "deepspeed: zero_optimization.zenflow cannot be used here: its update lags behind; leave it out."
    if config.get("managed_gradient_accumulation") is False:
        yield (
            "deepspeed: managed_gradient_accumulation=false cannot be used here: the trainer says when an update is "
            "due; leave it out."
        )
    if config.get("sequence_parallel_size", 1) not in (None, 1):
        yield "deepspeed: sequence_parallel_size cannot be used here: every process has rows of its own; leave it out."
    for what in ("optimizer", "param"):
        if config.get(f"zero_optimization.offload_{what}.device") == "nvme":
            yield (
                f"deepspeed: zero_optimization.offload_{what}.device='nvme' is not there yet: "
                "use 'cpu', which keeps it in host memory."
            )
    if config.get("zero_optimization.offload_optimizer.ratio", 1) not in (None, 1, 1.0):
        yield (
            "deepspeed: zero_optimization.offload_optimizer.ratio cannot be used here: a second optimizer would hold "
            "the rest of the state; leave it out."
        )
    if config.offloads("param") and config.stage != 3:
        yield (
            f"deepspeed: zero_optimization.offload_param needs zero_optimization.stage 3, and this is {config.stage}."
        )
    yield from _half(config, on_cuda)
    kind = str(config.get("optimizer.type", "")).lower()
    if kind in REFUSED_OPTIMIZERS:
        yield (
            f"deepspeed: the optimizer {config.get('optimizer.type')} does not work element by element, so that its "
            "state cannot be saved by parameter name: use AdamW."
        )


def _half(config: Configuration, on_cuda: bool) -> Iterator[str]:
    half = config.half
    if half == "fp16" and not on_cuda:
        yield (
            "deepspeed: fp16.enabled=true needs a CUDA device, and this run is on the CPU. "
            "Use bf16=True, which works there."
        )
    if half and config.stage == 0:
        yield (
            f"deepspeed: {half}.enabled=true needs zero_optimization.stage 1, 2 or 3: set one of them, or write "
            f"'auto' there and set {half}=True, which is autocast over float32 weights."
        )
    if half and config.get("data_types.grad_accum_dtype") not in (None, half):
        yield (
            f"deepspeed: data_types.grad_accum_dtype={config.get('data_types.grad_accum_dtype')!r} cannot go with "
            f"{half}.enabled=true here: leave it out, or set {half}=True, whose gradients are float32."
        )


def inert(config: Configuration) -> list[str]:
    """One sentence for each option that does nothing here."""
    lines = [
        f"deepspeed: {name} has no effect: checkpoints are drivetrain's own."
        for name in _OWN_CHECKPOINTS
        if config.get(name)
    ]
    gather = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
    if config.stage == 3 and config.get(gather) is False:
        lines.append(f"deepspeed: {gather}=false has no effect: saved weights are always whole.")
    return lines + unheard_of(config)
