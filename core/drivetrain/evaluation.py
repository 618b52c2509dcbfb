"""Evaluation and prediction: one pass over a set without gradients, and what is kept of it."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from drivetrain.data import EvaluationIterator, find_batch_size, has_length, to_device
from drivetrain.errors import ConfigurationError
from drivetrain.fed_metrics import Feeding
from drivetrain.fitting_batches import fits, fitting
from drivetrain.gathering import collect_rows, denumpify, nested_concat, nested_detach, nested_numpify
from drivetrain.kept import Kept
from drivetrain.run import Prediction

__all__ = [
    "EvalLoopOutput",
    "EvalPrediction",
    "PredictionOutput",
    "denumpify",
    "evaluation_loop",
    "has_length",
    "nested_concat",
    "nested_detach",
    "nested_numpify",
    "prediction_step",
    "speed_metrics",
]

logger = logging.getLogger("drivetrain")

_LOSSES = 512  # batches whose losses may wait on the device


class EvalPrediction:
    """What `compute_metrics` is given. Unpacks as `(predictions, label_ids)`, with `inputs` third if kept.

    Attributes:
        predictions: array of shape (rows, ...), or a tuple of them.
        label_ids: array of shape (rows, ...), or a tuple of them.
        inputs: the model's main input, of shape (rows, ...), under `include_inputs_for_metrics`; else None.
    """

    def __init__(self, predictions: Any, label_ids: Any, inputs: Any = None) -> None:
        self.predictions = predictions
        self.label_ids = label_ids
        self.inputs = inputs

    def _parts(self) -> tuple[Any, ...]:
        kept = (self.predictions, self.label_ids)
        return kept if self.inputs is None else (*kept, self.inputs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts())

    def __getitem__(self, index: int) -> Any:
        if index < 0:
            raise IndexError("EvalPrediction is indexed from 0: predictions, label_ids, inputs.")
        return self._parts()[index]


class EvalLoopOutput(NamedTuple):
    """The outcome of `evaluation_loop`: arrays of shape (rows, ...), metrics, and the number of rows."""

    predictions: Any
    label_ids: Any
    metrics: dict[str, float]
    num_samples: int


class PredictionOutput(NamedTuple):
    """The outcome of `predict`: arrays of shape (rows, ...) and metrics."""

    predictions: Any
    label_ids: Any
    metrics: dict[str, float]


def speed_metrics(
    split: str,
    start_time: float,
    num_samples: float | None = None,
    num_steps: float | None = None,
    num_tokens: float | None = None,
) -> dict[str, float]:
    """Seconds since `start_time` (of `time.time()`), to 4 digits, and what was done a second, to 3.

    Args:
        split: prefix of the names: "train", "eval", "test".
        start_time: when the work began.
        num_samples, num_steps, num_tokens: how many were done; None leaves the figure out.
    """
    seconds = time.time() - start_time
    figures = {f"{split}_runtime": round(seconds, 4)}
    if seconds == 0:
        return figures
    for name, number in (("samples", num_samples), ("steps", num_steps), ("tokens", num_tokens)):
        if number is not None:
            figures[f"{split}_{name}_per_second"] = round(number / seconds, 3)
    return figures


def evaluation_loop(
    trainer: Any,
    dataloader: Any,
    description: str,
    prediction_loss_only: bool | None = None,
    ignore_keys: Sequence[str] | None = None,
    metric_key_prefix: str = "eval",
) -> EvalLoopOutput:
    """Runs the model over the loader without gradients and computes the metrics.

    The loss is the mean over rows: each batch's loss counts for its rows. Rows are dealt over the ranks and
    gathered in their order, each once, so metrics do not depend on how many ranks there are.

    Args:
        trainer: the Trainer: `prediction_step`, `preprocess_logits_for_metrics`, `compute_metrics`.
        dataloader: the loader, as `get_eval_dataloader` gives it.
        description: "Evaluation" or "Prediction", for the log.
        prediction_loss_only: keep the loss alone; None for what the arguments say.
        ignore_keys: keys of the model's output that are no predictions.
        metric_key_prefix: goes before the name of each metric.
    """
    args, run, model = trainer.args, trainer.run, trainer.model_wrapped
    if prediction_loss_only is None:
        prediction_loss_only = args.prediction_loss_only
    dataset: Any = getattr(dataloader, "dataset", None)
    batches = EvaluationIterator(dataloader, processes=run.processes)
    rank, world = run.processes.rank, run.processes.world_size

    logger.info("***** Running %s *****", description)
    logger.info(
        "  Rows: %s, batch size: %s",
        len(dataset) if has_length(dataset) else "unknown",
        trainer._eval_batch_size,
    )

    model.eval()
    trainer.callback_handler.eval_dataloader = dataloader
    run.eval_dataloader = dataloader
    # The memory of training goes on after an evaluation in its midst.
    past, trainer._past = trainer._past, None

    # What several ranks gave has waited for the device already, and would fill it W times as fast.
    moved_every = args.eval_accumulation_steps or (1 if world > 1 else None)
    if trainer._eval_batch_size < args.eval_batch_size:
        moved_every = 1  # memory is short
    feeding = None
    if args.batch_eval_metrics and trainer.compute_metrics is not None:
        feeding = Feeding(trainer.compute_metrics)
    keeps = feeding is None or description == "Prediction"  # predict() gives the predictions back
    losses = Kept("losses")
    loss_rows = array("q")
    kept = {name: Kept(name) for name in ("logits", "labels", "inputs")}
    seen = 0
    run.prediction = progress = Prediction(description, batches.batches)
    try:
        for step, inputs in enumerate(fitting(batches, trainer, feeding), start=1):
            if step == 1 and description == "Evaluation":
                _tell_missing_labels(trainer, inputs)
            rows = find_batch_size(inputs)
            if rows is None:
                rows = trainer._eval_batch_size
            # What came for company, on a rank that had no row left, counts for nothing.
            mine = rows if batches.weight else 0
            with fits(trainer, rows, feeding):
                loss, logits, labels = trainer.prediction_step(
                    model, inputs, prediction_loss_only, ignore_keys=ignore_keys
                )
                main_input = None
                if args.include_inputs_for_metrics:
                    main_input = to_device(_main_input(trainer.model, inputs), run.device)
                if logits is not None and trainer.preprocess_logits_for_metrics is not None:
                    logits = trainer.preprocess_logits_for_metrics(logits, labels)

            shares: tuple[int, ...] = (mine,)
            if world > 1:
                shares = batches.true_shares(mine)
            if loss is not None:
                losses.add(loss.reshape(1) if world == 1 else run.strategy.collect(loss.reshape(1)))
                loss_rows.extend(shares)
            results = {"logits": logits, "labels": labels, "inputs": main_input}
            for name, value in results.items():
                if value is not None:
                    results[name] = collect_rows(value, shares, rank, run)
                    if keeps:
                        kept[name].add(results[name])
            if feeding is not None:
                feeding.add(EvalPrediction(results["logits"], results["labels"], results["inputs"]))
            seen += sum(shares)
            progress.done, progress.rows = step, progress.rows + mine
            trainer._fire_prediction_step()

            if moved_every is not None and step % moved_every == 0:
                for part in kept.values():
                    part.move()
            if step % _LOSSES == 0:
                losses.move()
    finally:
        run.prediction = None
        trainer._past = past
        batches.close()

    predictions, label_ids, main_inputs = (kept[name].array() for name in ("logits", "labels", "inputs"))
    metrics: dict[str, Any] = {}
    if feeding is not None:
        metrics = dict(denumpify(feeding.result()))
    elif trainer.compute_metrics is not None and predictions is not None and label_ids is not None:
        metrics = dict(
            denumpify(trainer.compute_metrics(EvalPrediction(predictions, label_ids, main_inputs)))
        )
    batch_losses = losses.array()
    if batch_losses is not None:
        metrics[f"{metric_key_prefix}_loss"] = np.repeat(batch_losses, loss_rows).mean().item()
    if hasattr(trainer, "jit_compilation_time"):
        metrics[f"{metric_key_prefix}_jit_compilation_time"] = trainer.jit_compilation_time
    for name in list(metrics):
        if not name.startswith(f"{metric_key_prefix}_"):
            metrics[f"{metric_key_prefix}_{name}"] = metrics.pop(name)
    number = len(dataset) if has_length(dataset) else 0
    return EvalLoopOutput(predictions, label_ids, metrics, number or seen)


def prediction_step(
    trainer: Any,
    model: torch.nn.Module,
    inputs: Any,
    prediction_loss_only: bool,
    ignore_keys: Sequence[str] | None = None,
) -> tuple[Any, Any, Any]:
    """Runs the model on one batch: `(loss, logits, labels)`, any of which may be None.

    There is a loss where the batch has every label that the model takes, or where the model takes none and
    gives a loss by itself (`return_loss`). Logits are what else the model gives, unwrapped where it is one.

    Args:
        trainer: the Trainer: `label_names`, `can_return_loss`, `_prepare_inputs`, `compute_loss` and
            `compute_loss_context_manager` are used.
        model: the model to call.
        inputs: the batch, a mapping.
        prediction_loss_only: give the loss alone.
        ignore_keys: keys of the output to leave out; None for those that the model's configuration names.
    """
    names = trainer.label_names
    has_labels = len(names) > 0 and all(inputs.get(name) is not None for name in names)
    loss_by_itself = False
    if len(names) == 0:
        return_loss = inputs.get("return_loss")
        loss_by_itself = bool(trainer.can_return_loss if return_loss is None else return_loss)
    with_loss = has_labels or loss_by_itself

    inputs = trainer._prepare_inputs(inputs)
    if ignore_keys is None:
        ignore_keys = (
            getattr(getattr(trainer.model, "config", None), "keys_to_ignore_at_inference", None) or ()
        )
    ignored = {*ignore_keys, "loss"} if with_loss else set(ignore_keys)

    # The loss may pop the labels (label smoothing does), so they are taken first.
    labels = None
    if with_loss:
        labels = nested_detach(tuple(inputs.get(name) for name in names))
        if len(labels) == 1:
            labels = labels[0]
        elif not labels:
            labels = None

    loss = None
    with torch.no_grad(), trainer.compute_loss_context_manager():
        if with_loss:
            loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
            loss = loss.mean().detach()
        else:
            outputs = model(**inputs)
            if trainer.args.past_index >= 0:
                trainer._past = output_at(outputs, trainer.args.past_index - 1, trainer.args.past_index)
    if prediction_loss_only:
        return loss, None, None

    if isinstance(outputs, dict):
        logits: Any = tuple(v for name, v in outputs.items() if name not in ignored and _is_prediction(v))
    else:
        logits = outputs[1:] if with_loss else outputs
    logits = nested_detach(logits)
    if isinstance(logits, (tuple, list)):
        logits = (logits[0] if len(logits) == 1 else logits) if logits else None
    return loss, logits, labels


def output_at(outputs: Any, place: int, past_index: int) -> Any:
    """The output that `past_index` means.

    Raises:
        ConfigurationError: the model's output has no such place.
    """
    try:
        return outputs[place]
    except (KeyError, IndexError, TypeError):
        raise ConfigurationError(
            f"past_index={past_index} finds no output of that number in the model's {type(outputs).__name__}: "
            "return a tuple, or leave past_index out."
        ) from None


def _tell_missing_labels(trainer: Any, inputs: Any) -> None:
    """A label that was named and is not there leaves an evaluation without loss and metrics."""
    lacking = [name for name in trainer.args.label_names or () if name not in inputs]
    if lacking:
        logger.warning(
            "label_names has %r, which the batches have not, so the evaluation gives no loss. They have: %s.",
            lacking[0],
            ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else "no names",
        )


def _main_input(model: torch.nn.Module, inputs: Any) -> Any:
    """What `include_inputs_for_metrics` hands on."""
    name = getattr(model, "main_input_name", "input_ids")
    if not isinstance(inputs, Mapping) or name not in inputs:
        raise ConfigurationError(
            f"include_inputs_for_metrics=True finds no {name!r} in the batches: set main_input_name on the model, "
            "or leave include_inputs_for_metrics out."
        )
    return inputs[name]


def _is_prediction(value: Any) -> bool:
    """Not what a model left out, and not the cache of keys and values of a generating transformer."""
    return value is not None and not hasattr(value, "get_seq_length")
