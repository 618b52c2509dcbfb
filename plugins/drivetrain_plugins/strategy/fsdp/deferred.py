"""Building a model without memory for it, and making its tensors later, one at a time, with the very same numbers.

While the model is built its tensors are fakes: they know shapes, dtypes and devices, and hold nothing. What is
done to them is written down. Played back in the same order, from the same random state, it gives each tensor the
numbers that it would have had; and each is handed on as soon as nothing more is done to it, so that few of them
are there at a time. What is overwritten later is only drawn, so that the random numbers after it are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from drivetrain.errors import ConfigurationError

_aten = torch.ops.aten
# They write every element of the tensor that they are called on, whatever was there.
_OVERWRITES = {
    "aten::uniform_",
    "aten::normal_",
    "aten::fill_",
    "aten::zero_",
    "aten::copy_",
    "aten::exponential_",
    "aten::random_",
    "aten::bernoulli_",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor as a view of a storage."""

    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(slots=True)
class _Step:
    """One operation: what it is called with, the storages that it touches, and the one that it makes."""

    function: Any
    args: Any
    kwargs: Any
    touches: set[int]
    makes: list[int | None]
    is_random: bool
    overwrites: int | None = None


@dataclass(slots=True)
class Recording:
    """What was done while a model was built.

    Attributes:
        steps: the operations, in their order.
        random: the random state that they begin from.
    """

    steps: list[_Step] = field(default_factory=list)
    random: Tensor = field(default_factory=torch.get_rng_state)
    _kept: dict[int, Any] = field(default_factory=dict)  # storages, so that no other takes their number

    def place(self, tensor: Tensor) -> Place:
        """Where a fake's elements are."""
        storage = tensor.untyped_storage()
        self._kept.setdefault(storage._cdata, storage)
        return Place(
            storage._cdata,
            tensor.dtype,
            tuple(tensor.shape),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
        )

    @torch.no_grad()
    def play(self, wanted: Mapping[int, Callable[[Tensor], None]]) -> None:
        """Does it all, from the random state that it was recorded in.

        Args:
            wanted: for each storage that is needed, what takes a flat tensor over it when it is ready.
        """
        torch.set_rng_state(self.random)
        last = {storage: number for number, step in enumerate(self.steps) for storage in step.touches}
        dead = self._dead()
        real: dict[int, Tensor] = {}
        for number, step in enumerate(self.steps):
            if number in dead:
                if step.is_random:
                    scratch: dict[int, Tensor] = {}
                    for storage in step.touches:
                        scratch[storage] = _blank(self._kept[storage])
                    _run(step, scratch)
                continue
            if step.overwrites is not None and step.overwrites not in real:
                real[step.overwrites] = _blank(self._kept[step.overwrites])
            _run(step, real)
            for storage in step.touches:
                if last[storage] == number and storage in real:
                    ready = real.pop(storage)
                    if storage in wanted:
                        wanted[storage](ready)

    def _dead(self) -> set[int]:
        """Steps whose outcome is overwritten before anything else has seen it."""
        dead: set[int] = set()
        so_far: dict[
            int, list[int] | None
        ] = {}  # steps that touched a storage alone; None where others saw it
        for number, step in enumerate(self.steps):
            if step.overwrites is not None and (earlier := so_far.get(step.overwrites)) is not None:
                dead.update(earlier)
                so_far[step.overwrites] = []
            alone = len(step.touches) == 1
            for storage in step.touches:
                known = so_far.setdefault(storage, [])
                if not alone:
                    so_far[storage] = None
                elif known is not None:
                    known.append(number)
        return dead

    @torch.no_grad()
    def value(self, tensor: Tensor) -> Tensor:
        """The numbers of a fake whose making drew no random ones; what code that reads while it builds is given.

        Raises:
            ConfigurationError: they are random, and cannot be known yet.
        """
        place = self.place(tensor)
        needed, chosen = {place.storage}, []
        for step in reversed(self.steps):
            if step.touches & needed:
                if step.is_random:
                    raise _reads_random()
                needed |= step.touches
                chosen.append(step)
        real: dict[int, Tensor] = {}
        for step in reversed(chosen):
            _run(step, real)
        return _view(real, place)


