"""Number formats."""

from dataclasses import dataclass

from drivetrain.arguments.enums import HalfPrecisionBackend
from drivetrain.arguments.field import argument


@dataclass
class Precision:
    """The arguments about number formats."""

    bf16: bool = argument(
        False, "Mixed precision in bfloat16: autocast over float32 weights, on a CPU too.", owner="precision"
    )
    fp16: bool = argument(False, "Mixed precision in float16 with loss scaling, on CUDA.", owner="precision")
    fp16_opt_level: str = argument(
        "O1", "Apex's level of mixed precision.", owner="precision", choices=("O0", "O1", "O2", "O3")
    )
    half_precision_backend: HalfPrecisionBackend | str = argument(
        "auto", "Who does mixed precision.", owner="precision"
    )
    bf16_full_eval: bool = argument(
        False,
        "Evaluate and predict, outside of train(), with the whole model in bfloat16.",
        owner="precision",
    )
    fp16_full_eval: bool = argument(
        False,
        "Evaluate and predict, outside of train(), with the whole model in float16.",
        owner="precision",
    )
    tf32: bool | None = argument(
        None,
        "Whether float32 matrix products may use TensorFloat-32; None leaves torch's setting.",
        owner="precision:tf32",
    )
