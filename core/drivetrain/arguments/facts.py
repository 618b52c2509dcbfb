"""What arguments know about the run's processes. Asking makes the process group where there are several."""

import contextlib
import logging
import math
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from drivetrain.arguments.enums import LOG_LEVELS, ParallelMode

if TYPE_CHECKING:
    import torch

    from drivetrain.processes import Processes

logger = logging.getLogger("drivetrain.arguments")


class ProcessFacts:
    """Mixed into `TrainingArguments`. torch is imported when one of these is first asked for."""

    framework = "pt"
    default_optim = "adamw_torch"

    if TYPE_CHECKING:
        per_device_train_batch_size: int
        per_device_eval_batch_size: int
        log_level: str
        log_level_replica: str
        log_on_each_node: bool
        save_on_each_node: bool
        ddp_timeout: int | None
        warmup_steps: int
        warmup_ratio: float

    @property
    def _processes(self) -> "Processes":
        from drivetrain.processes import current

        return current(self)

    @property
    def device(self) -> "torch.device":
        """The device of this process."""
        return self._processes.device

    @property
    def n_gpu(self) -> int:
        """How many accelerators this process uses: one, or none on a CPU."""
        return self._processes.n_gpu

    @property
    def world_size(self) -> int:
        """How many processes the run has."""
        return self._processes.world_size

    @property
    def process_index(self) -> int:
        """This process's rank among all."""
        return self._processes.rank

    @property
    def local_process_index(self) -> int:
        """This process's rank on its node."""
        return self._processes.local_rank

    @property
    def parallel_mode(self) -> ParallelMode:
        """How the processes share the work; scripts read its `.value`."""
        processes = self._processes
        if processes.device.type == "xla":
            return ParallelMode.TPU
        if processes.world_size > 1:
            return ParallelMode.DISTRIBUTED
        return ParallelMode.NOT_DISTRIBUTED if processes.n_gpu > 1 else ParallelMode.NOT_PARALLEL

    @property
    def train_batch_size(self) -> int:
        """Rows that this process takes at once in training."""
        return self.per_device_train_batch_size * max(1, self.n_gpu)

    @property
    def eval_batch_size(self) -> int:
        """Rows that this process takes at once in evaluation."""
        return self.per_device_eval_batch_size * max(1, self.n_gpu)

    @property
    def should_log(self) -> bool:
        """Whether this process logs."""
        return (self.local_process_index if self.log_on_each_node else self.process_index) == 0

    @property
    def should_save(self) -> bool:
        """Whether this process writes to disk."""
        return (self.local_process_index if self.save_on_each_node else self.process_index) == 0

    @property
    def place_model_on_device(self) -> bool:
        """Whether the model is moved to `device`; a subclass may say no."""
        return True

    @property
    def ddp_timeout_delta(self) -> timedelta:
        """`ddp_timeout` as `torch.distributed` takes it."""
        return timedelta(seconds=1800 if self.ddp_timeout is None else self.ddp_timeout)

    def get_process_log_level(self) -> int:
        """This process's log level, as a level of the standard library's logging."""
        level = LOG_LEVELS[self.log_level if self.should_log else self.log_level_replica]
        return logging.getLogger("drivetrain").getEffectiveLevel() if level == -1 else level

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Updates of linear warmup in a run of `num_training_steps` updates."""
        return (
            self.warmup_steps if self.warmup_steps > 0 else math.ceil(num_training_steps * self.warmup_ratio)
        )

    @contextlib.contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """The body runs on the first process while the others wait, then on the others.

        Args:
            local: the first process of each node goes first; otherwise the first of all alone, as suits
                nodes that share a file system.
            desc: what the body does, for the log.
        """
        processes = self._processes
        if processes.world_size == 1:
            yield
            return
        first = (processes.local_rank if local else processes.rank) == 0
        if not first:
            logger.debug("Rank %d waits until %s is done on the first process.", processes.rank, desc)
            processes.barrier()
        try:
            yield
        finally:
            if first:
                logger.debug("Rank %d has done %s and lets the others go on.", processes.rank, desc)
                processes.barrier()
