"""The strategy: a model in shards, an optimizer on them, and whole states going out and coming in."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from drivetrain.collecting import collect
from drivetrain.errors import ConfigurationError, DrivetrainError
from drivetrain.memory import is_out_of_memory
from drivetrain.plugin import hookimpl
from drivetrain.slots import (
    STATE_PARTS,
    Model,
    OptimizerFactory,
    Prepared,
    SchedulerFactory,
    TrainState,
    Update,
)
from drivetrain.whole_parameters import share_of_update
from drivetrain_plugins.strategy.fsdp import state as states
from drivetrain_plugins.strategy.fsdp.binding import Binding
from drivetrain_plugins.strategy.fsdp.blocks import find_units
from drivetrain_plugins.strategy.fsdp.clipping import ShardedScaler, clip_grad_norm, holders_of
from drivetrain_plugins.strategy.fsdp.deferred import Deferred
from drivetrain_plugins.strategy.fsdp.engine import Bare, Engine, Plan
from drivetrain_plugins.strategy.fsdp.loading import Loading, is_empty
from drivetrain_plugins.strategy.fsdp.options import FSDPOptions, inert, read_settings
from drivetrain_plugins.strategy.fsdp.processes import end_group, ensure_group, mesh_of
from drivetrain_plugins.strategy.fsdp.shards import Receivers, gather, part
from drivetrain_plugins.transform.gradient_checkpointing import wrap as checkpoint_block

if TYPE_CHECKING:
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")

# Where a model that is still in shards after a run keeps what sharded it, for the next run.
_LEFT = "_drivetrain_fsdp_left"


class FSDPStrategy:
    """Fully sharded data parallelism; its methods are those of `drivetrain.slots.Strategy`."""

    shows_gradients = False  # each rank has a part of each

    def __init__(self, run: Run, options: FSDPOptions) -> None:
        self.run = run
        self.options = options
        self.engine: Engine | None = None
        self.binding: Binding | None = None
        self.scaler: ShardedScaler | None = None
        self.deferred: Deferred | None = None
        self.loading: Loading | None = None
        self.built = False
        self.keeps = False  # whether the model stays in its shards when the run ends
        self._made_group = False
        self._undo: list[Callable[[], object]] = []
        self._error_before = sys.exc_info()[1]

    def setup(self, run: Run) -> None:
        """Reads the settings, and makes the mesh of processes.

        Raises:
            ConfigurationError: an option that cannot be, or there are no processes.
        """
        self.settings, problems = read_settings(run.args)
        if problems:
            raise ConfigurationError(problems)
        self._made_group = ensure_group(run)
        self.mesh = mesh_of(self.settings, self.options, run.device)
        if run.is_main_process and run.is_training:
            for line in inert(run.args, self.settings):
                logger.warning("%s", line)
        self.everywhere = len(run.writers) > 1
        if self.everywhere and run.is_training and self.settings.state_dict_type == "sharded_state_dict":
            raise ConfigurationError(
                "fsdp_config's state_dict_type='sharded_state_dict' spreads a checkpoint over the processes of all "
                "nodes, and save_on_each_node=True keeps a whole one on each: choose state_dict_type="
                "'full_state_dict', or one output_dir for all nodes."
            )

    def model_context(self) -> AbstractContextManager[Any]:
        """Under cpu_ram_efficient_loading, or where weights are read from files, one in which nothing has memory."""
        self.built = True
        wanted = self.settings.cpu_ram_efficient_loading or self.options.weights is not None
        if not wanted or self.run.processes.world_size == 1:
            return nullcontext()
        self.deferred = Deferred()
        return self.deferred

    def prepare(
        self, model: Model, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None
    ) -> Prepared:
        """Shards the model, and builds what updates it on the shards."""
        policy = self.run.precision.policy
        self.model = model
        self._check_alike(model)
        left: _Left | None = vars(model).pop(_LEFT, None)
        if left is not None and not self._goes_on_with(left):
            _make_whole(left.engine, left.binding)
            left = None
        trained = optimizer is not None and scheduler is not None
        if left is None and (is_empty(model) or (self.built and self.options.weights is not None)):
            recording = self.deferred.recording if self.deferred is not None else None
            self.loading = Loading(model, recording, self.options.weights)
        elif left is None and trained and self.run.is_main_process:
            self._tell_whole()
        if trained and policy.parameter is not None:
            model.to(policy.parameter)
        if optimizer is not None:
            self.binding = Binding(optimizer, model)
        units = left.engine.plan.units if left is not None else find_units(model, self.settings)
        if trained and self.settings.activation_checkpointing:
            self._recompute(units)
        self.engine = left.engine if left is not None else self._engine(model, units)
        self.wrapped = self.engine.wrapped
        empty = self.loading is not None and self.loading.was_empty
        self.keeps = left is not None or (empty and self.settings.version == 2 and not self._made_group)
        self.replicated = [p.holder for p in self.engine.pieces.values() if p.alone]
        if optimizer is None or scheduler is None or self.binding is None:
            return Prepared(self.wrapped, None, None)
        try:
            self.optimizer = self.binding.build(self.engine.pieces)
        except ConfigurationError:  # on every rank alike
            if not self.keeps:
                engine, self.engine = self.engine, None
                _make_whole(engine, None)
            raise
        self.scheduler = scheduler.build(self.optimizer)
        self.per_evaluation = scheduler.per_evaluation
        self.holders = holders_of(list(self.engine.pieces.values()))
        self.accumulation = self.run.accumulation
        if policy.loss_scale is not None:
            self.scaler = ShardedScaler(self.run.device.type, **policy.loss_scale)
        self.zero_grad()
        return Prepared(self.wrapped, self.optimizer, self.scheduler)

    def _check_alike(self, model: Model) -> None:
        """Refuses a model that only some processes have weights of.

        Raises:
            ConfigurationError: on every rank.
        """
        empty: list[bool] = [False] * dist.get_world_size()
        dist.all_gather_object(empty, is_empty(model))
        if any(empty) and not all(empty):
            ranks = ", ".join(str(rank) for rank, found in enumerate(empty) if found)
            raise ConfigurationError(
                f"The model is on the meta device on rank(s) {ranks} and has weights on the others: build it alike on "
                "every process, by model_init with fsdp_config's cpu_ram_efficient_loading=True."
            )

    def _recompute(self, units: Mapping[str, nn.Module]) -> None:
        """Computes the units' activations again in the backward pass, until the run ends."""
        if not units:
            raise ConfigurationError(
                "fsdp_config's activation_checkpointing needs blocks to compute again: add auto_wrap to fsdp, or "
                "name classes in transformer_layer_cls_to_wrap."
            )
        self._undo += [checkpoint_block(unit) for unit in units.values()]

    def _engine(self, model: Model, units: dict[str, nn.Module]) -> Engine:
        plan = Plan(self.settings, self.options, units, self.mesh, self.run.device)
        if self.settings.sync_module_states:
            _synchronise(model, self.run.device)
        if self.loading is not None:
            self.loading.note_names(model)
        engine = new_engine(self.settings.version)
        engine.wrap(Bare.of(model), plan)
        if self.loading is not None:
            try:
                self.loading.fill(engine, self.run.device)
            except DrivetrainError:  # on every rank alike
                self.loading.take_back(engine)
                raise
        logger.info(
            "FSDP %d: %d units and the rest, over %d processes.",
            self.settings.version,
            len(units),
            self.mesh.size(),
        )
        return engine

    def _tell_whole(self) -> None:
        """Says which options have come to nothing since the model was built whole."""
        why = "there is one process" if self.built else "the model was given, and has its weights already"
        if self.settings.cpu_ram_efficient_loading:
            logger.warning("fsdp_config's cpu_ram_efficient_loading has no effect: %s.", why)
        if self.options.weights is not None:
            logger.warning("weights of the strategy 'fsdp' has no effect: %s.", why)

    def _goes_on_with(self, left: _Left) -> bool:
        """Whether a model in shards can be trained in the same ones."""
        plan = left.engine.plan
        return left.keeps and plan.mesh is self.mesh and plan.settings == self.settings

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are reduced only at the last micro-batch."""
        assert self.engine is not None
        return self.engine.synchronise(last)

    def backward(self, loss: Tensor) -> None:
        """The backward pass of this micro-batch's share."""
        share_of_update(loss, self.run.batch_weight, self.accumulation, self.scaler).backward()  # type: ignore[no-untyped-call]

    def update(self, max_norm: float | None) -> Update:
        """Unscale, clip, step, schedule, clear."""
        for parameter in self.replicated:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        norm, stepped = None, True
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
            stepped = not bool(self.scaler.found.item())
        if max_norm is not None:
            norm = clip_grad_norm(self.holders, max_norm, self.run.device)
        if stepped:
            self.optimizer.step()
        if self.scaler is not None:
            self.scaler.update()
        if stepped and not self.per_evaluation:
            self.scheduler.step()
        self.zero_grad()
        return Update(norm, stepped)

    def discard(self) -> Update:
        """Drops an update's gradients; a loss scale stays as it is."""
        self.zero_grad()
        return Update(None, stepped=False)

    def zero_grad(self) -> None:
        """Drops every gradient."""
        for holder, _ in self.holders:
            holder.grad = None
        if self.engine is not None:
            self.engine.drop_gradients()

    def collect(self, tensors: Any) -> Any:
        """All ranks' tensors, one after another along dimension 0."""
        return collect(tensors)

    def state_out(self, weights_only: bool = False) -> TrainState:
        """The canonical state, whole on rank 0, and on other ranks that write. A collective.

        With `state_dict_type="sharded_state_dict"` it is spread: each rank has whole tensors of some parameters.
        """
        engine = self.engine
        assert engine is not None
        engine.rest()
        spread = self.settings.state_dict_type == "sharded_state_dict" and not weights_only
        spread = spread and dist.get_world_size() > 1
        to = (
            Receivers.apart(engine.pieces.values())
            if spread
            else Receivers(self.everywhere, rank=dist.get_rank(), writes=self.run.keeps_state)
        )
        weights = states.weights_out(engine, to)
        state = TrainState(weights)
        if not weights_only:
            assert self.binding is not None
            optimizer, groups, extra = self.binding.state_out(to)
            state = TrainState(
                weights=weights,
                optimizer=optimizer,
                groups=groups,
                gradients=states.gradients_out(engine, to),
                loss_scale=self.scaler.state_dict() if self.scaler is not None else None,
                optimizer_extra=extra,
                spread=spread,
                own=frozenset(STATE_PARTS),
            )
        return state if spread or self.run.keeps_state else TrainState({})

    def state_in(self, state: TrainState) -> None:
        """Sets this rank's part of a whole state."""
        engine = self.engine
        assert engine is not None
        engine.rest()
        if state.weights:
            states.weights_in(engine, state.weights)
        if not state.groups:
            return
        assert self.binding is not None
        self.binding.state_in(state)
        engine.set_gradients(state.gradients)
        if self.scaler is not None and state.loss_scale is not None:
            self.scaler.load_state_dict(state.loss_scale)

    def close(self) -> Model:
        """Gives the bare model back, whole on every rank; after an error the model stays in its shards."""
        while self._undo:
            self._undo.pop()()
        engine, self.engine = self.engine, None
        try:
            if engine is not None:
                self._give_back(engine)
        finally:
            if self._made_group:
                self._made_group = False
                end_group()
        return self.model if hasattr(self, "model") else self.run.model

    def _give_back(self, engine: Engine) -> None:
        binding = self.binding if hasattr(self, "optimizer") else None
        error = sys.exc_info()[1]
        failed = error is not None and error is not self._error_before
        if not failed and not self.keeps:
            _make_whole(engine, binding)
        elif error is not None and failed and self.run.args.auto_find_batch_size and is_out_of_memory(error):
            _make_empty(engine, binding)  # what it held is put back from the host
        else:
            # After an error the other ranks may not be here, so nothing is gathered until there is a next run.
            engine.rest()
            vars(self.model)[_LEFT] = _Left(engine, binding, self.keeps)


