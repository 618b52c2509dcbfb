"""The random state of the host: torch's global generator, NumPy's, Python's."""

from __future__ import annotations

import base64
import ctypes
import random
from typing import Any

import numpy as np
import torch

KINDS = ("torch", "numpy", "python")

HostRandomState = dict[str, Any]
"""Kind -> state, as the library gives it; of all kinds, or of some."""

_MT19937_BYTES = 624 * 4 + 4


def capture(kinds: tuple[str, ...] = KINDS) -> HostRandomState:
    """The states as they are now. NumPy's takes 80 µs, Python's 15, torch's 1."""
    return {kind: _GET[kind]() for kind in kinds}


def restore(state: HostRandomState) -> None:
    """Sets the states."""
    for kind, value in state.items():
        _SET[kind](value)


def same(kind: str, one: Any, other: Any) -> bool:
    """Whether two states of a kind are one."""
    if kind == "torch":
        return torch.equal(one, other)
    return bool(one == other) if kind == "python" else bool(_pack(one) == _pack(other))


def drawn(before: HostRandomState, after: HostRandomState) -> tuple[str, ...]:
    """The kinds that were drawn from between two captures."""
    return tuple(kind for kind in after if not same(kind, before[kind], after[kind]))


class Watch:
    """Tells what has changed since it was asked last; cheap where nothing has (15 µs, most of it Python's).

    An unused second number of a pair that NumPy draws at once leaves no trace in its generator, so where there
    is one NumPy is asked in full.
    """

    def __init__(self) -> None:
        self._last = capture()
        self._torch = _bytes(self._last["torch"])
        self._numbers = _numbers()

    def changed(self) -> HostRandomState:
        """The states of the kinds that have changed."""
        changed: HostRandomState = {}
        tensor = torch.get_rng_state()
        if (text := _bytes(tensor)) != self._torch:
            self._torch, changed["torch"] = text, tensor
        numbers = _numbers()
        if numbers != self._numbers or self._last["numpy"].get("has_gauss"):
            state = _GET["numpy"]()
            if numbers != self._numbers or not same("numpy", state, self._last["numpy"]):
                self._numbers, changed["numpy"] = numbers, state
        words = random.getstate()
        if words != self._last["python"]:
            changed["python"] = words
        self._last.update(changed)
        return changed


def _bytes(state: torch.Tensor) -> bytes:
    return state.numpy().tobytes()


def _numbers() -> Any:
    """NumPy's generator, without what its state has beside it."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if isinstance(generator, np.random.MT19937):
        return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
    return repr(generator.state)


def to_json(state: HostRandomState) -> dict[str, Any]:
    """Numbers, and text in base64 where there are many of them."""
    data: dict[str, Any] = {}
    if "torch" in state:
        data["torch"] = tensor_to_text(state["torch"])
    if "numpy" in state:
        data["numpy"] = _pack(state["numpy"])
    if "python" in state:
        version, words, gauss = state["python"]
        data["python"] = [version, _pack(np.asarray(words, dtype=np.uint32)), gauss]
    return data


def from_json(data: dict[str, Any]) -> HostRandomState:
    """What `to_json` wrote."""
    state: HostRandomState = {}
    if "torch" in data:
        state["torch"] = text_to_tensor(data["torch"])
    if "numpy" in data:
        state["numpy"] = _unpack(data["numpy"])
    if "python" in data:
        version, words, gauss = data["python"]
        state["python"] = (version, tuple(_unpack(words).tolist()), gauss)
    return state


def tensor_to_text(state: torch.Tensor) -> str:
    """The bytes of a torch generator's state, in base64."""
    return base64.b64encode(_bytes(state)).decode("ascii")


def text_to_tensor(text: str) -> torch.Tensor:
    """The state that `tensor_to_text` wrote."""
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        little = value.astype(value.dtype.newbyteorder("<"))
        return {"dtype": little.dtype.str, "base64": base64.b64encode(little.tobytes()).decode("ascii")}
    if isinstance(value, dict):
        return {name: _pack(item) for name, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"dtype", "base64"}:
            array = np.frombuffer(base64.b64decode(value["base64"]), dtype=value["dtype"])
            return array.astype(array.dtype.newbyteorder("="))
        return {name: _unpack(item) for name, item in value.items()}
    return value


_GET: dict[str, Any] = {
    "torch": torch.get_rng_state,
    "numpy": lambda: np.random.get_state(legacy=False),
    "python": random.getstate,
}
_SET: dict[str, Any] = {
    "torch": torch.set_rng_state,
    "numpy": np.random.set_state,
    "python": random.setstate,
}
