"""Where each rank's part of a parameter lies, and how whole tensors are made of parts and parts of whole ones.

Both generations keep of each parameter a run of its elements in their flat order: version 2 some of its first
dimension's rows, version 1 a range of a flat parameter. So one description serves both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta


@dataclass(slots=True, eq=False)
class Piece:
    """One parameter's place.

    Attributes:
        name: the bare model's name of it; of a tied parameter the first.
        shape: of the whole.
        holder: the tensor that the optimizer updates; it may hold several pieces.
        offset: where in the holder's local elements this piece begins.
        spans: for each rank of the shard group the range of the whole's elements that it keeps.
        group: the ranks that share one copy; None where every rank keeps it whole.
        alone: whether the engine leaves it alone, so that the strategy averages its gradient.
    """

    name: str
    shape: torch.Size
    holder: Tensor
    offset: int
    spans: list[tuple[int, int]]
    group: dist.ProcessGroup | None
    alone: bool = False

    @property
    def rank(self) -> int:
        """This rank's place in the shard group."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def span(self) -> tuple[int, int]:
        """The range of the whole's elements that this rank keeps."""
        return self.spans[self.rank]

    @property
    def numel(self) -> int:
        """Elements of the whole."""
        return self.shape.numel()


@dataclass(frozen=True, slots=True)
class Receivers:
    """Who gets the whole of each parameter.

    Attributes:
        everywhere: every rank, of which those that do not write keep nothing.
        owners: else, by the piece's name, one rank of those that share a copy, so that no rank gets all; where there
            are none, the first rank of those that share a copy.
        world: number of ranks.
        rank: this rank.
        writes: whether this rank keeps what it gets: of several copies one is enough.
    """

    everywhere: bool = False
    owners: Mapping[str, int] | None = None
    world: int = 1
    rank: int = 0
    writes: bool = True

    def of(self, piece: Piece) -> int:
        """The rank, among those that share a copy, that gets this piece whole."""
        return 0 if self.owners is None else self.owners[piece.name]

    def keeps(self, piece: Piece) -> bool:
        """Whether this rank has the whole of a piece in the end."""
        if self.everywhere:
            return self.writes
        among = self.rank if piece.group is None else piece.rank
        return self.writes and among == self.of(piece)

    @classmethod
    def apart(cls, pieces: Iterable[Piece]) -> Receivers:
        """Each piece to one rank, by size as evenly as can be."""
        pieces = sorted(pieces, key=lambda found: (-found.numel, found.name))
        world, rank = dist.get_world_size(), dist.get_rank()
        group = next((piece.group for piece in pieces if piece.group is not None), None)
        sharing = list(range(world)) if group is None else dist.get_process_group_ranks(group)
        writes = 0 in sharing
        owners: dict[str, int] = {}
        loads = [0] * len(sharing)
        for piece in pieces:
            # What every rank has whole, beside parameters that are sharded, is little.
            whole = piece.group is None and group is not None
            owner = 0 if whole else min(range(len(loads)), key=lambda number: loads[number])
            owners[piece.name] = owner
            loads[owner] += piece.numel
        return cls(owners=owners, world=world, rank=rank, writes=writes)


def local(tensor: Tensor) -> Tensor:
    """What this rank keeps of a tensor, without its gradient's history."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():  # spares DTensor's dispatch, which costs more than the rest
            tensor = tensor.to_local()
    return tensor.detach()


def part(piece: Piece, tensor: Tensor) -> Tensor:
    """This rank's elements of the piece in a tensor of the holder's layout (weight, state, gradient); flat."""
    begin, end = piece.span
    return local(tensor).reshape(-1)[piece.offset : piece.offset + end - begin]


def like_holder(piece_values: Sequence[tuple[Piece, Tensor]], dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the holder's layout with this rank's elements of whole tensors.

    Args:
        piece_values: the pieces of one holder, each with its whole tensor, which is sliced and not copied.
        dtype: of the result; by default that of the first value.
    """
    holder = piece_values[0][0].holder
    inner = local(holder)
    made = torch.zeros_like(inner, dtype=dtype or piece_values[0][1].dtype)
    flat = made.view(-1)
    for piece, whole in piece_values:
        begin, end = piece.span
        flat[piece.offset : piece.offset + end - begin].copy_(slice_of(piece, whole))
    return as_holder(holder, made)


