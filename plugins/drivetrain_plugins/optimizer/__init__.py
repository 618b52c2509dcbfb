"""Optimizers. Light: says what there is, and imports nothing that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from drivetrain.plugin import PluginInfo
from drivetrain_plugins.optimizer import probes
from drivetrain_plugins.probing import options_probe
from drivetrain_plugins.strategy.xla import info as xla

_ARGUMENTS = ("optim", "optim_args", "learning_rate", "weight_decay", "param_groups")
_BETAS = ("adam_beta1", "adam_beta2")
_ADAM = (*_BETAS, "adam_epsilon")
_WARMUP = ("warmup_steps", "warmup_ratio")
_HERE = "drivetrain_plugins.optimizer"


def _info(
    name: str,
    summary: str,
    implementation: str,
    options: str,
    more: tuple[str, ...] = (),
    *,
    requires: str | None = None,
    extra: str | None = None,
    device: Callable[[Any], str | None] | None = None,
    conflicts: Mapping[str, str] | None = None,
) -> PluginInfo:
    options = f"{_HERE}.options:{options}"
    read = options_probe(name, options, f"{_HERE}.options:read_optim_args")

    def probe(args: Any) -> tuple[str, ...]:
        why = device(args) if device is not None else None
        return (*read(args), why) if why is not None else read(args)

    return PluginInfo(
        name=name,
        kind="optimizer",
        summary=summary,
        implementation=f"{_HERE}.{implementation}",
        options=options,
        arguments=_ARGUMENTS + more,
        requires=() if requires is None else (requires,),
        extra=extra,
        probe=probe,
        conflicts=conflicts or {},
    )


ADAMW_TORCH = _info(
    "adamw_torch",
    "torch's AdamW, in its fused form wherever device and dtype allow",
    "adamw_torch:AdamWTorch",
    "AdamWOptions",
    _ADAM,
)
ADAMW_TORCH_FUSED = _info(
    "adamw_torch_fused",
    "torch's AdamW in its fused form, or an error",
    "adamw_torch:AdamWTorchFused",
    "AdamWOptions",
    _ADAM,
)
ADAMW_HF = _info(
    "adamw_hf",
    "AdamW that decays after the step, with epsilon outside the bias correction",
    "adamw_hf:AdamWHF",
    "AdamWHFOptions",
    _ADAM,
)
ADAMW_ANYPRECISION = _info(
    "adamw_anyprecision",
    "AdamW with chosen dtypes for its state, and Kahan summation for weights in half precision",
    "adamw_anyprecision:AdamWAnyPrecision",
    "AnyPrecisionOptions",
    _ADAM,
)
ADAFACTOR = _info(
    "adafactor",
    "Adafactor: second moments factored into rows and columns, at the given learning rate",
    "adafactor:AdafactorPlugin",
    "AdafactorOptions",
)
SGD = _info("sgd", "stochastic gradient descent", "torch_optimizers:SGD", "SGDOptions")
ADAGRAD = _info("adagrad", "torch's Adagrad", "torch_optimizers:Adagrad", "AdagradOptions")
RMSPROP = _info("rmsprop", "torch's RMSprop", "torch_optimizers:RMSprop", "RMSpropOptions")
MUON = _info(
    "muon",
    "torch's Muon for hidden matrices, AdamW for embeddings, heads, biases and the rest",
    "muon:MuonPlugin",
    "MuonOptions",
    _ADAM,
)


def _schedule_free(word: str, implementation: str, options: str, more: tuple[str, ...]) -> PluginInfo:
    return _info(
        f"schedule_free_{word}",
        f"schedule-free {implementation.removeprefix('ScheduleFree')}: averages the weights in place of a schedule",
        f"schedule_free:{implementation}",
        options,
        more,
        requires="schedulefree>=1.4",
        extra="schedulefree",
    )


SCHEDULE_FREE_ADAMW = _schedule_free("adamw", "ScheduleFreeAdamW", "ScheduleFreeOptions", (*_ADAM, *_WARMUP))
SCHEDULE_FREE_SGD = _schedule_free("sgd", "ScheduleFreeSGD", "ScheduleFreeSGDOptions", _WARMUP)
SCHEDULE_FREE_RADAM = _schedule_free("radam", "ScheduleFreeRAdam", "ScheduleFreeRAdamOptions", _ADAM)

_PLAIN_TENSORS = {
    "strategy:fsdp": "bitsandbytes updates plain tensors, so use strategy='ddp', or optim='adamw_torch'."
}


def _bitsandbytes(name: str, summary: str, implementation: str, more: tuple[str, ...] = _ADAM) -> PluginInfo:
    return _info(
        name,
        f"bitsandbytes: {summary}",
        f"bnb:{implementation}",
        "BitsAndBytesOptions",
        more,
        requires="bitsandbytes>=0.41.1",
        extra="bitsandbytes",
        conflicts=_PLAIN_TENSORS,
    )


ADAMW_BNB_8BIT = _bitsandbytes("adamw_bnb_8bit", "AdamW with state of 8 bits", "AdamW8bit")
ADAMW_8BIT = _bitsandbytes("adamw_8bit", "adamw_bnb_8bit by another name", "AdamW8bitAlias")
PAGED_ADAMW_32BIT = _bitsandbytes("paged_adamw_32bit", "AdamW with paged state", "PagedAdamW32bit")
PAGED_ADAMW_8BIT = _bitsandbytes("paged_adamw_8bit", "AdamW with paged state of 8 bits", "PagedAdamW8bit")
LION_32BIT = _bitsandbytes("lion_32bit", "Lion", "Lion32bit", _BETAS)
LION_8BIT = _bitsandbytes("lion_8bit", "Lion with state of 8 bits", "Lion8bit", _BETAS)
PAGED_LION_32BIT = _bitsandbytes("paged_lion_32bit", "Lion with paged state", "PagedLion32bit", _BETAS)
PAGED_LION_8BIT = _bitsandbytes("paged_lion_8bit", "Lion with paged state of 8 bits", "PagedLion8bit", _BETAS)
LION = _info(
    "lion",
    "Lion: steps by the sign of an average of gradients",
    "lion:LionPlugin",
    "NoOptions",
    _BETAS,
    requires="pytorch-optimizer>=4.1",
    extra="pytorch-optimizer",
)
GALORE_ADAMW = _info(
    "galore_adamw",
    "GaLore: AdamW on gradients of low rank",
    "galore:GaLorePlugin",
    "GaLoreOptions",
    _ADAM,
    requires="pytorch-optimizer>=4.1",
    extra="pytorch-optimizer",
)


def _torchao(bits: int) -> PluginInfo:
    return _info(
        f"adamw_torch_{bits}bit",
        f"torchao's AdamW with state of {bits} bits, on any device; its update is compiled",
        f"low_bit:AdamWTorch{bits}bit",
        "TorchAOOptions",
        _ADAM,
        requires="torchao>=0.11",
        extra="torchao",
    )


ADAMW_TORCH_8BIT = _torchao(8)
ADAMW_TORCH_4BIT = _torchao(4)

ADAMW_TORCH_XLA = _info(
    "adamw_torch_xla",
    "torch_xla's AdamW",
    "vendors:AdamWXLA",
    "NoOptions",
    _ADAM,
    requires=xla.XLA.requires[0],  # the release that goes with this torch
    device=probes.xla,
)
ADAMW_APEX_FUSED = _info(
    "adamw_apex_fused",
    "NVIDIA apex's fused AdamW, on CUDA",
    "vendors:AdamWApex",
    "NoOptions",
    _ADAM,
    device=probes.apex,
)
ADAMW_TORCH_NPU_FUSED = _info(
    "adamw_torch_npu_fused",
    "torch_npu's fused AdamW, on Ascend NPUs",
    "vendors:AdamWNPU",
    "NoOptions",
    _ADAM,
    requires="torch_npu>=2.1",
    device=probes.npu,
)
