"""Optimizers. Light: says what there is, and imports nothing that trains."""

from __future__ import annotations

from drivetrain.plugin import PluginInfo
from drivetrain_plugins.probing import options_probe

_ARGUMENTS = ("optim", "optim_args", "learning_rate", "weight_decay", "param_groups")
_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
_HERE = "drivetrain_plugins.optimizer"


def _info(name: str, summary: str, implementation: str, options: str, adam: bool = False) -> PluginInfo:
    options = f"{_HERE}.options:{options}"
    return PluginInfo(
        name=name,
        kind="optimizer",
        summary=summary,
        implementation=f"{_HERE}.{implementation}",
        options=options,
        arguments=_ARGUMENTS + (_ADAM if adam else ()),
        probe=options_probe(name, options, f"{_HERE}.options:read_optim_args"),
    )


ADAMW_TORCH = _info(
    "adamw_torch",
    "torch's AdamW, in its fused form wherever device and dtype allow",
    "adamw_torch:AdamWTorch",
    "AdamWOptions",
    adam=True,
)
ADAMW_TORCH_FUSED = _info(
    "adamw_torch_fused",
    "torch's AdamW in its fused form, or an error",
    "adamw_torch:AdamWTorchFused",
    "AdamWOptions",
    adam=True,
)
ADAMW_HF = _info(
    "adamw_hf",
    "AdamW that decays after the step, with epsilon outside the bias correction",
    "adamw_hf:AdamWHF",
    "AdamWHFOptions",
    adam=True,
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
    adam=True,
)
