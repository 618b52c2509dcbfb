"""Subclasses, as people write them."""

from __future__ import annotations

from typing import Any

import torch
from fixtures import Net, accuracy, data, quietly_seeded
from kit import Kit, case
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler, WeightedRandomSampler


def subclass(k: Kit, **methods: Any) -> Any:
    return type("Own", (k.hf.Trainer,), methods)


@case("subclass/compute-loss")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            weight = torch.tensor([1.0, 2.0, 0.5])
            loss = nn.functional.cross_entropy(outputs["logits"], labels, weight=weight)
            return (loss, outputs) if return_outputs else loss

    trainer = k.trainer(
        cls=Own, compute_metrics=accuracy, evaluation_strategy="epoch", gradient_accumulation_steps=2
    )
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))


@case("subclass/compute-loss-calls-super")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            loss = loss + 0.1 * outputs["logits"].pow(2).mean()
            return (loss, outputs) if return_outputs else loss

    k.train(k.trainer(cls=Own, evaluation_strategy="epoch"))


@case("subclass/training-step")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def training_step(self, model: Any, inputs: Any) -> Any:
            model.train()
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs)
            (loss * 2).backward()
            return loss.detach() * 3

    k.train(k.trainer(cls=Own, gradient_accumulation_steps=2, optim="sgd"))


@case("subclass/training-step-calls-super")
def _(k: Kit) -> None:
    seen: list[Any] = []

    class Own(k.hf.Trainer):
        def training_step(self, model: Any, inputs: Any) -> Any:
            loss = super().training_step(model, inputs)
            seen.append([float(loss), model.inner.weight.grad is not None, sorted(inputs)])
            return loss

    k.train(k.trainer(cls=Own, gradient_accumulation_steps=4, num_train_epochs=3))
    k.note("seen", seen)


@case("subclass/prediction-step")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def prediction_step(
            self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
        ) -> Any:
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad():
                outputs = model(**inputs)
            return outputs["loss"], outputs["logits"].softmax(-1), inputs["labels"]

    trainer = k.trainer(cls=Own, compute_metrics=accuracy, evaluation_strategy="epoch")
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))


@case("subclass/prediction-step-calls-super")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def prediction_step(
            self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
        ) -> Any:
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            return loss * 2, logits, labels

    trainer = k.trainer(cls=Own, compute_metrics=accuracy, evaluation_strategy="epoch")
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))


@case("subclass/create-optimizer")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def create_optimizer(self) -> Any:
            self.optimizer = torch.optim.SGD(
                self.model.parameters(), lr=self.args.learning_rate, momentum=0.9
            )
            return self.optimizer

    k.train(k.trainer(cls=Own, warmup_steps=2))


@case("subclass/create-optimizer-calls-super")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def create_optimizer(self) -> Any:
            super().create_optimizer()
            self.optimizer.param_groups[1]["lr"] = 0.1
            return self.optimizer

    k.train(k.trainer(cls=Own, weight_decay=0.1))


@case("subclass/create-scheduler")
def _(k: Kit) -> None:
    steps: list[int] = []

    class Own(k.hf.Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            steps.append(num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer or self.optimizer, 3, 0.5)
            return self.lr_scheduler

    k.train(k.trainer(cls=Own))
    k.note("steps", steps)


@case("subclass/create-optimizer-and-scheduler")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
            self.optimizer = torch.optim.Adagrad(self.model.parameters(), lr=0.05)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.9**step)

    trainer = k.trainer(cls=Own)
    k.train(trainer)


@case("subclass/optimizer-class-and-keywords")
def _(k: Kit) -> None:
    cls, keywords = k.hf.Trainer.get_optimizer_cls_and_kwargs(k.args(adam_beta1=0.8, optim="adafactor"))
    k.note("adafactor", [cls.__name__, keywords["lr"]])
    cls, keywords = k.hf.Trainer.get_optimizer_cls_and_kwargs(k.args(adam_beta1=0.8))
    k.note("adamw", [cls.__name__, {key: keywords[key] for key in ("lr", "betas", "eps")}])
    cls, keywords = k.hf.Trainer.get_optimizer_cls_and_kwargs(k.args(optim="sgd"))
    k.note("sgd", [cls.__name__, keywords])


