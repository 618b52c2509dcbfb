"""What fails on one rank is an error on all of them, at the same point: so nobody waits for one that has gone on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from drivetrain.errors import CheckpointError, ProcessError

Exchange: TypeAlias = Callable[[Any], list[Any]]
"""Gives one small thing of each rank, in rank order, on every rank. A collective."""


def alone(value: Any) -> list[Any]:
    """The exchange of a single process."""
    return [value]


@contextmanager
def alike(exchange: Exchange, say: Any = None) -> Iterator[list[Any]]:
    """A piece of work that every rank does its part of; a collective at its end.

    Args:
        exchange: among the ranks.
        say: told to all, at the end.

    Yields:
        a list that holds, after the end, what each rank has said.

    Raises:
        BaseException: what was raised here. Where the failure is another rank's: `CheckpointError` if it was one
            there, else `ProcessError`.
    """
    said: list[Any] = []
    try:
        yield said
    except BaseException as error:
        with suppress(Exception):  # that the others have gone says less than this error
            exchange((_told(error), say))
        raise
    told = exchange((None, say))
    for rank, (failure, _) in enumerate(told):
        if failure is not None:
            of_checkpoint, text = failure
            raise (CheckpointError if of_checkpoint else ProcessError)(f"Rank {rank}: {text}")
    said.extend(what for _, what in told)


def _told(error: BaseException) -> tuple[bool, str]:
    of_checkpoint = isinstance(error, CheckpointError)
    return of_checkpoint, str(error) if of_checkpoint else f"{type(error).__name__}: {error}"