def as_holder(holder: Tensor, inner: Tensor) -> Tensor:
    """A local tensor as a tensor like its holder."""
    if isinstance(holder, DTensor):
        # As the engine makes them: `from_local` would move parts that rest on the host.
        meta = TensorMeta(holder.shape, holder.stride(), inner.dtype)
        spec = DTensorSpec(holder.device_mesh, holder.placements, tensor_meta=meta)
        return DTensor(inner, spec, requires_grad=False)  # type: ignore[no-untyped-call]
    return inner


def slice_of(piece: Piece, whole: Tensor) -> Tensor:
    """This rank's elements of a whole tensor, which may be mapped from a file; flat."""
    begin, end = piece.span
    return whole.reshape(-1)[begin:end]


def gather(piece: Piece, mine: Tensor, to: Receivers, host: bool = True) -> Tensor | None:
    """The whole tensor, of the parts that the ranks keep. A collective of the shard group.

    Args:
        piece: whose tensor it is.
        mine: this rank's elements, flat.
        to: who gets the whole; the others get None.
        host: move the whole to the host; else it stays where it was sent.
    """
    if piece.group is None:
        if not to.writes or (to.owners is not None and not to.keeps(piece)):
            return None
        alone = mine.reshape(piece.shape).clone()
        return alone.cpu() if host else alone
    size = max(end - begin for begin, end in piece.spans)
    world = len(piece.spans)
    sent = mine.to(wire(mine.device, piece.group)).contiguous()
    if sent.numel() < size:
        sent = torch.cat([sent, sent.new_zeros(size - sent.numel())])
    rank, receiver = piece.rank, to.of(piece)
    receives = to.everywhere or rank == receiver
    buffer = sent.new_empty(world * size) if receives else sent.new_empty(0)
    parts = list(torch.split(buffer, size)) if receives and size else []
    if size:
        if to.everywhere:
            dist.all_gather(parts, sent, group=piece.group)
        else:
            there = dist.get_global_rank(piece.group, receiver)
            dist.gather(sent, parts if receives else None, dst=there, group=piece.group)
    if not receives or not to.writes:
        return None
    whole = _in_order(piece, buffer, size)
    return whole.cpu() if host else whole


def wire(device: torch.device, group: dist.ProcessGroup | None = None) -> torch.device:
    """Where a tensor must be to be sent: on the accelerator, where the group talks between accelerators alone."""
    if device.type != "cpu" or "cpu" in dist.get_backend_config(group) or "gloo" in dist.get_backend(group):
        return device
    found: torch.device = torch.accelerator.current_accelerator() or device
    return torch.device(found.type, torch.accelerator.current_device_index())


def _in_order(piece: Piece, buffer: Tensor, size: int) -> Tensor:
    """The parts, each padded to `size`, at their places."""
    if all(begin == end or begin == number * size for number, (begin, end) in enumerate(piece.spans)):
        return buffer[: piece.numel].view(piece.shape)  # only the last part is padded, at its end
    whole = buffer.new_empty(piece.numel)
    for number, (begin, end) in enumerate(piece.spans):
        whole[begin:end] = buffer[number * size : number * size + end - begin]
    return whole.view(piece.shape)


def agree_on_spans(
    spans: dict[str, tuple[int, int]], group: dist.ProcessGroup
) -> dict[str, list[tuple[int, int]]]:
    """Each parameter's ranges on all ranks of a group, in the group's order. A collective."""
    everyone: list[dict[str, tuple[int, int]]] = [{} for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(everyone, spans, group=group)
    return {name: [of_rank[name] for of_rank in everyone] for name in spans}
