"""The strategy on DeepSpeed's engine."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from drivetrain.checkpoint import optimizer_state_in, optimizer_state_out
from drivetrain.clipping import clip_grad_norm
from drivetrain.collecting import collect
from drivetrain.errors import ConfigurationError
from drivetrain.plugin import hookimpl
from drivetrain.slots import Model, OptimizerFactory, Prepared, SchedulerFactory, TrainState, Update
from drivetrain_plugins.strategy.deepspeed import halves, locks, unsupported, vendor
from drivetrain_plugins.strategy.deepspeed.alone import Alone
from drivetrain_plugins.strategy.deepspeed.bare import Before, take_back
from drivetrain_plugins.strategy.deepspeed.building import Built, build, build_for_inference
from drivetrain_plugins.strategy.deepspeed.configuration import Configuration, read
from drivetrain_plugins.strategy.deepspeed.filling import fill_from_arguments
from drivetrain_plugins.strategy.deepspeed.gradients import gradients_in, gradients_out
from drivetrain_plugins.strategy.deepspeed.groups import EngineOptimizer
from drivetrain_plugins.strategy.deepspeed.loss_scale import LossScale
from drivetrain_plugins.strategy.deepspeed.optimizer_state import (
    count_in_its_own_way,
    counted_as_torch,
    counts_in_its_own_way,
    groups_in,
    groups_out,
    state_in,
    state_out,
)
from drivetrain_plugins.strategy.deepspeed.pieces import Pieces
from drivetrain_plugins.strategy.deepspeed.together import Together
from drivetrain_plugins.strategy.deepspeed.weights import parameters_are_spread, weights_in, weights_out

if TYPE_CHECKING:
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")

_NOTHING: AbstractContextManager[None] = nullcontext()


class DeepSpeedStrategy:
    """ZeRO: optimizer state, gradients and weights are spread over the processes, as the stage says.

    Args:
        run: the run that it serves.

    Attributes:
        config: DeepSpeed's configuration, filled.
        engine: DeepSpeed's engine, from `prepare` to `close`; None where nothing needs one.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = read(run.args.deepspeed)
        self.model = run.model
        self.engine: Any = None
        self.optimizer: Any = None
        self.scheduler: Any = None
        self.pieces: Pieces | None = None
        self.loss_scale: LossScale | None = None
        self.scaler: torch.amp.GradScaler | None = None
        self._vendor: Any = None
        self._alone: Alone | None = None
        self._before: Before | None = None
        self._built: Built | None = None
        self._together: Together | None = None
        self._unfinished = False
        self._quiet = vendor.Quiet()

    @property
    def shows_gradients(self) -> bool:
        """Under stage 0 alone `.grad` is whole; ZeRO's stages keep gradients in places of their own."""
        return self.config.stage == 0

    # -- set-up ----------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        """Imports DeepSpeed for the run's device, and connects it to the process group, or to one of its own.

        Raises:
            ConfigurationError: the configuration contradicts the arguments, a killed compilation left its
                lock, or DeepSpeed was imported for another device.
        """
        problems = fill_from_arguments(self.config, run.args, run.processes.world_size)
        problems += unsupported.problems(self.config, run.device.type == "cuda")
        problems += locks.stale(locks.operators(self.config)) if run.is_training else []
        if problems:
            raise ConfigurationError(problems)
        if not run.is_training and self.config.stage != 3:
            return  # the bare model is whole on every process
        self._vendor = vendor.load(run.device, run.args.get_process_log_level())
        self._quiet.begin()
        self._alone = Alone(self._vendor)
        self._alone.begin(run.device, run.args.ddp_timeout or 1800)
        vendor.connect(self._vendor)
        if run.is_main_process:
            for line in unsupported.inert(self.config):
                logger.warning("%s", line)

    def model_context(self) -> AbstractContextManager[Any]:
        """Under stage 3 the model is built in pieces: no process ever holds all of it."""
        if self.config.stage != 3 or self._vendor is None:
            return _NOTHING
        config = Configuration(self.config.content)
        for name in list(config.autos()):  # what the model will tell
            config.remove(name)
        config.remove("scheduler")
        context: AbstractContextManager[Any] = self._vendor.zero.Init(config_dict_or_path=config.content)
        return context

    def prepare(
        self, model: Model, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None
    ) -> Prepared:
        """Gives the model to an engine, with what updates it."""
        run, policy = self.run, self.run.precision.policy
        self.model = model
        if self._vendor is None or (optimizer is None and policy.evaluation is not None):
            # Evaluation in half precision casts the weights themselves, which must be whole for it.
            if run.args.place_model_on_device:
                model.to(run.device)
            return Prepared(model, None, None)
        self._before = Before(model)
        steps = scheduler.num_training_steps if scheduler is not None else 0
        config = Configuration(self.config.content)
        problems = _fill(config, run, model, steps)
        if problems:
            raise ConfigurationError(problems)
        self.config = config
        self._together = Together(run.processes.world_size)
        if optimizer is None or scheduler is None:
            self.engine = build_for_inference(self._vendor, config, model)
            return Prepared(self.engine, None, None)
        if policy.parameter is not None:
            model.to(policy.parameter)
        before = _state_of_finished(optimizer, model)
        self._built = built = build(self._vendor, run, config, model, optimizer, scheduler)
        self._finished = built.optimizer.factory.finished
        self.engine, self.optimizer, self.scheduler = built.engine, built.optimizer, built.scheduler
        if config.stage:
            self.pieces = Pieces(self.engine.optimizer, config.stage)
        self._serve_halves()
        if policy.loss_scale is not None and config.half is None:
            self._scale_loss(policy.loss_scale)
        if before is not None and self.pieces is not None:
            state_in(self.pieces, self._named(), before)
        elif built.earlier is not None:
            self._go_on(built.earlier)
        return Prepared(self.engine, self.optimizer, self.scheduler)

    def _go_on(self, earlier: EngineOptimizer) -> None:
        """A second `train()` goes on with this process's share of the state, where it is cut as it was."""
        if self.pieces is None:
            inner = self.optimizer.inner
            if earlier.kept is not None and earlier.kept[0] == self._cut():
                inner.state.update(zip(self._named().values(), earlier.kept[1], strict=True))
        elif earlier.kept is not None and earlier.kept[0] == self._cut():
            for row, state in zip(self.pieces.rows, earlier.kept[1], strict=True):
                self.pieces.zero.optimizer.state[row] = state
            self.pieces.relink()
        earlier.kept = None

    def _cut(self) -> Any:
        """By what the optimizer's state is cut into this process's share."""
        assert self._built is not None
        rows = [row.numel() for row in self.pieces.rows] if self.pieces is not None else []
        return self.config.stage, type(self.optimizer.inner), rows, self._built.names

    def _keep(self) -> None:
        """Leaves the view with the model's own parameters and this process's share of the state."""
        assert self._built is not None
        inner = self.optimizer.inner
        if self.pieces is None:
            shares = [inner.state.get(parameter, {}) for parameter in self._named().values()]
        else:
            shares = [self.pieces.state(number) for number in range(len(self.pieces.rows))]
        self.optimizer.kept = self._cut(), [dict(share) for share in shares]
        inner.state.clear()
        for group, members in zip(self.optimizer.param_groups, self._built.members, strict=True):
            group["params"] = members

    def _serve_halves(self) -> None:
        if self.config.half is not None:
            halves.serve(self.engine, halves.DTYPES[self.config.half], _label_names(self.run))

    def _scale_loss(self, options: Any) -> None:
        if self.pieces is not None:
            self.loss_scale = LossScale.of(options, self.config)
        else:
            scale = LossScale.of(options, self.config)
            self.scaler = torch.amp.GradScaler(self.run.device.type, **{**options, "init_scale": scale.scale})
            self.engine.torch_autocast_z0_gradscaler = self.scaler

    def _named(self) -> dict[str, Any]:
        return dict(self.model.named_parameters())

    # -- an update -------------------------------------------------------------------------------------

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """The trainer says when an update is due; the engine's own count of micro-batches is not asked."""
        self.engine.set_gradient_accumulation_boundary(last)
        self._unfinished = not last
        if self.loss_scale is not None:
            self.engine.optimizer.custom_loss_scaler = True
            self.engine.optimizer.external_loss_scale = self.loss_scale.scale
        return _NOTHING

    def backward(self, loss: Tensor) -> None:
        """The backward pass; the engine divides by the accumulation and scales the loss."""
        if self.run.batch_weight != 1.0:
            loss = loss * self.run.batch_weight
        self.engine.backward(loss)

    def update(self, max_norm: float | None) -> Update:
        """One step of the engine, which clips, and skips the step at an overflow."""
        engine = self.engine
        if self.pieces is None:
            norm, stepped = self._whole_update(max_norm)
        else:
            zero = engine.optimizer
            zero.clip_grad = max_norm or 0.0
            engine.step()
            norm, stepped = engine.get_global_grad_norm(), bool(engine.was_step_applied())
            if self.config.stage == 1 and zero.cpu_offload:
                zero.accumulated_grads_in_cpu.clear()  # else the next update would add them once more
        if self.loss_scale is not None:
            self.loss_scale.update(stepped)
        if stepped and not self._built.per_evaluation:  # type: ignore[union-attr]  # prepared, since it updates
            self.scheduler.step()
        self._unfinished = False
        if norm is not None and not isinstance(norm, Tensor):
            norm = torch.tensor(float(norm))
        return Update(norm, stepped)

    def _whole_update(self, max_norm: float | None) -> tuple[Tensor | None, bool]:
        """Stage 0: gradients are whole, and averaged by the engine at the last micro-batch."""
        scaler = self.scaler
        before = scaler.get_scale() if scaler is not None else 0.0
        if scaler is not None:
            scaler.unscale_(self.optimizer.inner)
        norm = clip_grad_norm(list(self.model.parameters()), max_norm) if max_norm is not None else None
        self.engine.step()
        return norm, scaler is None or scaler.get_scale() >= before

    def collect(self, tensors: Any) -> Any:
        """All processes' tensors, one after another along dimension 0."""
        return collect(tensors) if self.run.processes.world_size > 1 else tensors

    # -- state -----------------------------------------------------------------------------------------

    def state_out(self, weights_only: bool = False) -> TrainState:
        """The canonical state on the ranks that write; the others take part."""
        keep = self.run.keeps_state
        masters = not weights_only and self.config.half is not None
        untrained = self._before.untrained if self._before is not None else {}
        weights = weights_out(self.model, self.pieces, masters, keep, untrained)
        if weights_only or self._built is None:
            return TrainState(weights)
        named, built = self._named(), self._built
        gradients: dict[str, Tensor] = {}
        if self._unfinished:
            world = self.run.processes.world_size
            gradients = gradients_out(self.pieces, named, self.config.stage, world)
        if self.pieces is None:
            states, _, extra = optimizer_state_out(self.optimizer.inner, named.items())
            states = counted_as_torch(states, built.names, self.optimizer.inner)
            groups = groups_out(self.optimizer.param_groups, built.names, self.optimizer.inner)
        else:
            states, extra = state_out(self.pieces, named, keep), {}
            groups = groups_out(self.optimizer.param_groups, built.names, self.optimizer.inner)
        gathered = {"gradients", "optimizer"} if self.pieces is not None else {"gradients"}
        if parameters_are_spread(self.model):
            gathered.add("weights")
        scale = self.scaler or self.loss_scale
        return TrainState(
            weights=weights,
            optimizer=states,
            groups=groups,
            gradients=gradients,
            loss_scale=scale.state_dict() if scale is not None else None,
            optimizer_extra=extra,
            own=frozenset(gathered),
        )

    def state_in(self, state: TrainState) -> None:
        """Sets weights, and where they are given, optimizer, gradients and loss scale."""
        if state.weights:
            weights_in(self.model, self.pieces, state.weights, self.run.processes.rank)
        if not state.groups or self._built is None:
            return
        named, built = self._named(), self._built
        groups_in(self.optimizer.param_groups, built.names, self.optimizer.inner, state)
        if self.pieces is None:
            self._whole_state_in(named, state)
        else:
            state_in(self.pieces, named, state)
        gradients_in(self.pieces, named, state.gradients, self.config.stage, self.run.device)
        self._unfinished = bool(state.gradients)
        scale = self.scaler or self.loss_scale
        if scale is not None and state.loss_scale is not None:
            scale.load_state_dict(state.loss_scale)

    def _whole_state_in(self, named: dict[str, Any], state: TrainState) -> None:
        """Stage 0: the optimizer has the parameters themselves, but for groups without any, which are not in it."""
        assert self._built is not None
        inner = self.optimizer.inner
        groups = [
            {**{key: value for key, value in group.items() if key != "params"}, "params": names}
            for group, names in zip(self.optimizer.param_groups, self._built.names, strict=True)
            if names
        ]  # their options are set already
        given = TrainState(state.weights, state.optimizer, groups, optimizer_extra=state.optimizer_extra)
        optimizer_state_in(inner, named.items(), given, rehearse=not counts_in_its_own_way(inner))
        count_in_its_own_way(inner)
        # load_state_dict makes new groups; the view and the schedule go on with the ones they know.
        mine = [group for group in self.optimizer.param_groups if group["params"]]
        for kept, made in zip(mine, inner.param_groups, strict=True):
            kept.update(made)
        inner.param_groups[:] = mine

    def close(self) -> Model:
        """Gives the bare model back: whole on every process, without the engine."""
        try:
            if self.engine is not None:
                engine, self.engine = self.engine, None
                assert self._before is not None
                assert self._together is not None
                together = self._together.here()
                kept = self._state_for_finished(together)
                if self._built is not None:
                    self._keep()
                take_back(engine, self.model, self.pieces, self._before, together)
                self._give_back_finished(kept)
        finally:
            self.pieces = self._built = None
            self.optimizer = self.scheduler = None
            if self._alone is not None:
                self._alone.end()
            self._quiet.end()
        return self.model

    def _state_for_finished(self, together: bool) -> dict[str, Any] | None:
        if self._built is None or self._finished is None or not together:
            return None
        if self.pieces is None:
            return optimizer_state_out(self._finished, self._named().items())[0]
        return state_out(self.pieces, self._named(), keep=True)

    def _give_back_finished(self, states: dict[str, Any] | None) -> None:
        """An optimizer that was handed in holds the model's own parameters again, and its state of them."""
        built, finished = self._built, getattr(self, "_finished", None)
        if built is None or finished is None:
            return
        finished.state.clear()
        finished.param_groups[:] = self.optimizer.param_groups
        for group, members in zip(finished.param_groups, built.members, strict=True):
            group["params"] = members
        for name, parameter in self._named().items():
            if states and name in states:
                finished.state[parameter] = {
                    key: value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value
                    for key, value in states[name].items()
                }


def _fill(config: Configuration, run: Run, model: Model, steps: int) -> list[str]:
    from drivetrain_plugins.strategy.deepspeed.filling import fill_from_run

    return fill_from_run(config, run.args, model, steps, run.args.train_batch_size, run.accumulation)


def _label_names(run: Run) -> list[str]:
    return list(run.args.label_names or ["labels"])


def _state_of_finished(factory: OptimizerFactory, model: Model) -> TrainState | None:
    """What an optimizer that was handed in has gathered already."""
    finished = factory.finished
    if isinstance(finished, EngineOptimizer):
        finished = finished.factory.finished
    if finished is None or not finished.state:
        return None
    states, groups, extra = optimizer_state_out(finished, model.named_parameters(), copy_tensors=True)
    return TrainState({}, states, groups, optimizer_extra=extra)


class DeepSpeedPlugin:
    """The strategy `deepspeed`."""

    @hookimpl
    def make_strategy(self, run: Run) -> DeepSpeedStrategy:
        """One for each run."""
        return DeepSpeedStrategy(run)
