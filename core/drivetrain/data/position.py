"""The position in the data, as a checkpoint keeps it.

    batch          global batches of the epoch that have been handed out
    row            rows of the epoch that they held (map-style loaders with a plain batch sampler)
    epoch          the epoch, from 0
    base_seed      the loader's base seed of the epoch
    seed           the permutation's seed, where one number decides the order
    start          else the host's random state at the epoch's beginning, with which the order is drawn again
    generators     the states that generators of the user's own had at the epoch's beginning
    ahead          a list of the kinds of random numbers that fetching draws, where it draws any
    pending        then the random state from before the fetch of the batch that comes next
    dataset        what the iterable dataset's (or the loader's) `state_dict` gave

Everything is what JSON holds; random states are base64 text. An epoch that has not begun is `{}`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Position: TypeAlias = dict[str, Any]