@case("subclass/train-dataloader")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def get_train_dataloader(self) -> Any:
            weights = quietly_seeded(1, lambda: torch.rand(len(self.train_dataset)))
            sampler = WeightedRandomSampler(weights, 14)
            return DataLoader(
                self.train_dataset, batch_size=5, sampler=sampler, collate_fn=self.data_collator
            )

    k.train(k.trainer(Net(dropout=0.2), cls=Own, num_train_epochs=3))


@case("subclass/train-dataloader-shuffled")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def get_train_dataloader(self) -> Any:
            return DataLoader(self.train_dataset, batch_size=5, shuffle=True, collate_fn=self.data_collator)

    k.train(k.trainer(Net(dropout=0.2), cls=Own, gradient_accumulation_steps=2, evaluation_strategy="epoch"))


@case("subclass/train-dataloader-is-a-list")
def _(k: Kit) -> None:
    """Any iterable of batches with a length."""

    class Own(k.hf.Trainer):
        def get_train_dataloader(self) -> Any:
            rows = self.train_dataset
            return [self.data_collator([rows[i], rows[i + 1]]) for i in range(0, 10, 2)]

    k.train(k.trainer(cls=Own))


@case("subclass/train-sampler")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def _get_train_sampler(self) -> Any:
            return SequentialSampler(self.train_dataset)

    train = data(22)
    k.train(k.trainer(Net(dropout=0.2), train=train, cls=Own))
    k.note("fetched", train.fetched)


@case("subclass/eval-dataloader")
def _(k: Kit) -> None:
    """Batches of two, all full: with a short last batch 4.34.0 weighs each batch alike."""

    class Own(k.hf.Trainer):
        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            chosen = self.eval_dataset if eval_dataset is None else eval_dataset
            return DataLoader(chosen, batch_size=2, collate_fn=self.data_collator)

    trainer = k.trainer(cls=Own, compute_metrics=accuracy, evaluation_strategy="steps", eval_steps=4)
    k.train(trainer)
    k.evaluate(trainer)


@case("subclass/test-dataloader")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def get_test_dataloader(self, test_dataset: Any) -> Any:
            return DataLoader(test_dataset, batch_size=3, collate_fn=self.data_collator)

    k.predict(k.trainer(cls=Own, compute_metrics=accuracy), data(9, seed=5))


@case("subclass/log")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def log(self, logs: dict[str, float]) -> None:
            logs["mine"] = len(logs)
            super().log(logs)

    k.train(k.trainer(cls=Own, evaluation_strategy="epoch"))


@case("subclass/log-replaced")
def _(k: Kit) -> None:
    kept: list[Any] = []

    class Own(k.hf.Trainer):
        def log(self, logs: dict[str, float]) -> None:
            kept.append(sorted(logs))

    trainer = k.trainer(cls=Own, evaluation_strategy="epoch", logging_steps=5)
    output = trainer.train()
    k.note("kept", kept)
    k.note("metrics", sorted(output.metrics.keys() - {"total_flos"}))


@case("subclass/evaluate")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def evaluate(
            self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
        ) -> Any:
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            metrics[f"{metric_key_prefix}_twice"] = 2 * metrics[f"{metric_key_prefix}_loss"]
            return metrics

    trainer = k.trainer(
        cls=Own,
        evaluation_strategy="steps",
        eval_steps=3,
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="twice",
        greater_is_better=False,
    )
    k.train(trainer)
    k.evaluate(trainer)