def _reads_random() -> ConfigurationError:
    return ConfigurationError(
        "model_init reads random numbers while it builds the model, which cpu_ram_efficient_loading puts off: leave "
        "cpu_ram_efficient_loading out of fsdp_config."
    )


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation on fakes."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = recording

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs it on the fakes, and notes what will have to be run."""
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            with torch.utils._python_dispatch._disable_current_modes():
                return self.recording.value(args[0]).item()
        before: dict[int, Tensor] = {}

        def note(tensor: Tensor) -> Tensor:
            if isinstance(tensor, FakeTensor):
                before[self.recording.place(tensor).storage] = tensor
            return tensor

        tree_map_only(Tensor, note, (args, kwargs))
        out = func(*args, **kwargs)
        made: list[int | None] = []

        def note_made(tensor: Tensor) -> Tensor:
            if isinstance(tensor, FakeTensor):
                storage = self.recording.place(tensor).storage
                made.append(storage if storage not in before else None)
            else:
                made.append(None)
            return tensor

        tree_map_only(Tensor, note_made, out)
        fresh = [storage for storage in made if storage is not None]
        if not fresh and not func._schema.is_mutable:
            return out  # a view, or a question
        if not fresh and not before:
            return out
        self._write(func, args, kwargs, set(before) | set(fresh), made)
        return out

    def _write(self, func: Any, args: Any, kwargs: Any, touches: set[int], made: list[int | None]) -> None:
        recording = self.recording

        def as_place(tensor: Tensor) -> Any:
            return recording.place(tensor) if isinstance(tensor, FakeTensor) else tensor

        overwrites = None
        if func._schema.name in _OVERWRITES and isinstance(args[0], FakeTensor):
            target = args[0]
            whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
            others = [a for a in args[1:] if isinstance(a, FakeTensor)]
            seen = any(recording.place(a).storage == recording.place(target).storage for a in others)
            overwrites = recording.place(target).storage if whole and not seen else None
        placed = tree_map_only(Tensor, as_place, (args, kwargs))
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        recording.steps.append(_Step(func, placed[0], placed[1], touches, made, is_random, overwrites))


class Deferred:
    """The context in which a model is built without memory for it. `recording` tells what was done in it."""

    def __init__(self) -> None:
        self.recording = Recording()
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._recorder = Recorder(self.recording)
        self._truncated: Any = None

    def __enter__(self) -> Deferred:
        self.recording.random = torch.get_rng_state()
        self._fakes.__enter__()
        self._recorder.__enter__()  # type: ignore[no-untyped-call]
        self._truncated = torch.nn.init._no_grad_trunc_normal_
        torch.nn.init._no_grad_trunc_normal_ = self._trunc_normal
        return self

    def _trunc_normal(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One step as a whole, since it draws again and again until it likes the numbers."""
        if not isinstance(tensor, FakeTensor):
            drawn: Tensor = self._truncated(tensor, *args, **kwargs)
            return drawn
        place = self.recording.place(tensor)
        whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        self.recording.steps.append(
            _Step(
                self._truncated,
                (place, *args),
                kwargs,
                {place.storage},
                [None],
                True,
                place.storage if whole else None,
            )
        )
        return tensor

    def __exit__(self, *error: Any) -> None:
        torch.nn.init._no_grad_trunc_normal_ = self._truncated
        self._recorder.__exit__(*error)  # type: ignore[no-untyped-call]
        self._fakes.__exit__(*error)


def _blank(storage: Any) -> Tensor:
    return torch.empty(storage.nbytes(), dtype=torch.uint8)


def _view(real: Mapping[int, Tensor], place: Place) -> Tensor:
    made = torch.empty(0, dtype=place.dtype)
    return made.set_(real[place.storage].untyped_storage(), place.offset, place.size, place.stride)


def view(flat: Tensor, place: Place) -> Tensor:
    """A tensor over the storage that was played back."""
    return _view({place.storage: flat}, place)


def _run(step: _Step, real: dict[int, Tensor]) -> None:
    args, kwargs = tree_map_only(Place, lambda place: _view(real, place), (step.args, step.kwargs))
    out = step.function(*args, **kwargs)
    results = [out] if isinstance(out, Tensor) else [t for t in out or () if isinstance(t, Tensor)]
    for storage, result in zip(step.makes, results, strict=False):
        if storage is not None:
            if step.function is _aten.lift_fresh.default or step.function is _aten.detach.default:
                result = result.clone()  # of a constant, which is not to be changed
            real[storage] = result
