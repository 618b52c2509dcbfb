"""What is remembered of the modules that ran, and how the place is found where NaN or infinity began."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field

from drivetrain_plugins.callback.magnitudes import Magnitude

_OF_WEIGHT = "gradient of the weight "


@dataclass(slots=True, eq=False)
class Frame:
    """One call of a module, or the gradient of one tensor that passed between modules.

    Attributes:
        path: the module's name within the model; empty for the model itself.
        kind: the module's class.
        batch: the micro-batch, from 0.
        backward: whether it is of the backward pass.
        magnitudes: of weights and inputs, then outputs; or of the gradient.
        users: for a gradient, the modules that the tensor is an input of: path, class and input's name.
    """

    path: str
    kind: str
    batch: int
    backward: bool = False
    magnitudes: list[Magnitude] = field(default_factory=list)
    users: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """`layers.3 (Linear)`."""
        return module(self.path, self.kind)


@dataclass(frozen=True, slots=True)
class Fault:
    """Where NaN or infinity began.

    Attributes:
        frame: of the module, or of the gradient.
        magnitude: the tensor.
        sentence: what was found, without the last full stop.
    """

    frame: Frame
    magnitude: Magnitude
    sentence: str


def module(path: str, kind: str) -> str:
    """A module for a sentence."""
    return f"{path} ({kind})" if path else f"the model ({kind})"


def find_fault(order: Iterable[tuple[Frame, Magnitude]], ignored: tuple[str, ...]) -> Fault | None:
    """The first tensor that is not finite, in the order in which they came to be.

    An input that holds negative infinity and no NaN is a mask, and no fault.

    Args:
        order: what was measured, the magnitudes read.
        ignored: patterns of module names that may give what they like.
    """
    for frame, magnitude in order:
        if magnitude.is_finite or any(fnmatch.fnmatchcase(frame.path, pattern) for pattern in ignored):
            continue
        if (
            magnitude.name.startswith("input")
            and magnitude.low == -float("inf")
            and magnitude.high < float("inf")
        ):
            continue
        say = _of_gradient if frame.backward else _of_forward
        return Fault(frame, magnitude, say(frame, magnitude))
    return None


def _of_forward(frame: Frame, magnitude: Magnitude) -> str:
    what = f"{magnitude.fault} began in {frame.title}"
    role = magnitude.name.split("[")[0].split(".")[0]
    if role == "output":
        return f"{what}: in its {magnitude.name}, from inputs and weights that are finite"
    if role != "input":
        return f"{magnitude.fault} is in the weight {_full(frame, magnitude.name)}"
    if not frame.path:
        return f"{magnitude.fault} is in the batch: {magnitude.name} of the model ({frame.kind})"
    parent = frame.path.rpartition(".")[0]
    return (
        f"{magnitude.fault} is in {magnitude.name} of {frame.title}, and no module gave it: it began in the forward of "
        f"{parent or 'the model'}, or of a module around that, before this one was called"
    )


def _of_gradient(frame: Frame, magnitude: Magnitude) -> str:
    if magnitude.name.startswith(_OF_WEIGHT):
        weight = _full(frame, magnitude.name.removeprefix(_OF_WEIGHT))
        return (
            f"{magnitude.fault} began in the backward pass of {frame.title}: in the gradient of the weight {weight}, "
            "while the gradient that came to its output was finite"
        )
    innermost = [
        user
        for user in frame.users
        if not any(other[0] != user[0] and is_within(other[0], user[0]) for other in frame.users)
    ]
    if innermost:
        users = " or of ".join(dict.fromkeys(module(path, kind) for path, kind, _ in innermost))
        inputs = " or ".join(dict.fromkeys(name for _, _, name in innermost))
        source = f", which is the output of {frame.title}" if frame.kind else ""
        return (
            f"{magnitude.fault} began in the backward pass of {users}: in the gradient of its {inputs}{source}, while "
            "the gradient that came to its own output was finite"
        )
    if not frame.path:
        return (
            f"{magnitude.fault} began in the backward pass of the loss: in the {magnitude.name} of the model "
            f"({frame.kind}), whose values are finite"
        )
    parent = frame.path.rpartition(".")[0]
    return (
        f"{magnitude.fault} began in the backward pass of what {parent or 'the model'} computes from the output of "
        f"{frame.title}, outside of any module"
    )


def _full(frame: Frame, name: str) -> str:
    return f"{frame.path}.{name}" if frame.path else name


def is_within(path: str, outer: str) -> bool:
    """Whether a module lies within another, by their names."""
    return outer == "" or path.startswith(outer + ".")
