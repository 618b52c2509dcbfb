"""Errors that users see: one sentence each, with the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from drivetrain.secret import struck


class DrivetrainError(Exception):
    """Base of every error that drivetrain raises on purpose. Secrets are struck out of what it says."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(struck(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigurationError(DrivetrainError, ValueError):
    """What was asked for cannot be done. Carries every problem found, not only the first.

    Args:
        problems: one sentence, or several; several are shown as a list.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        listed = (problems,) if isinstance(problems, str) else problems
        self.problems: tuple[str, ...] = tuple(struck(problem) for problem in listed)
        if len(self.problems) == 1:
            text = self.problems[0]
        else:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            text = f"{len(self.problems)} problems were found before the run began:\n{lines}"
        super().__init__(text)


class PluginError(DrivetrainError):
    """A plugin failed. Names the plugin and the hook; the cause is chained."""


class NonFiniteError(DrivetrainError, FloatingPointError):
    """A loss, a gradient or a weight is NaN or infinite, and the run was asked to end by it."""


class CheckpointError(DrivetrainError):
    """A checkpoint cannot be read or written."""


class HubError(DrivetrainError):
    """What was to be pushed is not at the hub.

    Args:
        sentence: what the hub said, and what helps.
        temporary: whether it may go well when it is tried again.
    """

    def __init__(self, sentence: str, *, temporary: bool = False) -> None:
        super().__init__(sentence)
        self.temporary = temporary


class ProcessError(DrivetrainError):
    """Another process of this run has ended, does not answer, or never came. The backend's error is chained."""


class OutOfMemoryElsewhere(ProcessError):
    """Another process of this run found too little memory, and has left the process group to begin anew."""


class Preempted(SystemExit):
    """The run was told to leave by SIGTERM or SIGUSR1, and a checkpoint stands: started again, it goes on.

    By Ctrl-C it leaves with a `KeyboardInterrupt` that has the same `checkpoint`: one of a class of our own would
    not end a script with 130.

    Args:
        sentence: what was written, and how to go on.

    Attributes:
        checkpoint: its folder.
        EXIT_CODE: what the process ends with: the "temporary failure" of sysexits.h.
    """

    EXIT_CODE = 75

    def __init__(self, sentence: str, checkpoint: str) -> None:
        super().__init__(sentence)
        self.code, self.checkpoint = self.EXIT_CODE, checkpoint


def checkpoint_of(error: BaseException | None) -> str | None:
    """The checkpoint that a run has left behind which was told to leave; None of any other error."""
    return getattr(error, "checkpoint", None) if isinstance(error, (Preempted, KeyboardInterrupt)) else None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The entry of `known` closest in spelling to `word`, or None where none is close."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"`, with its leading space, or nothing."""
    found = nearest(word, known)
    return f" Did you mean '{found}'?" if found else ""
