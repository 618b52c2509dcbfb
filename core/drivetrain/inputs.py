"""Data sets, their loaders and the model's signature: the part of the Trainer that feeds the model."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

from drivetrain.base import TrainerBase
from drivetrain.data import (
    eval_sampler,
    has_length,
    is_table,
    make_dataloader,
    signature_columns,
    to_device,
    train_sampler,
)
from drivetrain.data.collate import LABEL_COLUMNS, RemoveColumnsCollator, report_dropped
from drivetrain.data.tokens import TokenWeighted, count_targets
from drivetrain.errors import ConfigurationError
from drivetrain.smoothing import predicts_next_token

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Sampler


logger = logging.getLogger("drivetrain")


class Inputs(TrainerBase):
    """The part of the Trainer that makes loaders, and looks at the model's forward."""

    label_names: list[str]
    can_return_loss: bool
    _past: Any = None
    _signature_columns: list[str] | None = None

    def _check_data(self) -> None:
        """What can be said about the data before anything is built.

        Raises:
            ConfigurationError: the data and the arguments do not fit together.
        """
        problems = []
        args, data = self.args, self.train_dataset
        if not callable(self.data_collator):
            problems.append("data_collator must be a function that makes a batch of a list of rows.")
        if data is not None and not has_length(data) and args.max_steps <= 0:
            problems.append(
                "The training data have no length, so max_steps must say how many updates the run has."
            )
        if args.group_by_length and isinstance(data, IterableDataset):
            problems.append(
                "group_by_length needs a map-style data set: the rows of an iterable one have no order to choose."
            )
        if (
            args.batch_eval_metrics
            and self.compute_metrics is not None
            and not _takes_result(self.compute_metrics)
        ):
            problems.append(
                "batch_eval_metrics=True feeds compute_metrics batch by batch: let it take compute_result, which is "
                "True with the last batch, when it returns the metrics."
            )
        if problems:
            raise ConfigurationError(problems)
        if args.batch_eval_metrics and self.compute_metrics is None:
            logger.warning("%s has no effect: there is no compute_metrics.", args.shown("batch_eval_metrics"))
        if args.data_seed is not None and isinstance(data, IterableDataset):
            logger.warning(
                "%s has no effect: the rows of an iterable data set come as they are.",
                args.shown("data_seed"),
            )

    def _find_signature(self) -> None:
        """Which arguments of the model's forward are labels, and whether it can be asked for a loss."""
        model = type(self.model)
        names = list(inspect.signature(model.forward).parameters)
        if self.args.label_names is not None:
            self.label_names = list(self.args.label_names)
        elif "QuestionAnswering" in model.__name__:
            self.label_names = [n for n in names if "label" in n or n in ("start_positions", "end_positions")]
        else:
            self.label_names = [name for name in names if "label" in name]
        parameter = inspect.signature(model.forward).parameters.get("return_loss")
        self.can_return_loss = parameter is not None and parameter.default is True

    # -- loaders ---------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader of the training data. Override it for your own.

        Raises:
            ConfigurationError: there are no training data.
        """
        if self.train_dataset is None:
            raise ConfigurationError("Trainer needs train_dataset to train.")
        sampler = self._get_train_sampler()
        dataset, collate = self._columns(self.train_dataset, "training")
        return make_dataloader(
            dataset,
            batch_size=self._train_batch_size,
            collate_fn=collate,
            sampler=sampler,
            args=self.args,
            train=True,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The loader of the evaluation data. Override it for your own.

        Args:
            eval_dataset: in place of the trainer's own.

        Raises:
            ConfigurationError: there are no evaluation data.
        """
        chosen = eval_dataset if eval_dataset is not None else self.eval_dataset
        if chosen is None:
            raise ConfigurationError("Trainer needs eval_dataset to evaluate.")
        return self._eval_loader(chosen, "evaluation")

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The loader of the data to predict on. Override it for your own."""
        return self._eval_loader(test_dataset, "test")

    def _eval_loader(self, chosen: Any, description: str) -> DataLoader[Any]:
        dataset, collate = self._columns(chosen, description)
        sampler = self._get_eval_sampler(chosen)
        return make_dataloader(
            dataset,
            batch_size=self._eval_batch_size,
            collate_fn=collate,
            sampler=sampler,
            args=self.args,
            train=False,
        )

    def _get_train_sampler(self) -> Sampler[int] | None:
        rows = self._layout.rows if self._layout is not None else None
        return train_sampler(self.train_dataset, self.args, self.tokenizer, rows)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        return eval_sampler(eval_dataset, self.args)

    def _columns(self, dataset: Any, description: str) -> tuple[Any, Any]:
        if is_table(dataset):
            return self._remove_unused_columns(dataset, description), self.data_collator
        return dataset, self._get_collator_with_removed_columns(self.data_collator, description)

    def _set_signature_columns_if_needed(self) -> None:
        """Sets `_signature_columns`, the columns that are kept; what a script has put there stays."""
        if self._signature_columns is None:
            self._signature_columns = signature_columns(self.model, self.label_names)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """A `datasets.Dataset` without the columns that the model does not take."""
        if not self.args.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        dropped = report_dropped(
            dataset.column_names,
            self._signature_columns or (),
            self._labels(),
            type(self.model).__name__,
            description or "data",
        )
        return dataset.remove_columns(dropped) if dropped else dataset

    def _get_collator_with_removed_columns(
        self, data_collator: Callable[[Any], Any], description: str | None = None
    ) -> Callable[[Any], Any]:
        """A collator of the rows' columns that the model takes."""
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        return RemoveColumnsCollator(
            data_collator,
            self._signature_columns or (),
            labels=self._labels(),
            model_name=type(self.model).__name__,
            description=description or "data",
        )

    def _labels(self) -> set[str]:
        return {*LABEL_COLUMNS, *self.label_names}

    def _weigh_by_tokens(self, batches: Any, done: int) -> TokenWeighted:
        """The epoch's batches with weights by their tokens (`loss_reduction="tokens"`)."""
        run = self.run
        shifted = predicts_next_token(self.model)
        return TokenWeighted(
            batches,
            accumulation=run.accumulation,
            done=done,
            count=lambda batch: count_targets(batch, self.label_names, shifted),
            total=lambda tokens: int(run.strategy.collect(torch.tensor([tokens], device=run.device)).sum()),
            world_size=run.processes.world_size,
        )

    def _prepare_input(self, data: Any) -> Any:
        """Nested tensors on the device; an override is called for each part of them."""
        if type(self)._prepare_input is not Inputs._prepare_input:
            if isinstance(data, Mapping):
                return type(data)({name: self._prepare_input(value) for name, value in data.items()})  # type: ignore[call-arg]
            if isinstance(data, (tuple, list)):
                return type(data)(self._prepare_input(value) for value in data)
        return to_device(data, self.run.device, non_blocking=self.args.dataloader_pin_memory)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The batch on the device, with the memory of the last one where `past_index` asks for it."""
        inputs = self._prepare_input(inputs)
        if self.args.past_index >= 0 and self._past is not None:
            inputs["mems"] = self._past
        return inputs


def _takes_result(compute_metrics: Callable[..., Any]) -> bool:
    """Whether `compute_metrics` can be told that a batch is the last."""
    try:
        parameters = inspect.signature(compute_metrics).parameters
    except ValueError:  # a class or function of C tells no signature
        return True
    return "compute_result" in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())
