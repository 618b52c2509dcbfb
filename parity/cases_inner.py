"""Inner methods of 4.34.0 that scripts copy, call and override."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from fixtures import Net, accuracy, data, rows
from kit import Kit, case
from torch import nn
from transformers.trainer_utils import EvalLoopOutput, speed_metrics


@case("inner/log-save-evaluate-copied")
def _(k: Kit) -> None:
    calls: list[Any] = []

    class Own(k.hf.Trainer):
        def _maybe_log_save_evaluate(
            self, tr_loss: Any, model: Any, trial: Any, epoch: Any, ignore_keys_for_eval: Any
        ) -> None:
            calls.append([float(tr_loss), epoch, self.state.global_step])
            if self.control.should_log:
                loss = self._nested_gather(tr_loss).mean().item()
                tr_loss -= tr_loss
                steps = self.state.global_step - self._globalstep_last_logged
                self._total_loss_scalar += loss
                self._globalstep_last_logged = self.state.global_step
                self.store_flos()
                self.log({"loss": loss / steps, "rate": self._get_learning_rate(), "own": 1.0})
            metrics = None
            if self.control.should_evaluate:
                metrics = self.evaluate(ignore_keys=ignore_keys_for_eval)
            if self.control.should_save:
                self._save_checkpoint(model, trial, metrics=metrics)
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    trainer = k.trainer(
        cls=Own,
        evaluation_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=3,
        gradient_accumulation_steps=2,
    )
    k.train(trainer)
    k.note("calls", calls)


@case("inner/log-save-evaluate-calls-super")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def _maybe_log_save_evaluate(self, tr_loss: Any, *rest: Any) -> None:
            if self.state.global_step % 2 == 0:
                self.log({"two": self.state.global_step, "rate": self._get_learning_rate()})
            super()._maybe_log_save_evaluate(tr_loss, *rest)

        def _get_learning_rate(self) -> float:
            return 2 * super()._get_learning_rate()

    k.train(k.trainer(cls=Own, evaluation_strategy="epoch", logging_steps=4))


@case("inner/load-best-model")
def _(k: Kit) -> None:
    calls: list[str] = []

    class Own(k.hf.Trainer):
        def _load_best_model(self) -> None:
            calls.append(str(self.state.best_metric))
            super()._load_best_model()

    arguments = {"evaluation_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    k.train(k.trainer(cls=Own, **arguments))
    k.note("calls", len(calls))


@case("inner/prepare-input")
def _(k: Kit) -> None:
    calls: list[str] = []

    class Own(k.hf.Trainer):
        def _prepare_input(self, data: Any) -> Any:
            calls.append(type(data).__name__)
            if isinstance(data, torch.Tensor) and data.is_floating_point():
                data = data * 2
            return super()._prepare_input(data)

    k.train(k.trainer(cls=Own, evaluation_strategy="epoch"))
    k.note("calls", calls)


@case("inner/signature-columns")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def _set_signature_columns_if_needed(self) -> None:
            if self._signature_columns is None:
                self._signature_columns = ["x", "labels", "weight"]

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            weight = inputs.pop("weight")
            outputs = model(**inputs)
            losses = nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")
            loss = (losses * weight).mean()
            return (loss, outputs) if return_outputs else loss

    k.train(k.trainer(cls=Own, train=data(weight=0.5, other="text"), num_train_epochs=1))


@case("inner/signature-columns-assigned-and-dataset")
def _(k: Kit) -> None:
    import datasets

    class Own(k.hf.Trainer):
        def _remove_unused_columns(self, dataset: Any, description: Any = None) -> Any:
            seen.append([description, list(dataset.column_names)])
            return super()._remove_unused_columns(dataset, description)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            loss, outputs = super().compute_loss(
                model, {name: inputs[name] for name in ("x", "labels")}, return_outputs=True
            )
            loss = loss * inputs["weight"].mean()
            return (loss, outputs) if return_outputs else loss

    seen: list[Any] = []
    table = datasets.Dataset.from_list(
        [{"x": row["x"].tolist(), "labels": row["labels"], "weight": 2.0, "name": "a"} for row in rows(12)]
    )
    trainer = k.trainer(cls=Own, train=table, eval=table)
    trainer._signature_columns = ["x", "labels", "weight"]
    k.train(trainer)
    k.evaluate(trainer)
    k.note("seen", seen)


@case("inner/evaluation-copied")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def evaluate(
            self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
        ) -> Any:
            self._memory_tracker.start()
            loader = self.get_eval_dataloader(eval_dataset)
            start = time.time()
            output = self.evaluation_loop(loader, "Evaluation", True, ignore_keys, metric_key_prefix)
            size = self.args.eval_batch_size * self.args.world_size
            steps = math.ceil(output.num_samples / size)
            output.metrics.update(speed_metrics(metric_key_prefix, start, output.num_samples, steps))
            self.log(output.metrics)
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, output.metrics
            )
            self._memory_tracker.stop_and_update_metrics(output.metrics)
            return output.metrics

        def evaluation_loop(self, dataloader: Any, description: str, *rest: Any) -> Any:
            model = self._wrap_model(self.model, training=False, dataloader=dataloader)
            model.eval()
            losses = []
            for inputs in dataloader:
                loss, _, _ = self.prediction_step(model, inputs, True)
                losses.append(self._nested_gather(loss.repeat(2)))
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            mean = torch.cat(losses).mean().item()
            return EvalLoopOutput(None, None, {"eval_loss": mean}, self.num_examples(dataloader))

    trainer = k.trainer(cls=Own, evaluation_strategy="epoch")
    k.train(trainer)
    k.evaluate(trainer)


@case("inner/save-is-given-no-weights")
def _(k: Kit) -> None:
    seen: list[Any] = []

    class Own(k.hf.Trainer):
        def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
            seen.append([output_dir is None, state_dict is None])
            super()._save(output_dir, state_dict)

        def _save_checkpoint(self, model: Any, trial: Any, metrics: Any = None) -> None:
            seen.append([self._get_output_dir(trial=trial) == self.args.output_dir, model is self.model])
            super()._save_checkpoint(model, trial, metrics=metrics)

    trainer = k.trainer(cls=Own, save_steps=4)
    k.train(trainer)
    trainer.save_model()
    k.note("seen", seen)
    k.note("sorted", len(trainer._sorted_checkpoints(output_dir=trainer.args.output_dir)))


@case("inner/names")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def training_step(self, model: Any, inputs: Any) -> Any:
            model.train()
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs)
            if self.do_grad_scaling or self.use_apex or self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise AssertionError("there is nothing of the kind here")
            self.accelerator.backward(loss)
            return loss.detach() / self.args.gradient_accumulation_steps

    trainer = k.trainer(cls=Own, compute_metrics=accuracy, gradient_accumulation_steps=2)
    names = (
        "use_apex use_cuda_amp use_cpu_amp do_grad_scaling sharded_ddp fsdp deepspeed hub_model_id "
        "is_deepspeed_enabled is_fsdp_enabled is_model_parallel place_model_on_device"
    )
    k.note("names", {name: getattr(trainer, name) for name in names.split()})
    teacher = Net()
    trainer._move_model_to_device(teacher, trainer.args.device)
    k.train(trainer)
