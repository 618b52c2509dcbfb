"""What the precisions share: TF32 for the time of the run, half evaluation, and autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import PrecisionPolicy


class TF32:
    """Whether float32 matrix products may use TensorFloat-32, set for a run and put back after it.

    torch has two interfaces for it, a flag and a word, and refuses to read the flag once the word was used
    in a way that the flag cannot say. What was used before is used here.
    """

    def __init__(self) -> None:
        self._flag: bool | None = None
        self._word: str | None = None

    def setup(self, wanted: bool | None) -> None:
        """Sets it; None leaves it as it is."""
        if wanted is None:
            return
        matmul = torch.backends.cuda.matmul
        if self._word is None:
            self._word = str(matmul.fp32_precision)
            try:
                self._flag = bool(matmul.allow_tf32)
            except RuntimeError:
                self._flag = None
        if self._flag is None:
            matmul.fp32_precision = "tf32" if wanted else "ieee"
        else:
            matmul.allow_tf32 = wanted

    def close(self) -> None:
        """Puts it back."""
        matmul = torch.backends.cuda.matmul
        if self._flag is not None:
            matmul.allow_tf32 = self._flag
        if self._word is not None:
            matmul.fp32_precision = self._word
        self._flag = self._word = None


def evaluation_dtype(args: Any) -> torch.dtype | None:
    """The dtype that the whole model takes for evaluation outside training."""
    if args.bf16_full_eval:
        return torch.bfloat16
    return torch.float16 if args.fp16_full_eval else None


_NO_AUTOCAST: AbstractContextManager[Any] = nullcontext()


class PlainPrecision:
    """A precision given by its policy. Subclasses say the policy."""

    name: ClassVar[str]

    def __init__(self, options: Any = None) -> None:
        self.options = options
        self.policy = PrecisionPolicy(self.name)
        self._tf32 = TF32()

    def policy_of(self, args: Any) -> PrecisionPolicy:
        """The policy that the arguments ask for."""
        return PrecisionPolicy(self.name, evaluation=evaluation_dtype(args))

    @hookimpl
    def make_precision(self, run: Run) -> PlainPrecision:
        """This object, with its policy."""
        self.policy = self.policy_of(run.args)
        return self

    def setup(self, run: Run) -> None:
        """Sets TF32 as `args.tf32` says."""
        self._tf32.setup(run.args.tf32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """The context of a forward pass.

        One object for each pass: an autocast keeps what it will restore in itself, so that one which is
        entered within itself, or by two threads, would leave autocast on. Reusing it would save 1 µs of 3.3.
        """
        if self.policy.compute is None:
            return _NO_AUTOCAST
        return torch.autocast(device_type, dtype=self.policy.compute)

    def close(self) -> None:
        """Puts TF32 back."""
        self._tf32.close()