@case("subclass/question-answering")
def _(k: Kit) -> None:
    """The shape of transformers' question-answering trainers: metrics computed after the loop, logged by hand."""

    class Own(k.hf.Trainer):
        def __init__(
            self, *args: Any, eval_examples: Any = None, post_process: Any = None, **kwargs: Any
        ) -> None:
            super().__init__(*args, **kwargs)
            self.eval_examples = eval_examples
            self.post_process = post_process

        def evaluate(
            self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
        ) -> Any:
            eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
            dataloader = self.get_eval_dataloader(eval_dataset)
            compute, self.compute_metrics = self.compute_metrics, None
            loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
            try:
                output = loop(
                    dataloader,
                    description="Evaluation",
                    prediction_loss_only=True if compute is None else None,
                    ignore_keys=ignore_keys,
                    metric_key_prefix=metric_key_prefix,
                )
            finally:
                self.compute_metrics = compute
            metrics = {f"{metric_key_prefix}_{key}": value for key, value in compute(output).items()}
            metrics.update(output.metrics)
            metrics[f"{metric_key_prefix}_rows"] = output.num_samples
            if self.args.should_log:
                self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    trainer = k.trainer(
        cls=Own,
        compute_metrics=accuracy,
        evaluation_strategy="steps",
        eval_steps=3,
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    k.train(trainer)
    k.evaluate(trainer)


@case("subclass/evaluation-loop")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def evaluation_loop(
            self,
            dataloader: Any,
            description: str,
            prediction_loss_only: Any = None,
            ignore_keys: Any = None,
            metric_key_prefix: str = "eval",
        ) -> Any:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            output.metrics[f"{metric_key_prefix}_seen"] = len(output.label_ids)
            return output

    trainer = k.trainer(cls=Own, compute_metrics=accuracy, evaluation_strategy="epoch")
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))


@case("subclass/save")
def _(k: Kit) -> None:
    saved: list[str] = []

    class Own(k.hf.Trainer):
        def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
            super()._save(output_dir, state_dict)
            saved.append("saved")

        def save_model(self, output_dir: Any = None, _internal_call: bool = False) -> None:
            saved.append(f"internal {_internal_call}")
            super().save_model(output_dir, _internal_call)

    trainer = k.trainer(cls=Own, save_steps=4)
    k.train(trainer)
    trainer.save_model()
    k.note("saved", saved)


@case("subclass/floating-point-operations")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def floating_point_ops(self, inputs: Any) -> int:
            return int(inputs["x"].numel())

    k.train(k.trainer(cls=Own, save_steps=5, logging_steps=4))


@case("subclass/prepare-inputs")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            inputs = super()._prepare_inputs(inputs)
            return {**inputs, "x": inputs["x"] * 2}

    trainer = k.trainer(cls=Own, evaluation_strategy="epoch")
    k.train(trainer)


@case("subclass/decay-names")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def get_decay_parameter_names(self, model: Any) -> list[str]:
            return [name for name in super().get_decay_parameter_names(model) if "outer" not in name]

    k.train(k.trainer(cls=Own, weight_decay=0.5))


@case("subclass/attributes")
def _(k: Kit) -> None:
    """What scripts reach for, while training and after."""
    seen: list[Any] = []

    class Own(k.hf.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            if self.state.global_step == 1:
                seen.append([self.is_in_train, self.model_wrapped is model, self.optimizer is not None])
                seen.append([self.lr_scheduler is not None, self.args.device.type, self.args.n_gpu])
                seen.append([self.args.world_size, self.args.process_index, self.args.parallel_mode.value])
            return super().compute_loss(model, inputs, return_outputs)

    trainer = k.trainer(cls=Own, num_train_epochs=1)
    seen.append([trainer.is_in_train, trainer.model_wrapped is trainer.model, trainer.optimizer is None])
    seen.append([trainer.state.epoch, trainer.state.global_step, trainer.label_names])
    seen.append([trainer.is_world_process_zero(), trainer.is_local_process_zero()])
    k.train(trainer)
    seen.append([trainer.is_in_train, trainer.model_wrapped is trainer.model])
    seen.append([trainer.num_examples(trainer.get_train_dataloader()), len(trainer.get_eval_dataloader())])
    seen.append([trainer.args.train_batch_size, trainer.args.eval_batch_size])
    k.note("seen", seen)
