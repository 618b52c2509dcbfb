"""Where results go and what a script is to do."""

from dataclasses import dataclass, field

from drivetrain.arguments.checks import folder, folder_or_true
from drivetrain.arguments.field import FolderOrTrue, about, argument


@dataclass
class Output:
    """The arguments about where results go, and what a script is to do."""

    output_dir: str = field(metadata=about("The folder for checkpoints and results.", check=folder))
    overwrite_output_dir: bool = argument(
        False,
        "Write over what stands in output_dir: with it `drivetrain train` starts there again instead of"
        " stopping.",
    )
    do_train: bool = argument(
        False, "Whether a script, or `drivetrain train`, is to train; Trainer itself never asks."
    )
    do_eval: bool = argument(
        False, "Whether a script is to evaluate; an evaluation strategy other than no sets it."
    )
    do_predict: bool = argument(False, "Whether a script is to predict on its test set.")
    resume_from_checkpoint: FolderOrTrue = argument(
        None,
        "The checkpoint to go on from, or True for the last valid one in output_dir; train() uses it"
        " when it is"
        " given none.",
        check=folder_or_true,
        accepts="a folder, or True",
    )
