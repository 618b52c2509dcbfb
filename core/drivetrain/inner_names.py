"""Names of 4.34.0's inner parts that subclasses call and override, though no documentation has them.

People copy `evaluate`, `training_step` or `_save_checkpoint` out of the library and change a line. What such a
copy calls is here, and does what it did there. An inner method that is overridden is called where it was called
there; one that this trainer has no place for is an error, since leaving it out would change the result in silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from drivetrain.base import TrainerBase
from drivetrain.checkpoint import read_weights, rotate
from drivetrain.checkpoint.rotation import checkpoints
from drivetrain.errors import ConfigurationError
from drivetrain.saving import run_folder

if TYPE_CHECKING:
    from drivetrain.accelerator import Accelerator
    from drivetrain.loop import Position
    from drivetrain.loss import LossWindow
    from drivetrain.run import Run
    from drivetrain.stages import Stages

# Overrides that nothing would call, and what takes their place.
NOT_CALLED = {
    "_inner_training_loop": "override training_step, or listen to events with a callback or a plugin",
    "_load_from_checkpoint": "load the weights before train(), or give the strategy a state_in of its own",
    "_load_optimizer_and_scheduler": "override create_optimizer_and_scheduler, or give a plugin load_state",
    "_load_rng_state": "a checkpoint's random state is restored as it was",
    "_rotate_checkpoints": "delete checkpoints in on_save of a callback, and leave save_total_limit out",
    "_wrap_model": "write a strategy or a transform",
    "torch_jit_model_eval": "write a transform, or leave jit_mode_eval out and trace the model yourself",
    "ipex_optimize_model": "write a transform, or leave use_ipex out and call the extension yourself",
}
# These were called where their argument is set; else a script calls them itself.
_CALLED_UNDER = {"torch_jit_model_eval": "jit_mode_eval", "ipex_optimize_model": "use_ipex"}


class InnerNames(TrainerBase):
    """The part of the Trainer that scripts reach for behind its face.

    Attributes:
        use_apex, use_cuda_amp, use_cpu_amp, do_grad_scaling: False: the precision is around the model's forward,
            and the strategy scales the loss in `accelerator.backward`.
        sharded_ddp, fsdp, deepspeed: None, as in 4.34.0 with accelerate: `run.strategy` has taken their place.
    """

    use_apex = use_cuda_amp = use_cpu_amp = do_grad_scaling = use_tune_checkpoints = False
    sharded_ddp = fsdp = deepspeed = None
    _losses: LossWindow
    _position: Position
    _trial: Any
    _ignore_keys: list[str] | None

    if TYPE_CHECKING:  # defined in trainer.py

        @property
        def accelerator(self) -> Accelerator:
            """In trainer.py."""

        def _serve(self, run: Run) -> None:
            """In trainer.py."""

        def _learning_rate(self) -> float:
            """In trainer.py."""

        def _put_best_model_in(self) -> None:
            """In trainer.py."""

    def _check_overrides(self) -> None:
        """Looks for overrides that nothing would call.

        Raises:
            ConfigurationError: there is one.
        """
        problems = [
            f"{type(self).__name__} overrides {name}, which drivetrain does not call: {cure}."
            for name, cure in NOT_CALLED.items()
            if self._overrides(name) and getattr(self.args, _CALLED_UNDER.get(name, ""), True)
        ]
        if problems:
            raise ConfigurationError(problems)

    def _overrides(self, name: str) -> bool:
        """Whether a class of the user's has this method."""
        owner = next((cls for cls in type(self).__mro__ if name in vars(cls)), None)
        return owner is not None and not owner.__module__.startswith("drivetrain.")

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy`: without what only a run under way needs; the next one makes it anew."""
        own = ("_batches", "_session", "_writer", "_snapshot", "_pushing")
        return {**self.__dict__, **dict.fromkeys(own)}

    # -- what copies of methods ask ----------------------------------------------------------------------

    @property
    def is_deepspeed_enabled(self) -> bool:
        """Whether `args.deepspeed` is set."""
        return bool(self.args.deepspeed)

    @property
    def is_fsdp_enabled(self) -> bool:
        """Whether `args.fsdp` is set."""
        return bool(self.args.fsdp)

    @property
    def is_model_parallel(self) -> bool:
        """Whether the model says that it is spread over devices by itself."""
        return bool(getattr(self.model, "model_parallel", False))

    @property
    def place_model_on_device(self) -> bool:
        """`args.place_model_on_device`."""
        return self.args.place_model_on_device

    @property
    def _memory_tracker(self) -> Stages:
        return self._stages

    @property
    def _globalstep_last_logged(self) -> int:
        return self._losses.last_logged

    @_globalstep_last_logged.setter
    def _globalstep_last_logged(self, step: int) -> None:
        self._losses.last_logged = step

    @property
    def _total_loss_scalar(self) -> float:
        return self._losses.total

    @_total_loss_scalar.setter
    def _total_loss_scalar(self, total: float) -> None:
        self._losses.total = total

    # -- what copies of methods call ---------------------------------------------------------------------

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """The wrapped model, if `model` is this trainer's; any other as it is."""
        return self.model_wrapped if model is self.model else model

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        model.to(device)
        if hasattr(model, "tie_weights"):
            model.tie_weights()

    def _nested_gather(self, tensors: Any, name: str | None = None) -> Any:
        """Nested tensors of all ranks along dimension 0; None is None. A collective."""
        return None if tensors is None else self.accelerator.gather(tensors)

    def _get_output_dir(self, trial: Any = None) -> str:
        """Where checkpoints go: the output folder, or the trial's inside it."""
        return run_folder(self.run)

    def _sorted_checkpoints(
        self, output_dir: str | None = None, checkpoint_prefix: str = "checkpoint", use_mtime: bool = False
    ) -> list[str]:
        """Folders of checkpoints, the oldest first, the best in the last place but one."""
        found = [path for _, path in checkpoints(os.fspath(output_dir or self.args.output_dir))]
        best = self.state.best_model_checkpoint
        best = None if best is None else os.path.normpath(best)
        if best in found[:-1]:
            found.remove(best)
            found.insert(len(found) - 1, best)
        return found

    def _rotate_checkpoints(self, use_mtime: bool = False, output_dir: str | None = None) -> None:
        """Deletes what `save_total_limit` has no place for."""
        folder = os.fspath(output_dir or self.args.output_dir)
        rotate(folder, self.args.save_total_limit, best=self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads a checkpoint's weights into a model, by default the trainer's."""
        model = self.model if model is None else model
        model.load_state_dict(read_weights(resume_from_checkpoint), strict=False)

    # -- what is called, and may be overridden -----------------------------------------------------------

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, model: Any, trial: Any, epoch: Any, ignore_keys_for_eval: Any
    ) -> None:
        """Does what is due. Where it is overridden it is called at every update, and at each epoch's end.

        Args:
            tr_loss: the sum of losses since the last row of the log; a copy of this method sets it to 0 in place.
            model, trial, epoch, ignore_keys_for_eval: of the run.
        """
        self._serve(self.run)

    def _service(self) -> tuple[Callable[[Run], None], bool]:
        """What the loop calls for what is due, and whether it is called at every update."""
        serve, always = self._serves()
        return (serve, always) if self._last_update is None else (self._last_update.after(serve), True)

    def _serves(self) -> tuple[Callable[[Run], None], bool]:
        if type(self)._maybe_log_save_evaluate is InnerNames._maybe_log_save_evaluate:
            return self._serve, False

        def own(run: Run) -> None:
            self._maybe_log_save_evaluate(
                self._losses.sum, self.model, self._trial, self._position.epoch, self._ignore_keys
            )

        return own, True

    def _get_learning_rate(self) -> float:
        return self._learning_rate()

    def _load_best_model(self) -> None:
        self._put_best_model_in()
