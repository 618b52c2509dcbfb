"""An engine from the configuration, the model, and the optimizer and schedule of either side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from drivetrain.checkpoint.canonical import name_parameters
from drivetrain.errors import ConfigurationError
from drivetrain.slots import LRScheduler, Model, OptimizerFactory, SchedulerFactory
from drivetrain_plugins.strategy.deepspeed.configuration import Configuration
from drivetrain_plugins.strategy.deepspeed.elementwise import check_element_wise
from drivetrain_plugins.strategy.deepspeed.groups import EngineOptimizer
from drivetrain_plugins.strategy.deepspeed.weights import is_spread

if TYPE_CHECKING:
    from drivetrain.run import Run

_BUCKET = "zero_optimization.reduce_bucket_size"
_DEFAULT_BUCKET = 500_000_000
_NOT_OF_GROUPS = "deepspeed: the configuration's optimizer takes the documented parameter groups"


@dataclass(slots=True)
class Built:
    """What was made.

    Attributes:
        engine: DeepSpeed's.
        optimizer: all parameter groups, as the rest of the trainer sees them.
        scheduler: stepped by the strategy, never by the engine.
        per_evaluation: whether it is stepped after evaluations instead.
        names: names of the parameters of each group.
        members: the parameters of each group, frozen ones as well, which the engine does not get.
        earlier: the view of an earlier run, whose state this one goes on with.
    """

    engine: Any
    optimizer: EngineOptimizer
    scheduler: LRScheduler
    per_evaluation: bool
    names: list[list[str]]
    members: list[list[Any]]
    earlier: EngineOptimizer | None


def build(
    vendor: Any,
    run: Run,
    config: Configuration,
    model: Model,
    optimizer: OptimizerFactory,
    scheduler: SchedulerFactory,
) -> Built:
    """The engine that trains.

    Raises:
        ConfigurationError: optimizer and schedule of both sides do not go together, or with ZeRO.
        CheckpointError: the optimizer holds something that is no parameter of the model.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigurationError(
            "Strategy 'deepspeed' has nothing to train: every parameter of the model is frozen."
        )
    earlier = optimizer.finished if isinstance(optimizer.finished, EngineOptimizer) else None
    if earlier is not None:  # of an earlier train(): built anew from what it was built from
        optimizer = earlier.factory
    own = config.get("optimizer") is not None
    if own:
        groups = _groups_for_vendor(config, model, optimizer)
        client, stand_in = None, torch.optim.SGD([{**group} for group in groups], lr=0.0)
        names = name_parameters(stand_in, model.named_parameters())
    else:
        client = optimizer.build(model)
        if config.stage:
            check_element_wise(optimizer, client.param_groups, config.stage)
        names = name_parameters(client, model.named_parameters())
        groups = list(client.param_groups)
    members = [list(group["params"]) for group in groups]
    if config.stage:
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    engine = _initialize(
        vendor,
        config,
        model,
        optimizer=client,
        model_parameters=[group for group in groups if group["params"]] if own else None,
    )
    if own:
        groups = _with_empty(engine.basic_optimizer, groups, members)
    _mend_adagrad(engine, groups, members)
    view = EngineOptimizer(engine, groups, optimizer)
    if earlier is not None and optimizer.finished is None:
        _go_on(view, earlier)
    made, per_evaluation = _schedule(vendor, config, view, scheduler)
    sync_training_mode(engine, model)
    take_torchs_options(engine)
    return Built(engine, view, made, per_evaluation, names, members, earlier)


def build_for_inference(vendor: Any, config: Configuration, model: Model) -> Any:
    """An engine of stage 3 that only gathers weights for a forward."""
    config.remove("optimizer")
    for word in ("bf16", "fp16"):  # it would cut digits off weights that nobody trains
        config.remove(word)
    engine = _initialize(vendor, config, model, optimizer=None, model_parameters=None)
    sync_training_mode(engine, model)
    take_torchs_options(engine)
    return engine


def _initialize(vendor: Any, config: Configuration, model: Model, **given: Any) -> Any:
    content = Configuration(config.content)
    content.remove("scheduler")  # built here, on all groups
    if config.get("timers.throughput.enabled") is None:
        content.set("timers.throughput.enabled", False)  # it would wait for the device at every step
    if config.get(_BUCKET) is None and config.stage:
        size = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
        content.set(_BUCKET, max(min(_DEFAULT_BUCKET, size), 1))  # a larger one only takes memory
    if given["optimizer"] is not None:
        content.set("zero_allow_untested_optimizer", True)  # it has been tried out
        content.set("zero_force_ds_cpu_optimizer", False)
    elif config.get("optimizer") is not None:
        content.set("zero_allow_untested_optimizer", True)
    if not config.stage:
        content.set("gradient_clipping", 0.0)  # clipped by the strategy, which needs the norm
    try:
        engine, *_ = vendor.initialize(model=model, config=content.content, **given)
    except (AssertionError, ValueError, vendor.DeepSpeedConfigError) as error:
        said = _said(error)
        raise ConfigurationError(f"DeepSpeed refuses this configuration: {said.rstrip('.')}.") from error
    return engine