@dataclass
class _Left:
    """What sharded a model, the optimizer on it, and whether it is to stay so."""

    engine: Engine
    binding: Binding | None
    keeps: bool


def _make_whole(engine: Engine, binding: Binding | None) -> None:
    """Gives a model its own parameters back, whole, and the optimizer those. A collective."""
    bare = engine.bare
    engine.rest()
    whole: dict[str, Tensor] = {}
    for name, piece in engine.pieces.items():
        if not piece.alone:
            made = gather(piece, part(piece, piece.holder), Receivers(everywhere=True), host=False)
            assert made is not None
            whole[name] = made
            if bare.parameters[name].device.type == "meta":
                bare.parameters[name] = nn.Parameter(made, bare.parameters[name].requires_grad)
    if binding is not None:
        binding.move_out(bare.parameters)
    engine.unwrap()
    for name, parameter in bare.parameters.items():
        parameter.data = whole.get(name, parameter.data)
        parameter.grad = None
    for buffer in bare.model.buffers():
        if buffer.numel():
            dist.broadcast(buffer, 0)


def _make_empty(engine: Engine, binding: Binding | None) -> None:
    """Gives a model its own parameters back, of their shapes and with nothing in them. No collective."""
    if binding is not None:
        binding.let_go(engine.bare.parameters)
    shapes = {name: piece.shape for name, piece in engine.pieces.items() if not piece.alone}
    engine.unwrap()
    for name, parameter in engine.bare.parameters.items():
        if name in shapes:
            parameter.data = torch.zeros(shapes[name], dtype=parameter.dtype, device=parameter.device)
        parameter.grad = None


def new_engine(version: int) -> Engine:
    """The generation's engine."""
    if version == 1:
        from drivetrain_plugins.strategy.fsdp.first import First

        return First()
    from drivetrain_plugins.strategy.fsdp.second import Second

    return Second()


@torch.no_grad()
def _synchronise(model: nn.Module, device: torch.device) -> None:
    """Gives every rank the first one's weights and buffers."""
    if dist.get_world_size() == 1:
        return
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.numel() and tensor.device.type != "meta":
            sent = tensor.detach().to(device).contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)


class FSDPPlugin:
    """The strategy `fsdp`."""

    def __init__(self, options: FSDPOptions) -> None:
        self.options = options

    @hookimpl
    def make_strategy(self, run: Run) -> FSDPStrategy:
        """One for each run."""
        return FSDPStrategy(run, self.options)
