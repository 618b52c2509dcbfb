"""Compilers and tracers of the model."""

from dataclasses import dataclass

from drivetrain.arguments.field import argument


@dataclass
class Compilation:
    """The arguments about compilers and tracers."""

    jit_mode_eval: bool = argument(
        False, "Trace the model with torch.jit for evaluation and prediction.", owner="transform:jit"
    )
    use_ipex: bool = argument(
        False, "Let Intel's extension for PyTorch optimise model and optimizer.", owner="transform:ipex"
    )
    torch_compile: bool = argument(
        False, "Compile the model with torch.compile.", owner="transform:torch_compile"
    )
    torch_compile_backend: str | None = argument(
        None, "The backend of torch.compile; setting it sets torch_compile.", owner="transform:torch_compile"
    )
    torch_compile_mode: str | None = argument(
        None, "The mode of torch.compile; setting it sets torch_compile.", owner="transform:torch_compile"
    )
