"""The model, the optimizer and the scheduler: the part of the Trainer that scripts override."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch

from drivetrain.base import TrainerBase
from drivetrain.callbacks import TrainerControl, TrainerState
from drivetrain.errors import ConfigurationError
from drivetrain.parameters import get_decay_parameter_names, parameter_groups
from drivetrain.processes import current
from drivetrain.resolve import Plan, resolve
from drivetrain.run import Run
from drivetrain.session import Session, optimizer_factory, scheduler_factory
from drivetrain.slots import LRScheduler, OptimizerFactory, SchedulerFactory

if TYPE_CHECKING:
    from drivetrain.arguments import TrainingArguments


class Building(TrainerBase):
    """The part of the Trainer that builds the model, and what updates it."""

    def call_model_init(self, trial: Any = None) -> Any:
        """A new model from `model_init`, which may take the trial."""
        assert self.model_init is not None
        model = self.model_init(trial) if _takes_trial(self.model_init) else self.model_init()
        if model is None:
            raise ConfigurationError("model_init returned None; it must return the model.")
        return model

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Builds both. Override it, or one of the two below, for your own."""
        self.create_optimizer()
        self.create_scheduler(num_training_steps, self.optimizer)

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Sets `self.optimizer`, unless there is one, and returns it."""
        if self.optimizer is None:
            self.optimizer = optimizer_factory(self._open_session().run).build(self.model)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Sets `self.lr_scheduler`, unless there is one, and returns it."""
        if self.lr_scheduler is None:
            used = self.optimizer if optimizer is None else optimizer
            assert used is not None
            self.lr_scheduler = scheduler_factory(self._open_session().run, num_training_steps).build(used)
            self._made_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Names of the parameters that weight decay applies to: no biases, no LayerNorm weights."""
        return get_decay_parameter_names(model)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments) -> tuple[Any, dict[str, Any]]:
        """The class and the keyword arguments that the arguments mean."""
        run = Run(args, TrainerState(), TrainerControl(), Plan(), current(args), torch.nn.Module())
        run.plan = resolve(args, kinds=("optimizer",))
        factory = optimizer_factory(run)
        return factory.cls, factory.kwargs

    def _factories(self, session: Session, max_steps: int) -> tuple[OptimizerFactory, SchedulerFactory]:
        """What to build from: a subclass's methods where they are overridden, else the slots."""
        own = type(self)
        base = Building
        if self._made_scheduler:  # at an earlier train(); a scheduler that the user handed in goes on
            self.lr_scheduler, self._made_scheduler = None, False
        both = own.create_optimizer_and_scheduler is not base.create_optimizer_and_scheduler
        if both:
            self.create_optimizer_and_scheduler(num_training_steps=max_steps)
        elif own.create_optimizer is not base.create_optimizer:
            self.create_optimizer()
        groups = None
        if own.get_decay_parameter_names is not base.get_decay_parameter_names:
            groups = self.get_decay_parameter_names
        if self.optimizer is not None:
            optimizer = OptimizerFactory(cls=type(self.optimizer), finished=self.optimizer)
        elif own.get_optimizer_cls_and_kwargs is not base.get_optimizer_cls_and_kwargs:
            optimizer = optimizer_factory(session.run)
            optimizer.cls, optimizer.kwargs = self.get_optimizer_cls_and_kwargs(self.args)
        else:
            optimizer = optimizer_factory(session.run)
        if groups is not None and optimizer.finished is None:
            optimizer.groups = self._own_groups
        if self.lr_scheduler is not None:
            plateau = isinstance(self.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler = SchedulerFactory(finished=self.lr_scheduler, per_evaluation=plateau)
        elif own.create_scheduler is not base.create_scheduler:
            scheduler = SchedulerFactory(make=lambda opt, steps: self._overridden_scheduler(opt, steps))
            scheduler.num_training_steps = max_steps
        else:
            scheduler = scheduler_factory(session.run, max_steps)
            self._made_scheduler = True
        return optimizer, scheduler

    def _own_groups(self, model: Any) -> list[dict[str, Any]]:
        args = self.args
        return parameter_groups(
            model, args.weight_decay, self.get_decay_parameter_names(model), cast(Any, args.param_groups)
        )

    def _overridden_scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        self.optimizer = optimizer
        made = self.create_scheduler(steps, optimizer)
        return made if made is not None else self.lr_scheduler

    def _open_session(self) -> Session:
        """The session under way, or one for a question asked outside of `train()`, with the plugins alone."""
        if self.is_in_train and self._session is not None:
            return self._session
        session = Session(self, self.run)
        session.resolve(training=False)
        return session


def _takes_trial(model_init: Callable[..., Any]) -> bool:
    """Whether `model_init` takes the trial of a search.

    Raises:
        ConfigurationError: it takes more than that.
    """
    try:
        parameters = inspect.signature(model_init).parameters.values()
    except ValueError:  # a class or function of C tells no signature
        return False
    needed = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        raise ConfigurationError(
            f"model_init takes a trial or nothing, but it needs {len(needed)} arguments."
        )
    named_trial = any(p.name == "trial" for p in parameters)
    return bool(needed) or named_trial
