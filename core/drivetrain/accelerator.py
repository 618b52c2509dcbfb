"""`trainer.accelerator`: the names that scripts written for accelerate reach for, served by this run.

There is no accelerate here. Subclasses of the Trainer call `self.accelerator.backward(loss)` and a dozen other
things; each of them is handed on to the run's strategy or to its processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drivetrain.gathering import collect_rows, gather_counts, nested_map

if TYPE_CHECKING:
    import torch

    from drivetrain.run import Run
    from drivetrain.trainer import Trainer


class Accelerator:
    """A bridge for scripts; everything in it is there by another name, which its docstring tells.

    Args:
        trainer: whose run serves.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        offered = ", ".join(entry for entry in vars(Accelerator) if not entry.startswith("_"))
        raise AttributeError(
            f"trainer.accelerator has no {name!r}: drivetrain runs without accelerate. It offers: {offered}."
        )

    @property
    def _run(self) -> Run:
        return self._trainer.run

    @property
    def device(self) -> torch.device:
        """This process's device: `args.device`."""
        return self._run.device

    @property
    def num_processes(self) -> int:
        """How many processes there are: `args.world_size`."""
        return self._run.processes.world_size

    @property
    def process_index(self) -> int:
        """This process's rank: `args.process_index`."""
        return self._run.processes.rank

    @property
    def local_process_index(self) -> int:
        """This process's rank on its node: `args.local_process_index`."""
        return self._run.processes.local_rank

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0: `trainer.is_world_process_zero()`."""
        return self._run.is_main_process

    @property
    def is_local_main_process(self) -> bool:
        """Whether this is its node's first process: `trainer.is_local_process_zero()`."""
        return self._run.processes.local_rank == 0

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro-batches an update."""
        return self._run.accumulation

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """The backward pass of a micro-batch's loss, divided by the accumulation: `run.strategy.backward`.

        Raises:
            TypeError: it is given anything but the loss.
            RuntimeError: no training is under way.
        """
        if kwargs:
            raise TypeError(f"accelerator.backward() takes the loss alone, not {', '.join(kwargs)}.")
        if not self._trainer.is_in_train:
            raise RuntimeError(
                "accelerator.backward() belongs into a training_step; no training is under way."
            )
        self._run.timing.lap("forward")
        self._run.strategy.backward(loss)

    def prepare(self, *objects: Any) -> Any:
        """What it is given, as it is: the trainer wraps the model and deals rows by itself."""
        return objects[0] if len(objects) == 1 else objects

    def unwrap_model(self, model: Any, keep_fp32_wrapper: bool = True) -> Any:
        """The bare model of the run's wrapped one; any other model as it is."""
        run = self._run
        return run.model if model is run.model_wrapped and run.model_wrapped is not None else model

    def gather(self, tensors: Any) -> Any:
        """Nested tensors of all ranks along dimension 0, of one shape on each rank. A collective."""
        if self.num_processes == 1:
            return tensors
        return self._run.strategy.collect(nested_map(_at_least_1d, tensors))

    def gather_for_metrics(self, tensors: Any) -> Any:
        """Nested tensors of all ranks along dimension 0, of as many rows as each rank has. A collective.

        Nothing is dropped: the trainer deals every row of an evaluation to one rank.
        """
        if self.num_processes == 1:
            return tensors
        tensors = nested_map(_at_least_1d, tensors)
        leaves: list[torch.Tensor] = []
        nested_map(leaves.append, tensors)
        shares = gather_counts(len(leaves[0]), self._run.processes)
        return collect_rows(tensors, shares, self.process_index, self._run)

    def wait_for_everyone(self) -> None:
        """Returns when every process is here: `run.processes.barrier()`."""
        self._run.processes.barrier()

    def print(self, *values: Any, **kwargs: Any) -> None:
        """Prints, on the first process of each node."""
        if self.is_local_main_process:
            print(*values, **kwargs)


def _at_least_1d(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(1) if tensor.dim() == 0 else tensor
