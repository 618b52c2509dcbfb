"""Which elements of which parameter this process holds: one view over the stages of ZeRO.

Stages 1 and 2 lay the parameters of a group one after another and cut the row into as many parts as there are
processes; stage 3 cuts every parameter, and pads the last part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """A part of a parameter that this process updates.

    Attributes:
        flat: number of the flat row it lies in.
        offset: where it begins there.
        start: where it begins in the flattened parameter.
        length: elements.
    """

    flat: int
    offset: int
    start: int
    length: int

    def of_row(self, row: Tensor) -> Tensor:
        """This piece of a row as long as the flat row."""
        return row.narrow(0, self.offset, self.length)

    def of_whole(self, whole: Tensor) -> Tensor:
        """This piece of a tensor with the parameter's elements; a view where it lies in one block."""
        return whole.reshape(-1).narrow(0, self.start, self.length)


class Pieces:
    """The pieces of this process.

    Args:
        zero: DeepSpeed's optimizer of stage 1, 2 or 3.
        stage: which.
    """

    def __init__(self, zero: Any, stage: int) -> None:
        self.zero = zero
        self.stage = stage
        groups = zero.fp16_groups if stage == 3 else zero.bit16_groups
        self._flat_of = {id(p): number for number, group in enumerate(groups) for p in group}

    def flat_of(self, parameter: Tensor) -> int | None:
        """The number of the flat row in which a parameter lies; None where it is not updated."""
        return self._flat_of.get(id(parameter))

    @property
    def rows(self) -> list[Tensor]:
        """The flat rows: what the optimizer updates, in single precision."""
        zero = self.zero
        rows: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        )
        return rows

    def state(self, flat: int) -> dict[str, Any]:
        """The optimizer's state of a flat row, as it is."""
        found: Mapping[Any, dict[str, Any]] = self.zero.optimizer.state
        return found.get(self.rows[flat], {})

    def of(self, parameter: Any) -> Piece | None:
        """The piece of a parameter; None where all of it is with others, or it is not updated."""
        flat = self.flat_of(parameter)
        if flat is None:
            return None
        if self.stage == 3:
            _, offset, elements = self.zero.grad_position[self.zero.get_param_id(parameter)]
            start = int(elements) * int(parameter.ds_zero_partition_rank)
            length = min(int(elements), int(parameter.ds_numel) - start)
            return Piece(flat, int(offset), start, length) if length > 0 else None
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Piece(flat, int(there.start), int(here.start), int(here.numel))

    def relink(self) -> None:
        """Tells DeepSpeed's own getters where the optimizer's state is now."""
        if self.stage != 3:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()


def shape_of(parameter: Any) -> torch.Size:
    """The shape of a parameter, also of one that is spread over processes."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
