"""From arguments to a run that stands: plugins resolved, slots made, the model wrapped; and back again."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from drivetrain import peers, settings
from drivetrain.autocast import install
from drivetrain.binding import name_culprit
from drivetrain.errors import ConfigurationError, PluginError
from drivetrain.evaluation_weights import evaluation_weights, leave_evaluation_weights
from drivetrain.nodes import find_writers
from drivetrain.own_optimizer import own_optimizer_factory
from drivetrain.own_scheduler import own_scheduler_factory
from drivetrain.processes import current
from drivetrain.resolve import Plan, is_documented_callback, resolve
from drivetrain.seeding import deterministic_kernels
from drivetrain.slots import Model, OptimizerFactory, Prepared, SchedulerFactory, Strategy

if TYPE_CHECKING:
    from drivetrain.base import TrainerBase
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")

# Models that a transform put in another's place. The trainer keeps such a model, for a second train() too.
_transformed: weakref.WeakSet[Model] = weakref.WeakSet()


class Session:
    """The set-up of one `train()`, or of one `evaluate()` by itself.

    Args:
        trainer: whose arguments, model and callbacks are used.
        run: filled by `open`, and emptied of what must not outlive it by `close`.
    """

    def __init__(self, trainer: TrainerBase, run: Run) -> None:
        self.trainer = trainer
        self.run = run
        self._undo: list[Callable[[], object]] = []
        # The run may meanwhile have another: a callback that evaluates at the very end opens a session of its own.
        self._strategy: Strategy | None = None
        self._evaluation: Callable[[], AbstractContextManager[None]] | None = None
        self.is_wrapped = False

    def open(self, training: bool) -> None:
        """Makes precision and strategy of resolved plugins; the model is then built and prepared."""
        run = self.run
        run.is_training = training
        if run.args.full_determinism:
            self._undo.append(deterministic_kernels())
        run.precision = make(run, "precision")
        run.precision.setup(run)
        self._undo.append(run.precision.close)
        run.strategy = self._strategy = make(run, "strategy")
        run.strategy.setup(run)
        if training:
            check_gradients_shown(run)

    def resolve(self, training: bool) -> None:
        """Chooses the plugins by the arguments as they are now; makes no slot yet."""
        trainer, run = self.trainer, self.run
        run.args = trainer.args
        run.args.settle()  # they may have been set anew since they were checked
        core: list[tuple[str, object]] = [("callbacks", trainer.callback_handler.hooks)]
        if training and trainer._preemption is not None:
            core.append(("preemption", trainer._preemption))
        if training and run.args.push_to_hub:
            core.append(("pushing", trainer._pushes()))
        run.plan = plan = resolve(
            run.args,
            instances=trainer._plugins,
            settings=settings.load(),
            core=core,
            made=trainer._made_plugins,
            traced=trainer._trace_hooks,
            timing=run.timing if training else None,
        )
        for active in plan.active:
            # Chosen since the trainer was built; what was there then, the user may have removed on purpose.
            if is_documented_callback(active.plugin) and active.key not in trainer._made_plugins:
                trainer._made_plugins[active.key] = active.plugin
                trainer.callback_handler.add_callback(active.plugin)
        trainer.callback_handler.names = {id(active.plugin): active.name for active in plan.active}
        trainer.callback_handler.refresh()
        if training:
            for line in plan.inert:
                logger.warning("%s", line)
        run.processes = current(run.args)
        if training and plan.reporting and run.is_main_process:
            _tell_once(plan.reporting)
        run.writers = find_writers(run, tell=training)
        run.accumulation = run.args.gradient_accumulation_steps

    def autocast(self, model: Model) -> None:
        """Lets the precision change the bare model, and its forward run under autocast, until the session closes."""
        run = self.run
        convert = getattr(run.precision, "convert", None)
        if convert is not None:
            self._undo.append(convert(model))
        if run.precision.policy.compute is not None:
            device = run.device.type
            self._undo.append(install(model, lambda: run.precision.autocast(device)))

    def transform(self) -> None:
        """Gives the bare model to the transforms; what replaced it once is not given to them again."""
        run = self.run
        self.autocast(run.model)
        if run.model not in _transformed:
            bare = run.model
            run.model = self._transform("before_wrap", bare)
            if run.model is not bare:
                _transformed.add(run.model)

    def prepare(self, optimizer: OptimizerFactory, scheduler: SchedulerFactory) -> None:
        """Wraps the model, and builds what updates it; both stand when transforms are given the wrapped model."""
        run = self.run
        prepared = run.strategy.prepare(run.model, optimizer, scheduler)
        run.optimizer, run.lr_scheduler = prepared.optimizer, prepared.scheduler
        self._finish(prepared)

    def wrap(self, model: Model) -> None:
        """Gives the model to the strategy for an evaluation by itself."""
        self._finish(self.run.strategy.prepare(model, None, None))

    def _finish(self, prepared: Prepared) -> None:
        self.run.model_wrapped = self._transform("after_prepare", prepared.model)
        self.is_wrapped, self._evaluation = True, prepared.evaluation

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The strategy's context of an evaluation in the midst of training, once for evaluations within another."""
        make_context, self._evaluation = self._evaluation, None
        try:
            # The optimizer's first: a strategy may bring together what each process would evaluate.
            with evaluation_weights(self.run), make_context() if make_context is not None else nullcontext():
                yield
        finally:
            self._evaluation = make_context

    def cast_for_evaluation(self, model: Model, labels: Collection[str]) -> None:
        """The whole model in the precision's dtype for evaluation, until the session closes."""
        cast = evaluation_dtype(model, self.run.precision.policy.evaluation, labels)
        cast.__enter__()
        self._undo.append(lambda: cast.__exit__(None, None, None))

    def weights(self) -> dict[str, torch.Tensor]:
        """The bare model's weights, whole on the main process. A collective under a strategy that spreads them."""
        return self.run.strategy.state_out(weights_only=True).weights

    def _transform(self, place: str, model: Model) -> Model:
        for active in self.run.plan.of_kind("transform"):
            if (
                active.info.place if active.info else getattr(active.plugin, "place", "before_wrap")
            ) == place:
                # One plugin at a time, through pluggy, which itself cannot hand one's result to the next.
                others = {
                    id(a.plugin): a.plugin for a in self.run.plan.active if a.plugin is not active.plugin
                }
                hook = self.run.plan.manager.subset_hook_caller("transform_model", list(others.values()))
                for result in hook(run=self.run, model=model):
                    model = result
        return model

    def close(self) -> None:
        """Gives the bare model back, and undoes what was done to it and to the process."""
        trained, self.is_wrapped, self._evaluation = self.is_wrapped, False, None
        try:
            if trained and self.run.is_training:
                leave_evaluation_weights(self.run)  # also of a run that ends by an error
        finally:
            if self._strategy is not None:
                self.run.model_wrapped = self._strategy.close()
            while self._undo:
                self._undo.pop()()
            self.run.is_training = False


