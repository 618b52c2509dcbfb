"""`Trainer`: the documented face. What it does lies in the loop, the evaluation and the plugins."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from drivetrain import disk_plan, resuming, saving, settings
from drivetrain.accelerator import Accelerator
from drivetrain.arguments import TrainingArguments
from drivetrain.background import BackgroundWriter
from drivetrain.batch_size import go_on_with, halving
from drivetrain.building import Building
from drivetrain.callbacks import (
    CallbackHandler,
    DefaultFlowCallback,
    TrainerControl,
    TrainerState,
)
from drivetrain.data import (
    DataCollatorWithPadding,
    batches_of,
    default_data_collator,
    end_workers,
    has_length,
)
from drivetrain.elastic import check_loader, layout
from drivetrain.errors import ConfigurationError
from drivetrain.evaluating import Evaluations
from drivetrain.evaluation import output_at, speed_metrics
from drivetrain.evaluation_weights import leave_evaluation_weights, train_weights
from drivetrain.inner_names import InnerNames
from drivetrain.inputs import Inputs
from drivetrain.keeping import Keeping
from drivetrain.last_update import LastUpdate, last_update_of
from drivetrain.length import RunLength, every
from drivetrain.logs import speak
from drivetrain.loop import Position, train_loop
from drivetrain.loss import LossWindow
from drivetrain.output import Output
from drivetrain.placement import first_model, place
from drivetrain.preemption import Preemption
from drivetrain.processes import current
from drivetrain.reports import Reports
from drivetrain.resolve import Plan, is_documented_callback, resolve
from drivetrain.run import Run
from drivetrain.search import hyperparameter_search
from drivetrain.seeding import set_seed
from drivetrain.session import Session, culprits_named
from drivetrain.slots import LRScheduler, TrainState
from drivetrain.smoothing import LabelSmoother, predicts_next_token
from drivetrain.stages import Stages
from drivetrain.timing import Timing
from drivetrain.timing_told import tell

if TYPE_CHECKING:
    from torch.utils.data import Dataset

logger = logging.getLogger("drivetrain")

# Entered at every micro-batch; one object serves all.
_NOTHING: AbstractContextManager[None] = nullcontext()


class TrainOutput(NamedTuple):
    """What `train()` returns: updates done, the mean loss over them, and metrics of the run."""

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class Trainer(Building, Evaluations, Inputs, Keeping, Output, Reports, InnerNames):
    """Trains, evaluates and predicts with a PyTorch model.

    Args:
        model: any `torch.nn.Module`; its forward takes the batch's keys as keywords and gives the loss first
            (a tuple), or as "loss" (a dict). May be left out where `model_init` is given.
        args: the arguments; by default `TrainingArguments("tmp_trainer")`.
        data_collator: makes a batch of a list of rows; by default rows are padded with the tokenizer where
            one is given, else stacked.
        train_dataset: map-style or iterable.
        eval_dataset: the same, or a dict of them: each is evaluated, its metrics prefixed with its key.
        tokenizer: pads, and is saved with the model.
        model_init: builds a fresh model at every `train()`; may take a trial.
        compute_metrics: `EvalPrediction -> dict`.
        callbacks: `TrainerCallback` classes or instances, after the default ones.
        optimizers: `(optimizer, lr_scheduler)`, used as they are; either may be None.
        preprocess_logits_for_metrics: `(logits, labels) -> logits`, before they are gathered and kept.
        plugins: plugin objects for this trainer: slots, transforms or listeners.
        trace_hooks: print every hook call.
        processing_class: the tokenizer, by the name of later versions.

    Raises:
        ConfigurationError: the arguments, the data or the plugins do not fit together.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Dataset[Any] | None = None,
        eval_dataset: Dataset[Any] | dict[str, Dataset[Any]] | None = None,
        tokenizer: Any = None,
        model_init: Callable[..., torch.nn.Module] | None = None,
        compute_metrics: Callable[[Any], dict[str, Any]] | None = None,
        callbacks: Iterable[Any] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, LRScheduler | None] = (None, None),
        preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None = None,
        *,
        plugins: Sequence[Any] = (),
        trace_hooks: bool = False,
        processing_class: Any = None,
    ) -> None:
        if args is None:
            args = TrainingArguments(output_dir="tmp_trainer")
        self.args = args
        speak(args.get_process_log_level())
        set_seed(args.seed)
        self.is_in_train = False
        self._check_overrides()
        if processing_class is not None:
            if tokenizer is not None:
                raise ConfigurationError(
                    "Trainer was given both tokenizer and processing_class, which are one: pass one of them."
                )
            tokenizer = processing_class
        if isinstance(plugins, (str, Mapping)):
            raise ConfigurationError(
                "Trainer(plugins=...) takes plugin objects; options by name go to TrainingArguments."
            )
        self._plugins = list(plugins)
        self._trace_hooks = trace_hooks
        self._made_plugins: dict[str, Any] = {}
        self.model_init = model_init
        self.hp_search_backend: Any = None
        self.hp_name: Callable[[Any], str] | None = None
        if model is None and model_init is None:
            raise ConfigurationError("Trainer needs a model, or model_init to build one.")
        if model is not None and model_init is not None:
            logger.warning(
                "Trainer was given both model and model_init: model_init builds the model of each train()."
            )
        if model_init is not None and any(given is not None for given in optimizers):
            raise ConfigurationError(
                "optimizers cannot go with model_init, which makes a new model at every train(): "
                "subclass Trainer and override create_optimizer_and_scheduler."
            )
        state = TrainerState(
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
        )
        self.callback_handler = handler = CallbackHandler(
            [DefaultFlowCallback, *(callbacks or ())], model, tokenizer, *optimizers
        )
        self.run = handler.run = Run(args, state, TrainerControl(), Plan(), current(args), model, tokenizer)
        self.run.plan = plan = resolve(
            args,
            kinds=("callback",),
            instances=self._plugins,
            settings=settings.load(),
            core=[("callbacks", handler.hooks)],
            traced=trace_hooks,
        )
        self._made_plugins = {active.key: active.plugin for active in plan.active}
        for active in plan.active:
            if is_documented_callback(active.plugin):
                handler.add_callback(active.plugin)
        self._stages = Stages(self.run)
        self._stages.begin("init")
        if model is None:
            model = first_model(self.call_model_init, args, self._plugins)
        self.model = self.model_wrapped = self.run.model = handler.model = model
        self.tokenizer = tokenizer
        self.data_collator = data_collator or (
            DataCollatorWithPadding(tokenizer) if tokenizer is not None else default_data_collator
        )
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.compute_metrics = compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self.optimizer, self.lr_scheduler = optimizers
        self._made_scheduler = False
        self._check_data()
        self.label_smoother = (
            LabelSmoother(args.label_smoothing_factor) if args.label_smoothing_factor else None
        )
        self._find_signature()
        self.current_flos = 0.0
        self._train_batch_size = args.train_batch_size
        self._position = Position()
        self._batches: Any = None
        self._epoch_was_stopped = False
        self._last_saved: str | None = None
        self._group_names: list[list[str]] | None = None  # where a checkpoint has numbers in their place
        self._others: set[str] | None = None  # checkpoints of other runs that stood there when this one began
        self._writer: BackgroundWriter | None = None
        self._preemption: Preemption | None = None
        self._last_update: LastUpdate | None = None
        self._snapshot: TrainState | None = None
        self._clock = time.perf_counter()
        self._losses = LossWindow(torch.device("cpu"), args.logging_nan_inf_filter)
        place(model, args, self._plugins)
        if args.should_save:
            disk_plan.make_output_dir(args.output_dir)
        if args.push_to_hub:
            self.init_hf_repo()
        self._stages.end("init", {})
        with culprits_named(self.run):
            for call in plan.events.on_init_end:
                call(self.run)

    # -- what scripts reach for ------------------------------------------------------------------------

    @functools.cached_property
    def accelerator(self) -> Accelerator:
        """A bridge for scripts that call accelerate through the trainer; see `drivetrain.accelerator`."""
        return Accelerator(self)

    def add_callback(self, callback: Any) -> None:
        """Adds a callback, a class or an instance."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Removes a callback, by class or instance, and returns it."""
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: Any) -> None:
        """Removes a callback, by class or instance."""
        self.callback_handler.remove_callback(callback)

    # -- training --------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """Trains.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the last valid one in `output_dir`; the
                argument of the same name stands in where it is None.
            trial: of a hyperparameter search.
            ignore_keys_for_eval: keys of the model's output that evaluations leave out.

        Raises:
            ConfigurationError: what was asked for cannot be done; every problem is named.
            CheckpointError: the checkpoint cannot be read.
            Preempted: SIGTERM or SIGUSR1 has come, and a checkpoint is written; it ends the process with code 75.
            KeyboardInterrupt: the same by Ctrl-C.
        """
        if "model_path" in kwargs:
            resume_from_checkpoint = kwargs.pop("model_path")
        if kwargs:
            raise TypeError(f"train() got unexpected arguments: {', '.join(kwargs)}.")
        if self.train_dataset is None and type(self).get_train_dataloader is Trainer.get_train_dataloader:
            raise ConfigurationError("Trainer needs train_dataset to train.")
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        self._train_batch_size, self._parts, self._checkpoints_written = self.args.train_batch_size, 1, None
        self._others = None
        self._preemption = Preemption(self) if self.args.save_strategy != "no" else None
        with self._preemption or nullcontext():
            if self.args.auto_find_batch_size:
                return halving(self, lambda: self._train(resume_from_checkpoint, ignore_keys_for_eval, trial))
            return self._train(resume_from_checkpoint, ignore_keys_for_eval, trial)

    def _train(self, resume: str | bool | None, ignore_keys: list[str] | None, trial: Any) -> TrainOutput:
        args, run = self.args, self.run
        run.timing = Timing()
        self._trial, self._ignore_keys = trial, ignore_keys
        self._session = session = Session(self, run)
        run.model = self.model
        with culprits_named(run):
            try:
                self.is_in_train = True
                self._begin_trial(trial)
                session.resolve(training=True)
                self._stages.begin("train")
                resuming.clean_up(self)
                checkpoint = resuming.find_checkpoint(self, resume)
                resuming.note_others(self, checkpoint)
                self._resumed_from = checkpoint
                go_on_with(self, checkpoint)
                self._layout = layout(run, self._train_batch_size, checkpoint, self._parts)
                run.split, run.accumulation = self._layout.split, self._layout.accumulation
                session.open(training=True)
                if self.model_init is not None:
                    self._build_model(trial)
                run.train_dataloader = self.get_train_dataloader()
                check_loader(run.train_dataloader, self._layout, run.processes)
                known = has_length(run.train_dataloader)
                length = RunLength.of(
                    args,
                    self._layout,
                    batches_of(run.train_dataloader, run.split.world) if known else None,
                    self.num_examples(run.train_dataloader) if known else None,
                )
                self._begin_state(length)
                self._writer = BackgroundWriter(run) if args.save_async else None
                session.transform()
                self.model = run.model
                optimizer, scheduler = self._factories(session, length.max_steps)
                self._per_evaluation = scheduler.per_evaluation
                self._group_names = resuming.note_groups(run, checkpoint, optimizer)
                self._disk = disk_plan.plan(self, optimizer, checkpoint)
                session.prepare(optimizer, scheduler)
                self._share(run)
                self._losses = LossWindow(run.device, args.logging_nan_inf_filter)
                self._position = Position()
                self._batches = None
                if checkpoint is not None:
                    self._position = resuming.restore(self, run, checkpoint)
                return self._fit(length)
            finally:
                self.is_in_train = False
                if self._batches is not None:
                    self._batches.close()
                    end_workers(run.train_dataloader)
                try:
                    if self._writer is not None:
                        self._writer.close()
                finally:
                    self._writer = None
                    session.close()
                    self.model_wrapped = self.model
                    self._layout = None  # a loader asked for outside of a run is one of the arguments

    def _build_model(self, trial: Any) -> None:
        """A fresh model, in the strategy's context, and nothing that updated the one before."""
        set_seed(self.args.seed)
        with self.run.strategy.model_context():
            self.model = self.call_model_init(trial)
        self.run.model = self.model
        self.optimizer, self.lr_scheduler = None, None

    def _begin_state(self, length: RunLength) -> None:
        args = self.args
        trial = self.state.trial_name, self.state.trial_params, self.state.is_hyper_param_search
        self.run.state = TrainerState(
            epoch=0,
            max_steps=length.max_steps,
            num_train_epochs=length.epochs,
            logging_steps=every(args.logging_steps, length.max_steps, 500),
            eval_steps=every(args.eval_steps, length.max_steps, 500),
            save_steps=every(args.save_steps, length.max_steps, 500),
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
            trial_name=trial[0],
            trial_params=trial[1],
            is_hyper_param_search=trial[2],
        )

    def _begin_trial(self, trial: Any) -> None:
        """Names a trial of a search, so that its folder, its loggers and its checkpoints have a place of their own."""
        if trial is None:
            return
        number = getattr(trial, "number", "?")
        self.state.is_hyper_param_search = True
        self.state.trial_name = str(self.hp_name(trial)) if self.hp_name is not None else f"run-{number}"
        self.state.trial_params = dict(getattr(trial, "params", {}))

    def _share(self, run: Run) -> None:
        """Puts what the session made where scripts and callbacks look for it."""
        self.model, self.model_wrapped = run.model, run.model_wrapped
        self.optimizer, self.lr_scheduler = run.optimizer, run.lr_scheduler
        handler = self.callback_handler
        handler.model, handler.optimizer, handler.lr_scheduler = run.model, run.optimizer, run.lr_scheduler
        handler.train_dataloader, handler.run = run.train_dataloader, run

    def _fit(self, length: RunLength) -> TrainOutput:
        args, run = self.args, self.run
        logger.info(
            "Training: %s updates, %s epochs, %d rows a device, accumulation %d.",
            length.max_steps, length.epochs, self._train_batch_size // self._parts, run.accumulation,
        )  # fmt: skip
        start = time.time()
        run.model_wrapped.train()  # also what lies in a wrapper, which is in training mode when it is made
        train_weights(run)
        self._last_update = last_update_of(self, run)
        try:
            train_loop(self, run, length, self._losses, self._position)
        except BaseException as error:
            if self._last_update is not None and (failed := self._last_update.save(run, error)) is not None:
                raise failed from error
            raise
        self._finish_saving(run)
        if self._preemption is not None:
            self._preemption.settle(run)
        leave_evaluation_weights(run)
        if args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            run.processes.barrier()
            self._load_best_model()
        self._losses.read(run.strategy)
        run.timing.finish(run.processes)
        train_loss = self._losses.total / max(self.state.global_step, 1)
        metrics = speed_metrics("train", start, num_samples=length.rows, num_steps=self.state.max_steps)
        self.store_flos()
        metrics["total_flos"] = self.state.total_flos
        metrics["train_loss"] = train_loss
        self._stages.end("train", metrics)
        self.is_in_train = False
        self.log(metrics)
        metrics.pop("total_flos", None)
        saving.rotate_at_end(self)
        for call in run.plan.events.on_train_end:
            call(run)
        tell(run)
        return TrainOutput(self.state.global_step, train_loss, metrics)

    def _restore_control(self) -> None:
        """What the checkpoint says of the epoch. A run that was told to stop goes on: that is what a resume is for."""
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        self.control.should_epoch_stop |= self._epoch_was_stopped

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Forward and backward of one micro-batch.

        Args:
            model: the wrapped model.
            inputs: the batch, on the host.

        Returns:
            The loss, detached, divided by the accumulation; a scalar tensor.
        """
        if not model.training:
            model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(model, inputs)
        self.run.timing.lap("forward")
        self.run.strategy.backward(loss)
        loss = loss.detach()
        return loss / self.run.accumulation if self.run.accumulation > 1 else loss

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False
    ) -> Any:
        """The loss of a batch: the model's own, or with label smoothing from its logits.

        Args:
            model: the wrapped model.
            inputs: the batch, on the device.
            return_outputs: also return the model's outputs.

        Raises:
            ValueError: the model gave no loss.
        """
        labels = inputs.pop("labels") if self.label_smoother is not None and "labels" in inputs else None
        if isinstance(inputs, Mapping):
            outputs = model(**inputs)
        else:  # rows that are tuples or tensors: arguments by position
            outputs = model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
        if self.args.past_index >= 0:
            self._past = output_at(outputs, self.args.past_index, self.args.past_index)
        if labels is not None and self.label_smoother is not None:
            loss = self.label_smoother(outputs, labels, shift_labels=predicts_next_token(self.model))
        elif isinstance(outputs, torch.Tensor):
            loss = outputs
        elif isinstance(outputs, dict):
            if "loss" not in outputs:
                raise ValueError(
                    "The model gave no loss, only the keys: "
                    f"{', '.join(outputs)}. It got the inputs: {', '.join(inputs)}."
                )
            loss = outputs["loss"]
        else:
            loss = outputs[0]
        return (loss, outputs) if return_outputs else loss

    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        """The context of the loss: that of the precision, which is around the model's forward already."""
        return self.autocast_smart_context_manager()

    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> AbstractContextManager[Any]:
        """Nothing to enter here: mixed precision is around the model's forward itself."""
        return _NOTHING

    def _serve(self, run: Run) -> None:
        """Does what is due: a row of the log, an evaluation, a checkpoint."""
        if run.control.should_log:
            self._log_training(run)
        metrics = None
        if run.control.should_evaluate:
            metrics = self._evaluate_in_training(run)
        with run.timing.aside("saving"):
            if run.control.should_save:
                self._last_saved = None
                self._save_checkpoint(self.model, self._trial, metrics=metrics)
                run.control.should_save = False
                self._tell_saved(run, [self._last_saved])
            else:
                self._end_write(run, wait=False)
            if self._writer is not None:
                self._tell_saved(run, self._writer.take_saved())

    def _log_training(self, run: Run) -> None:
        steps = max(self.state.global_step - self._losses.last_logged, 1)
        rate = self._get_learning_rate()
        now = time.perf_counter()
        seconds = max(now - self._clock, 1e-9)
        run.figures["rows_per_second"] = run.batch_rows * run.processes.world_size / seconds
        run.figures["steps_per_second"] = steps / seconds
        run.figures["seconds_left"] = (self.state.max_steps - self.state.global_step) * seconds / steps
        self._clock, run.batch_rows = now, 0
        with run.timing.aside("waiting"):
            if run.update is not None and run.update.grad_norm is not None:
                run.figures["grad_norm"] = float(run.update.grad_norm)
            loss = self._losses.read(run.strategy)
        self._losses.last_logged = self.state.global_step
        self.store_flos()
        self.log({"loss": round(loss / steps, 4), "learning_rate": rate})

    hyperparameter_search = hyperparameter_search

    def _learning_rate(self) -> float:
        """The learning rate of the next update, of the first group."""
        assert self.optimizer is not None
        if self._per_evaluation or self.lr_scheduler is None:
            return float(self.optimizer.param_groups[0]["lr"])
        return float(self.lr_scheduler.get_last_lr()[0])

    def _evaluate_in_training(self, run: Run) -> dict[str, float]:
        started = time.perf_counter()
        if isinstance(self.eval_dataset, dict):
            metrics: dict[str, float] = {}
            for name, dataset in self.eval_dataset.items():
                metrics |= self.evaluate(dataset, self._ignore_keys, metric_key_prefix=f"eval_{name}")
        else:
            metrics = self.evaluate(ignore_keys=self._ignore_keys)
        if self._per_evaluation and self.lr_scheduler is not None:
            self.lr_scheduler.step(
                metrics[self._metric_key(self.args.metric_for_best_model or "loss", metrics)]
            )
        self._clock += time.perf_counter() - started  # throughput is that of training
        return metrics

    def _metric_key(self, name: str, metrics: dict[str, float]) -> str:
        """The key of a metric, which may be written without its prefix.

        Raises:
            ConfigurationError: the evaluation has no such metric.
        """
        key = name if name.startswith("eval_") else f"eval_{name}"
        if key not in metrics:
            raise ConfigurationError(
                f"metric_for_best_model={name!r} is not among what the evaluation gave: {', '.join(metrics)}."
            )
        return key

    def log(self, logs: dict[str, float]) -> None:
        """Adds a row to the log, and tells the listeners.

        Args:
            logs: numbers by name; the epoch is added to them.
        """
        with self.run.timing.aside("logging"):
            if self.state.epoch is not None:
                logs["epoch"] = round(self.state.epoch, 2)
            self.state.log_history.append({**logs, "step": self.state.global_step})
            for call in self.run.plan.events.on_log if self.run.plan.events else ():
                call(self.run, logs)
