"""Watches every module of a model: what goes in and comes out, the weights, and the gradients on their way back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from drivetrain_plugins.callback.frames import Frame
from drivetrain_plugins.callback.magnitudes import Magnitude, measure, tensors_in

# What wrappers add to the names of a model's modules.
_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module", "_orig_mod", "module")


def clean(path: str) -> str:
    """A module's name without what wrappers add to it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS[:4])


def _recomputes() -> bool:
    """Whether a backward pass is under way, so that a forward is a recomputation (gradient checkpointing)."""
    return bool(torch._C._current_graph_task_id() != -1)


class ModuleTracer:
    """Hooks on the modules of a model, and on the tensors that pass between them.

    Nothing is read here; whoever asks reads `order`, all of it together.

    Args:
        model: the bare model.
        forward_done: called when a forward of the whole model is done.

    Attributes:
        batch: the micro-batch under way, which whoever counts them sets.
        order: what was measured since it was last cleared, in the order in which it came to be.
        frames: the calls and gradients that it is of, each when it was done.
    """

    def __init__(self, model: nn.Module, forward_done: Callable[[], None]) -> None:
        self.model = model
        self.batch = 0
        self.order: list[tuple[Frame, Magnitude]] = []
        self.frames: list[Frame] = []
        self._forward_done = forward_done
        self._running: list[tuple[nn.Module, Frame | None]] = []
        self._weights: dict[int, Magnitude | None] = {}
        self._hooked: dict[int, weakref.ref[Tensor]] = {}
        self._gradients: dict[int, tuple[weakref.ref[Tensor], Frame]] = {}
        self._handles: list[Any] = []
        for name, found in model.named_modules():
            if any(hasattr(found, wrapped) for wrapped in _WRAPPERS[:3]):
                continue
            path, kind = clean(name), type(found).__name__
            self._handles.append(found.register_forward_pre_hook(self._before(path, kind), with_kwargs=True))
            self._handles.append(found.register_forward_hook(self._after(path, kind)))

    def forget(self) -> None:
        """Clears what was measured."""
        self.order, self.frames = [], []

    def weights_changed(self) -> None:
        """An update has been made: weights are measured anew at their next use."""
        self._weights.clear()

    def close(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._running.clear()
        self._gradients.clear()
        self.forget()

    # -- forward -----------------------------------------------------------------------------------------

    def _before(self, path: str, kind: str) -> Callable[..., None]:
        def before(found: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if found is self.model:
                self._running.clear()  # an error may have left something
                self._gradients.clear()
            frame = None if _recomputes() else Frame(path, kind, self.batch)
            self._running.append((found, frame))
            for name, weight in _own_weights(found):
                if frame is not None:
                    self._note_weight(frame, name, weight)
                if weight.requires_grad and torch.is_grad_enabled():
                    self._watch_weight(path, kind, name, weight)
            inputs = [*tensors_in(args, "input"), *tensors_in(kwargs, "input")]
            for name, tensor in inputs:
                if frame is not None:
                    self._note(frame, measure(name, tensor))
                if tensor.requires_grad and torch.is_grad_enabled():
                    self._watch(tensor).users.append((path, kind, name))

        return before

    def _after(self, path: str, kind: str) -> Callable[..., None]:
        def after(found: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            frame = None
            while self._running:
                running, frame = self._running.pop()
                if running is found:
                    break
            for name, tensor in tensors_in(output, "output"):
                if frame is not None:
                    self._note(frame, measure(name, tensor))
                if tensor.requires_grad and torch.is_grad_enabled():
                    gradient = self._watch(tensor)
                    if not gradient.kind:  # the innermost module is the one that made it
                        gradient.path, gradient.kind = path, kind
                        gradient.magnitudes[0].name = f"gradient of {name}"
            if frame is not None:
                self.frames.append(frame)
                if found is self.model:
                    self._forward_done()

        return after

    def _note(self, frame: Frame, magnitude: Magnitude | None) -> None:
        if magnitude is not None:
            frame.magnitudes.append(magnitude)
            self.order.append((frame, magnitude))

    def _note_weight(self, frame: Frame, name: str, weight: Tensor) -> None:
        """A weight is measured once an update, also where several modules share it."""
        key = id(weight)
        if key not in self._weights:
            self._weights[key] = measure(name, weight)
        known = self._weights[key]
        if known is not None:
            shown = known if known.name == name else _renamed(known, name)
            frame.magnitudes.append(shown)
            self.order.append((frame, shown))

    # -- backward ----------------------------------------------------------------------------------------

    def _watch(self, tensor: Tensor) -> Frame:
        """The frame of a tensor's gradient, which is measured when it comes; one for each tensor of a forward."""
        known = self._gradients.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        frame = Frame("", "", self.batch, backward=True)
        frame.magnitudes.append(Magnitude("gradient", "", "", None))
        self._gradients[id(tensor)] = weakref.ref(tensor), frame
        tensor.register_hook(lambda gradient: self._came(frame, gradient))  # type: ignore[no-untyped-call]
        return frame

    def _watch_weight(self, path: str, kind: str, name: str, weight: Tensor) -> None:
        known = self._hooked.get(id(weight))
        if known is not None and known() is weight:
            return
        if weight.is_leaf:  # what is made anew at each forward, as by FSDP, has its hook only as long
            self._hooked[id(weight)] = weakref.ref(weight)

        def came(gradient: Tensor) -> None:
            self._came(
                Frame(path, kind, self.batch, backward=True), gradient, f"gradient of the weight {name}"
            )

        handle = weight.register_hook(came)  # type: ignore[no-untyped-call]
        if weight.is_leaf:
            self._handles.append(handle)

    def _came(self, frame: Frame, gradient: Tensor, name: str | None = None) -> None:
        measured = measure(name or frame.magnitudes[0].name, gradient)
        if measured is None:
            return
        done = Frame(frame.path, frame.kind, frame.batch, True, [measured], frame.users)
        self.order.append((done, measured))
        self.frames.append(done)


def _own_weights(found: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, weight) for name, weight in found._parameters.items() if weight is not None]


def _renamed(known: Magnitude, name: str) -> Magnitude:
    """The same measurement under the name that another module has for a shared weight."""
    return Magnitude(name, known.shape, known.dtype, known.measured, known.smallest, known.low, known.high)
