"""The optimizer and what is done to the gradients."""

from dataclasses import dataclass

from drivetrain.arguments.checks import optimizer_name
from drivetrain.arguments.field import NameOrClass, argument


@dataclass
class Optimization:
    """The arguments about the optimizer and the gradients."""

    learning_rate: float = argument(5e-5, "The learning rate at its highest.", owner="optimizer", least=0)
    weight_decay: float = argument(
        0.0, "Decoupled weight decay; biases and LayerNorm weights are spared.", owner="optimizer", least=0
    )
    adam_beta1: float = argument(0.9, "Decay of Adam's first moment.", owner="optimizer", least=0, most=1)
    adam_beta2: float = argument(0.999, "Decay of Adam's second moment.", owner="optimizer", least=0, most=1)
    adam_epsilon: float = argument(1e-8, "What Adam adds to its denominator.", owner="optimizer", least=0)
    max_grad_norm: float | None = argument(
        1.0,
        "Clip gradients to this L2 norm, taken over all ranks and shards; 0 or None does not clip.",
        owner="core, strategy",
    )
    label_smoothing_factor: float = argument(
        0.0,
        "The share of the target that is spread evenly over all labels; 0 smooths nothing.",
        least=0,
        most=1,
    )
    optim: NameOrClass = argument(
        "adamw_torch",
        "The optimizer, by the name of an installed one, or as module:Class.",
        owner="optimizer",
        check=optimizer_name,
        accepts="a name, module:Class, or a class",
    )
    optim_args: str | None = argument(
        None, "Options of the optimizer, written key=value,key=value.", owner="optimizer"
    )
    gradient_checkpointing: bool = argument(
        False,
        "Keep fewer activations and compute them again in the backward pass: less memory, slower steps.",
        owner="transform:gradient_checkpointing",
    )