@cache
def _tell_once(line: str) -> None:
    """Says it once in a process, however many trainings there are."""
    logger.warning("%s", line)


def make(run: Run, slot: str) -> Any:
    """What the active plugin of a slot makes."""
    made = getattr(run.plan.manager.hook, f"make_{slot}")(run=run)
    if made is None:
        active = run.plan.slot(slot)
        name = active.name if active else "?"
        raise PluginError(f"{slot.capitalize()} {name!r} gave nothing from make_{slot}.")
    return made


def optimizer_factory(run: Run) -> OptimizerFactory:
    """What the optimizer slot, or the user's class, says."""
    active = run.plan.slot("optimizer")
    if active is not None and active.name == "own" and active.plugin is None:
        return own_optimizer_factory(run.args.optim, run)
    factory: OptimizerFactory = make(run, "optimizer")
    return factory


def scheduler_factory(run: Run, num_training_steps: int) -> SchedulerFactory:
    """What the scheduler slot, or the user's class, says."""
    active = run.plan.slot("scheduler")
    factory: SchedulerFactory
    if active is not None and active.name == "own" and active.plugin is None:
        factory = own_scheduler_factory(run.args.lr_scheduler_type, run)
    else:
        factory = make(run, "scheduler")
    factory.num_training_steps = num_training_steps
    return factory


def check_gradients_shown(run: Run) -> None:
    """Refuses listeners that need gradients under a strategy that cannot show them.

    Raises:
        ConfigurationError: naming both, and the cure.
    """
    if run.strategy.shows_gradients:
        return
    listening = [
        found.plugin_name
        for found in run.plan.manager.hook.on_gradients_ready.get_hookimpls()
        if getattr(found.plugin, "reads_all_gradients", True)
    ]
    if listening:
        active = run.plan.slot("strategy")
        raise ConfigurationError(
            f"Strategy {active.name if active else '?'!r} cannot show gradients, which {', '.join(listening)} reads: "
            "disable one of them."
        )


@contextmanager
def evaluation_dtype(model: Model, dtype: torch.dtype | None, labels: Collection[str] = ()) -> Iterator[None]:
    """The whole model in half precision for an evaluation; exactly as it was afterwards.

    What its forward is given in single precision is cast too, but for the labels.
    Peak memory is one and a half times the model's: the full tensors are kept while the half ones are in use.
    """
    if dtype is None:
        yield
        return

    def half(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value

    def cast(module: Model, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        kept = {key: value if key in labels else half(value) for key, value in named.items()}
        return tuple(half(value) for value in given), kept

    hook = model.register_forward_pre_hook(cast, with_kwargs=True)
    kept = [
        (tensor, tensor.data)
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point() and tensor.dtype != dtype
    ]
    for tensor, data in kept:
        tensor.data = data.to(dtype)
    try:
        yield
    finally:
        hook.remove()
        for tensor, data in kept:
            tensor.data = data


@contextmanager
def culprits_named(run: Run) -> Iterator[None]:
    """Tells the listeners of an error that ends the run, and names the plugin that it passed through."""
    try:
        yield
    except BaseException as error:
        plan: Plan = run.plan
        callbacks = [
            (found.key, found.plugin) for found in plan.active if is_documented_callback(found.plugin)
        ]
        name_culprit(error, plan.manager, callbacks)
        if plan.events is not None:
            for call in plan.events.on_exception:
                try:
                    call(run, error)
                except Exception as second:
                    logger.warning("A listener of on_exception failed as well: %r", second)
        if (lost := peers.lost(error)) is not None:
            raise lost from error
        raise