def _said(error: Exception) -> str:
    details = getattr(error, "errors", None)  # pydantic's errors tell where they are
    if callable(details):
        return "; ".join(
            f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}" for found in details()
        )
    return " ".join(str(error).split()) or type(error).__name__


def _groups_for_vendor(
    config: Configuration, model: Model, factory: OptimizerFactory
) -> list[dict[str, Any]]:
    if factory.finished is not None:
        raise ConfigurationError(
            f"deepspeed sets optimizer.type={config.get('optimizer.type')!r}, and an optimizer was handed in or built "
            f"by the Trainer's subclass, a {type(factory.finished).__name__}: keep one of them."
        )
    if factory.groups is None:
        return [{"params": list(model.parameters())}]
    return factory.groups(model)


def _with_empty(
    inner: torch.optim.Optimizer, groups: list[dict[str, Any]], members: list[list[Any]]
) -> list[dict[str, Any]]:
    """The inner optimizer's groups, and in their places those that it was not given, as they have no parameters."""
    made = iter(inner.param_groups)
    return [
        next(made) if any(p.requires_grad for p in of_group) else {**inner.defaults, **group, "params": []}
        for group, of_group in zip(groups, members, strict=True)
    ]


def _go_on(view: EngineOptimizer, earlier: EngineOptimizer) -> None:
    """The options of an earlier run's groups, learning rates as they were at its end among them."""
    if len(view.param_groups) == len(earlier.param_groups):
        for group, before in zip(view.param_groups, earlier.param_groups, strict=True):
            group.update({key: value for key, value in before.items() if key != "params"})


def _mend_adagrad(engine: Any, groups: list[dict[str, Any]], members: list[list[Any]]) -> None:
    """Puts the groups of an Adagrad back, which ZeRO builds anew with the options of its defaults alone."""
    zero = engine.optimizer
    inner = engine.basic_optimizer
    if zero is inner or not isinstance(inner, torch.optim.Adagrad):
        return
    inner.state.clear()
    rows = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    for row in rows:
        start = inner.defaults["initial_accumulator_value"]
        inner.state[row] = {"step": torch.tensor(0.0), "sum": torch.full_like(row.detach(), start)}
    zero.optimizer = inner
    if hasattr(zero, "bit16_groups"):
        zero._link_all_hp_params()
        zero._lazy_init_hp_params_optimizer_state()


def _schedule(
    vendor: Any, config: Configuration, view: EngineOptimizer, factory: SchedulerFactory
) -> tuple[LRScheduler, bool]:
    kind = config.get("scheduler.type")
    if kind is None:
        return factory.build(view), factory.per_evaluation
    if factory.finished is not None:
        raise ConfigurationError(
            f"deepspeed sets scheduler.type={kind!r}, and a scheduler was handed in or built by the Trainer's "
            f"subclass, a {type(factory.finished).__name__}: keep one of them."
        )
    from deepspeed.runtime import lr_schedules

    cls: Callable[..., LRScheduler] | None = getattr(lr_schedules, kind, None) or getattr(
        torch.optim.lr_scheduler, kind, None
    )
    if cls is None:
        raise ConfigurationError(
            f"Unknown scheduler.type {kind!r} in deepspeed's configuration: it knows "
            f"{', '.join(lr_schedules.VALID_LR_SCHEDULES)}, and those of torch.optim.lr_scheduler."
        )
    try:
        return cls(view, **config.get("scheduler.params", {})), False
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"deepspeed's scheduler {kind} refuses its params: {' '.join(str(error).split())}"
        ) from error


def sync_training_mode(engine: Any, model: Model) -> None:
    """Lets the engine itself know whether it trains: DeepSpeed's own `train` and `eval` only tell the model."""

    def train(mode: bool = True) -> Any:
        engine.warn_unscaled_loss = True
        engine.module.train(mode)
        engine.training = mode
        return engine

    engine.train = train
    engine.eval = lambda: train(False)
    engine.training = model.training


def take_torchs_options(engine: Any) -> None:
    """Lets the engine be compiled as any module is: DeepSpeed's own `compile` takes torch's options in a dict.

    It compiles the bare model, in place.
    """
    own = engine.compile

    def compile(backend: Any = "inductor", **options: Any) -> None:
        own(backend=backend, compile_kwargs=options)

    engine.compile = compile


def cut(model: Model) -> bool:
    """Whether any weight is spread over processes already."""
    return any(is_spread(parameter) for parameter in model.parameters())
