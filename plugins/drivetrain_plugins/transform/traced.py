"""A model traced by torch.jit for as long as its weights stay: called in the model's place, and checked against it."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from drivetrain.precision_outputs import map_leaves

logger = logging.getLogger("drivetrain")

# A trace that was frozen adds in another order; what is wrong is wrong by more than this.
_TOLERANCE = {
    torch.float32: 1e-4,
    torch.float64: 1e-8,
    torch.bfloat16: 3e-2,
    torch.float16: 3e-3,
}


class NotTraceable(Exception):
    """Why there is no trace, in words that end a sentence."""


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors that lie in arguments or outputs, in order."""
    found: list[Tensor] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        return leaf

    map_leaves(value, note)
    return found


def with_tensors(template: Any, tensors: Any) -> Any:
    """`template` with its tensors replaced, in order."""
    following = iter(tensors)
    return map_leaves(template, lambda leaf: next(following) if isinstance(leaf, Tensor) else leaf)


def signature_of(args: Any, kwargs: Any) -> tuple[Any, ...]:
    """What a trace depends on of its inputs, but for the numbers in them: the other values, and the tensors' forms.

    Raises:
        NotTraceable: an input is neither a tensor nor a plain value.
    """
    found: list[Any] = [len(args), *kwargs]

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            found.append((leaf.shape, leaf.dtype, leaf.device))
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            found.append((type(leaf), leaf))
        else:
            raise NotTraceable(f"it is given a value of type {type(leaf).__name__}")
        return leaf

    map_leaves((list(args), dict(kwargs)), note)
    return tuple(found)


class _Flat(nn.Module):
    """A model as a function of tensors that gives a tuple of tensors, which is all that a trace can hold."""

    def __init__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        super().__init__()
        self.model = model
        self.given = [(list(args), dict(kwargs))]  # in a list, where torch.jit does not look for tensors
        self.template: list[Any] = []

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = with_tensors(self.given[0], tensors)
        call: Any = self.model._call_impl  # not its __call__, which may lead here
        outputs = map_leaves(call(*args, **kwargs), _kept)
        self.template[:] = [outputs]
        return tuple(tensors_of(outputs))


def _kept(leaf: Any) -> Any:
    if isinstance(leaf, (Tensor, bool, int, float, str)) or leaf is None:
        return leaf
    if hasattr(leaf, "get_seq_length"):
        return None  # a cache of keys and values, which is no prediction
    raise NotTraceable(f"it returns a value of type {type(leaf).__name__}")


class Traced:
    """One trace of a model.

    Args:
        model: in evaluation mode, without gradients.
        args, kwargs: of the call that it is traced from.
        compute: what the forward computes in, where that is not the weights' type.

    Raises:
        NotTraceable: with the reason; also where the trace gives other numbers than the model.
    """

    def __init__(self, model: nn.Module, args: Any, kwargs: Any, compute: torch.dtype | None = None) -> None:
        self._model = model
        held = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self._tolerance = _TOLERANCE.get(compute or held, _TOLERANCE[torch.float32])
        self._flat = _Flat(model, args, kwargs)
        self._flat.eval()
        self._fixed = _without_sizes(signature_of(args, kwargs))
        self._checked: set[tuple[Any, ...]] = set()
        self.choices: list[str] = []
        self._function = self._trace(tensors_of((list(args), dict(kwargs))))
        self._weights = weights_as_they_are(model)

    def _trace(self, tensors: list[Tensor]) -> Any:
        jit: Any = torch.jit
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                traced = jit.trace(self._flat, tuple(tensors), strict=False, check_trace=False)
                function = jit.freeze(traced)
            except NotTraceable:
                raise
            except Exception as error:  # whatever a model's code makes of a tracer
                raise NotTraceable(_first_line(error)) from error
        # torch's word that it will give up torch.jit one day is not news to who asks for it.
        self.choices = [_first_line(w.message) for w in heard if issubclass(w.category, jit.TracerWarning)]
        return function

    def fits(self, signature: tuple[Any, ...]) -> bool:
        """Whether the trace was made with the same values, and tensors of the same types and numbers of dimensions."""
        return _without_sizes(signature) == self._fixed

    def is_of(self, model: nn.Module) -> bool:
        """Whether the weights are still those that are frozen in it."""
        return weights_as_they_are(model) == self._weights

    def __call__(self, signature: tuple[Any, ...], args: Any, kwargs: Any) -> Any:
        """The outputs. The first batch of each shape runs through the model as well, and the two are compared.

        Raises:
            NotTraceable: they differ.
        """
        try:
            tensors = self._function(*tensors_of((list(args), dict(kwargs))))
        except Exception as error:
            raise NotTraceable(_first_line(error)) from error
        outputs = with_tensors(self._flat.template[0], tensors)
        if signature not in self._checked:
            call: Any = self._model._call_impl
            expected = map_leaves(call(*args, **kwargs), _kept)
            self._compare(list(tensors), tensors_of(expected))
            self._checked.add(signature)
        return outputs

    def _compare(self, found: list[Tensor], expected: list[Tensor]) -> None:
        if len(found) != len(expected):
            raise NotTraceable("the trace gives another number of outputs than the model for this batch")
        for one, other in zip(found, expected, strict=True):
            tolerance = self._tolerance if other.is_floating_point() else 0.0
            try:
                torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
            except AssertionError as error:
                raise NotTraceable(
                    f"the trace does not give what the model gives for this batch ({_first_line(error)})"
                ) from None


def weights_as_they_are(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Another one after each change of a parameter or a buffer: where each lies, and torch's count of its changes."""
    return tuple((t.data_ptr(), t._version) for t in (*model.parameters(), *model.buffers()))


def _without_sizes(signature: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        (len(part[0]), *part[1:]) if isinstance(part, tuple) and isinstance(part[0], torch.Size) else part
        for part in signature
    )


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")
