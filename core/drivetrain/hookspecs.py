"""Every hook of drivetrain, in the order in which a run calls them.

    resolve plugins -> process group -> make_precision, make_strategy
      -> [strategy.model_context: build the model] -> transform_model (place "before_wrap")
      -> make_optimizer, make_scheduler -> strategy.prepare
      -> transform_model (place "after_prepare") -> restore (load_state) -> on_train_begin
         each epoch: on_epoch_begin
            each update: on_step_begin
                         (on_micro_batch, forward, backward) x accumulation, on_substep_end between
                         on_gradients_ready
                         [strategy.update]
                         on_step_end
               when due: on_log
                         on_evaluate    (on_prediction_step for each batch of it)
                         on_save        (save_state before it) -> hub
         on_epoch_end    (what is due by epochs comes after it)
      -> on_train_end -> strategy.close

    evaluate() and predict() alone: on_prediction_step for each batch, then on_evaluate or on_predict.
    Around each stage ("init", "train", "eval", "test"): on_stage_begin, on_stage_end.
    An error that ends the run: on_exception.

A plugin is an object whose methods bear the names below and `@drivetrain.hookimpl`. A method takes those
of the arguments that it needs, by name. Events that nobody listens to cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drivetrain.plugin import hookspec

if TYPE_CHECKING:
    from torch.nn import Module

    from drivetrain.run import Run
    from drivetrain.slots import (
        Hub,
        Launcher,
        OptimizerFactory,
        Precision,
        SchedulerFactory,
        Search,
        Strategy,
    )


class Slots:
    """One plugin answers each; only the chosen plugin's hook is registered."""

    @hookspec(firstresult=True)
    def make_launcher(self, args: Any) -> Launcher | None:
        """The object that makes the process group. Called at the first use of a process's rank or device."""

    @hookspec(firstresult=True)
    def make_precision(self, run: Run) -> Precision | None:
        """How numbers are held: a policy, and the autocast of the plain case."""

    @hookspec(firstresult=True)
    def make_strategy(self, run: Run) -> Strategy | None:
        """How the model is spread over processes, and updated."""

    @hookspec(firstresult=True)
    def make_optimizer(self, run: Run) -> OptimizerFactory | None:
        """The class, the named parameter groups and the options of the optimizer."""

    @hookspec(firstresult=True)
    def make_scheduler(self, run: Run) -> SchedulerFactory | None:
        """The learning rate over the updates of the run (`run.state.max_steps`)."""

    @hookspec(firstresult=True)
    def make_hub(self, run: Run) -> Hub | None:
        """Where the model is pushed."""

    @hookspec(firstresult=True)
    def make_search(self, trainer: Any) -> Search | None:
        """Who looks for hyperparameters."""


class Transforms:
    """Every active transform, each at the place that its info names, in a stated order."""

    @hookspec
    def transform_model(self, run: Run, model: Module) -> Module | None:
        """The model that takes the place of `model`, or None where it was changed in place.

        At `before_wrap` the model is bare; at `after_prepare` it is the strategy's.
        """


class Events:
    """What happens, as it happens. What a listener returns is not used."""

    @hookspec
    def on_init_end(self, run: Run) -> None:
        """The Trainer has been built. Callbacks alone hear it; the other kinds are chosen when a run begins."""

    @hookspec
    def on_stage_begin(self, run: Run, stage: str) -> None:
        """The making of the Trainer ("init"), `train()`, `evaluate()` ("eval") or `predict()` ("test") begins."""

    @hookspec
    def on_stage_end(self, run: Run, stage: str, metrics: dict[str, float]) -> None:
        """It has ended; what is added to `metrics` is logged and returned with them. Those of "init" are dropped."""

    @hookspec
    def on_train_begin(self, run: Run) -> None:
        """Model, optimizer and scheduler stand, and a checkpoint, if any, is restored."""

    @hookspec
    def on_epoch_begin(self, run: Run) -> None:
        """Before the first batch of an epoch is fetched."""

    @hookspec
    def on_step_begin(self, run: Run) -> None:
        """Before the first micro-batch of an update."""

    @hookspec
    def on_micro_batch(self, run: Run, inputs: Any) -> None:
        """A micro-batch is there, on the host, and is about to be trained on."""

    @hookspec
    def on_substep_end(self, run: Run) -> None:
        """After each micro-batch of an update but the last."""

    @hookspec
    def on_gradients_ready(self, run: Run) -> None:
        """After the last backward of an update, before clipping; gradients may be read and changed.

        `run.request_skip(reason)` drops them, here and only here.
        """

    @hookspec
    def on_step_end(self, run: Run) -> None:
        """After an update: `run.state.global_step` counts it, `run.update` tells its gradient norm."""

    @hookspec
    def on_log(self, run: Run, logs: dict[str, Any]) -> None:
        """A row was added to the log. `logs` holds numbers by name; `run.figures` what is not in the row."""

    @hookspec
    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """An evaluation has ended."""

    @hookspec
    def on_predict(self, run: Run, metrics: dict[str, float]) -> None:
        """A prediction has ended."""

    @hookspec
    def on_prediction_step(self, run: Run) -> None:
        """After each batch of an evaluation or a prediction (`run.prediction` counts them)."""

    @hookspec
    def on_save(self, run: Run, checkpoint: str) -> None:
        """A checkpoint is whole under its own name; `checkpoint` is its folder."""

    @hookspec
    def on_epoch_end(self, run: Run) -> None:
        """After the last batch of an epoch."""

    @hookspec
    def on_train_end(self, run: Run) -> None:
        """The last update is done; the best model, if asked for, is loaded."""

    @hookspec
    def on_exception(self, run: Run, error: BaseException) -> None:
        """An error is about to end the run."""


class State:
    """What a plugin wants to find again after a resume. Called for each plugin by itself, by its name."""

    @hookspec
    def save_state(self, run: Run) -> dict[str, Any] | None:
        """State of the plugin, made of what JSON holds and of tensors, for a checkpoint. Every rank is asked."""

    @hookspec
    def load_state(self, run: Run, state: dict[str, Any]) -> None:
        """The state that `save_state` gave when the checkpoint was written."""


SPECS: tuple[type, ...] = (Slots, Transforms, Events, State)
EVENTS: tuple[str, ...] = tuple(name for name in vars(Events) if name.startswith("on_"))
