"""The position in the data, as a checkpoint keeps it.

    batch          global batches of the epoch that have been handed out
    row            what they held: rows of the dataset, or what the batch sampler gives, counted over all ranks
    group          and how many of these a whole global batch holds
    epoch          the epoch, from 0
    world          number of ranks
    base_seed      the loader's base seed of the epoch
    seed           the permutation's seed, where one number decides the order
    permutation    which permutation of that seed it is, where it is not the first
    start          else the host's random state at the epoch's beginning, with which the order is drawn again
    generators     the states that generators of the user's own had at the epoch's beginning
    now            and those that they have now
    ahead          a list of the kinds of random numbers that fetching draws, where it draws any
    pending        then the random state from before the fetch of the batch that comes next
    dataset        what the iterable dataset's (or the loader's) `state_dict` gave
    workers        where the workers are, see `drivetrain.data.workers`
    ended          true after the last batch; then `generators` are as they are now, and beside them is only what
                   the next epoch begins with: `dataset`, and persistent `workers`

Of several ranks, `ranks` has what `start` begins of each. Random states are base64 text, and all is what JSON holds
but for states of the user's data, which are whatever a checkpoint holds. An epoch that has not begun is `{}`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from drivetrain.checkpoint.serialize import pack
from drivetrain.errors import CheckpointError
from drivetrain.gathering import gather_objects

Position: TypeAlias = dict[str, Any]
PositionHere: TypeAlias = tuple[Position, Position | None]
"""What all ranks have in common, and what differs from rank to rank; None where the position was given as a whole."""


def together(here: PositionHere, processes: Any) -> Position:
    """The position, of what each rank knows of it. A collective where there are several."""
    common, own = here
    if own is None:
        return common
    if processes.world_size == 1:
        return common | own
    return common | {"ranks": gather_objects(own, processes)}


def of_rank(position: Position, rank: int, world: int) -> Position:
    """The position as one rank reads it.

    With another number of ranks than when it was taken, what a rank alone had is not there: the batch that
    had been fetched ahead is fetched again, with other random numbers.
    """
    ranks = position.get("ranks")
    same = position.get("world", 1) == world
    mine = {**position, **(ranks[rank if same else 0] if ranks else {})}
    mine.pop("ranks", None)
    if not same:
        mine.pop("pending", None)
        mine.pop("workers", None)
    return mine


def holds(value: Any) -> bool:
    """Whether a checkpoint gives the value back as it is."""
    try:
        pack(value, {})
    except CheckpointError:
        return False
    return True
