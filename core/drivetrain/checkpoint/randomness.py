"""The state of every random generator of a process."""

from __future__ import annotations

import hashlib
import logging
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from drivetrain.checkpoint.tensors import reason_of
from drivetrain.errors import CheckpointError
from drivetrain.seeding import set_seed

logger = logging.getLogger("drivetrain")

DEVICES = ("cuda", "xpu")
_WORDS = 624  # of a Mersenne twister


@dataclass(slots=True)
class RandomState:
    """Python's, numpy's and torch's generators, or a seed for all of them.

    Attributes:
        python: `random.getstate()`.
        numpy: `numpy.random.get_state(legacy=False)`.
        torch_cpu: `torch.get_rng_state()`.
        devices: kind of device -> the state of each device of that kind. A kind that this process never used
            is left out: asking for its state would start it.
        seed: where a state of its own is missing (another world size), what all generators are seeded with.
    """

    python: Any = None
    numpy: dict[str, Any] | None = None
    torch_cpu: torch.Tensor | None = None
    devices: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    seed: int | None = None

    @classmethod
    def capture(cls) -> RandomState:
        """The generators as they are now. Nothing is drawn from them."""
        devices = {}
        for kind in DEVICES:
            module = getattr(torch, kind, None)
            if module is not None and module.is_available() and module.is_initialized():
                devices[kind] = [state.clone() for state in module.get_rng_state_all()]
        if torch.backends.mps.is_available():
            devices["mps"] = [torch.mps.get_rng_state()]
        return cls(
            python=random.getstate(),
            numpy=dict(np.random.get_state(legacy=False)),
            torch_cpu=torch.get_rng_state(),
            devices=devices,
        )

    @classmethod
    def derived(cls, seed: int, step: int, rank: int) -> RandomState:
        """A state for a rank that has none in the checkpoint: a function of these three numbers alone."""
        digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
        return cls(seed=int.from_bytes(digest, "little") >> 1)  # 63 bits: torch takes signed numbers

    def restore(self) -> None:
        """Sets the generators.

        Raises:
            CheckpointError: a generator refuses its state.
        """
        if self.seed is not None:
            set_seed(self.seed)
            return
        try:
            random.setstate(self.python)
            if self.numpy is not None:
                np.random.set_state(self.numpy)
            if self.torch_cpu is not None:
                torch.set_rng_state(self.torch_cpu)
            for kind, states in self.devices.items():
                self._restore_devices(kind, states)
        except (ArithmeticError, TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"The checkpoint's random state does not fit this Python, numpy or torch ({reason_of(error)}); "
                "resume with the versions that its run.json names."
            ) from error

    @staticmethod
    def _restore_devices(kind: str, states: list[torch.Tensor]) -> None:
        if kind == "mps":
            if torch.backends.mps.is_available():
                torch.mps.set_rng_state(states[0])
                return
        else:
            module = getattr(torch, kind, None)
            if module is not None and module.is_available():
                count = min(len(states), module.device_count())
                for index in range(count):
                    module.set_rng_state(states[index], index)
                if count == len(states):
                    return
        logger.info(
            "The checkpoint has the random state of %d %s device(s); not all are here.", len(states), kind
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields, for `serialize.pack`."""
        return {
            "python": self.python,
            "numpy": self.numpy,
            "torch": self.torch_cpu,
            "devices": self.devices,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> RandomState:
        """The inverse of `as_dict`.

        Raises:
            CheckpointError: these are no states of generators. The generators themselves do not look at all of it:
                numpy's reads beyond its numbers where the position is wrong.
        """
        try:
            made = cls(fields["python"], fields["numpy"], fields["torch"], fields["devices"], fields["seed"])
            wrong = None if made.seed is not None else _wrong_with(made)
            if made.seed is not None and not (type(made.seed) is int and 0 <= made.seed < 2**63):
                wrong = "a seed that is none"
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise CheckpointError(
                f"The checkpoint's random state lacks {reason_of(error)}; resume from an earlier checkpoint."
            ) from error
        if wrong is not None:
            raise CheckpointError(
                f"The checkpoint's random state has {wrong}; resume from an earlier checkpoint."
            )
        return made


def _wrong_with(state: RandomState) -> str | None:
    """What no generator can have given, or None."""
    _, words, gauss = state.python
    if not isinstance(state.python, tuple) or not all(type(word) is int for word in words):
        return "a state of Python's generator that is none"
    if gauss is not None and type(gauss) is not float:
        return "a state of Python's generator that is none"
    if state.numpy is not None and not is_numpy_state(state.numpy):
        return "a state of numpy's generator that is none"
    if state.torch_cpu is not None and not _is_bytes(state.torch_cpu):
        return "a state of torch's generator that is none"
    for kind, states in state.devices.items():
        if kind not in (*DEVICES, "mps") or not isinstance(states, list) or not all(map(_is_bytes, states)):
            return f"states of {str(kind)[:20]!r} that are none"
    return None


def is_numpy_state(state: Any) -> bool:
    """Whether a state may be given to `numpy.random.set_state`, which trusts the numbers in it."""
    if state["bit_generator"] != "MT19937":
        return isinstance(
            state["bit_generator"], str
        )  # another that the program itself has set; numpy compares them
    key, position = state["state"]["key"], state["state"]["pos"]
    fits = isinstance(key, np.ndarray) and key.shape == (_WORDS,) and key.dtype == np.uint32
    fits = fits and isinstance(position, (int, np.integer)) and 0 <= position <= _WORDS
    return bool(fits) and state["has_gauss"] in (0, 1) and isinstance(state["gauss"], (int, float))


def _is_bytes(state: Any) -> bool:
    return isinstance(state, torch.Tensor) and state.dtype == torch.uint8 and state.dim() == 1
