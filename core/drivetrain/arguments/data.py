"""How rows are read, ordered and made into batches."""

from dataclasses import dataclass

from drivetrain.arguments.checks import optional_names
from drivetrain.arguments.field import Names, argument


@dataclass
class Data:
    """The arguments about rows, their order and their loading."""

    seed: int = argument(42, "The seed of everything random.", least=0, most=2**32 - 1)
    data_seed: int | None = argument(
        None,
        "The seed of the order of rows alone; once set, the order does not follow seed.",
        least=0,
        most=2**32 - 1,
    )
    full_determinism: bool = argument(
        False, "Deterministic algorithms only: runs repeat bit by bit, and are slower."
    )
    dataloader_drop_last: bool = argument(False, "Leave out a last batch that is not full.")
    dataloader_num_workers: int = argument(
        0, "Processes that load data; 0 loads in the main process.", least=0
    )
    dataloader_pin_memory: bool = argument(
        True, "Load into pinned memory, from which copies to a GPU are faster."
    )
    remove_unused_columns: bool | None = argument(
        True, "Drop the columns that the model's forward does not take."
    )
    label_names: Names = argument(
        None,
        "The inputs that are labels; by default those of the model's forward whose name has label in it.",
        check=optional_names,
    )
    ignore_data_skip: bool = argument(
        False, "Resume at the beginning of the epoch instead of at the exact position in the data."
    )
    group_by_length: bool = argument(
        False, "Put rows of like length into one batch, so that less is padding."
    )
    length_column_name: str | None = argument(
        "length", "The column that holds each row's length, where there is one."
    )
