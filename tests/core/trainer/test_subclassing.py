"""Subclasses of the Trainer as people write them, and scripts that reach into one."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.toy import Toy, accuracy, history, rows, trainer, weights_equal

from drivetrain import Trainer, TrainerCallback
from drivetrain.evaluation import EvalLoopOutput, EvalPrediction, PredictionOutput, speed_metrics

SETTINGS: dict[str, Any] = {"max_steps": 6, "logging_steps": 2}


def trained(folder: Path, cls: type = Trainer, **values: Any) -> Any:
    made = trainer(folder, cls=cls, **{**SETTINGS, **values})
    made.train()
    return made


def losses(made: Any) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


# -- one method overridden ------------------------------------------------------------------------------


class Weighted(Trainer):
    """A loss of its own, from the model's logits."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = torch.tensor([1.0, 2.0, 3.0])
        loss = torch.nn.functional.cross_entropy(outputs["logits"], labels, weight=weight)
        return (loss, outputs) if return_outputs else loss


def test_compute_loss(tmp_path: Path) -> None:
    made = trained(tmp_path / "a", Weighted, compute_metrics=accuracy)
    assert losses(made) != losses(trained(tmp_path / "b"))
    metrics = made.evaluate()
    # The labels that it pops are still there for the metrics.
    assert 0 < metrics["eval_accuracy"] <= 1
    with torch.no_grad():
        x = torch.stack([row["x"] for row in rows()])
        y = torch.tensor([row["labels"] for row in rows()])
        made.model.eval()
        per_batch = [
            torch.nn.functional.cross_entropy(
                made.model(x[i : i + 8])["logits"], y[i : i + 8], torch.tensor([1.0, 2.0, 3.0])
            )
            for i in range(0, len(x), 8)
        ]
    share = torch.tensor([min(8, len(x) - i) for i in range(0, len(x), 8)]) / len(x)
    assert metrics["eval_loss"] == pytest.approx(float((torch.stack(per_batch) * share).sum()), rel=1e-6)


class Written(Trainer):
    """A training step written out, as scripts for accelerate do."""

    def training_step(self, model: Any, inputs: Any) -> Any:
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        if self.args.n_gpu > 1:
            loss = loss.mean()
        self.accelerator.backward(loss)
        return loss.detach() / self.args.gradient_accumulation_steps


@pytest.mark.parametrize("accumulation", [1, 3])
def test_training_step_with_the_accelerator(tmp_path: Path, accumulation: int) -> None:
    values = {"gradient_accumulation_steps": accumulation, "dropout": 0.2}
    plain, written = trained(tmp_path / "a", **values), trained(tmp_path / "b", Written, **values)
    assert weights_equal(plain.model, written.model)
    assert history(plain) == history(written)


class Perturbed(Trainer):
    """Two passes a step: the second on noisy inputs, after the first through super()."""

    def training_step(self, model: Any, inputs: Any) -> Any:
        loss = super().training_step(model, dict(inputs))
        noisy = {**inputs, "x": inputs["x"] + 0.1}
        return loss + super().training_step(model, noisy)


def test_training_step_through_super_twice(tmp_path: Path) -> None:
    made = trained(tmp_path)
    twice = trained(tmp_path / "b", Perturbed)
    assert losses(twice)[0] == pytest.approx(2 * losses(made)[0], rel=0.1)
    assert not weights_equal(made.model, twice.model)


class Generating(Trainer):
    """A prediction step that gives something else than logits, and a loss of None."""

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            chosen = model(x=inputs["x"])["logits"].argmax(-1)
        return None, chosen, inputs["labels"]


def test_prediction_step(tmp_path: Path) -> None:
    made = trained(
        tmp_path,
        Generating,
        compute_metrics=lambda p: {"match": float((p.predictions == p.label_ids).mean())},
        evaluation_strategy="steps",
        eval_steps=3,
    )
    row = next(row for row in made.state.log_history if "eval_match" in row)
    assert "eval_loss" not in row
    assert made.predict(rows(10)).predictions.shape == (10,)


class OwnLoop(Trainer):
    """An evaluation loop of its own."""

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        model = self._wrap(self.model)
        total, count = 0.0, 0
        for inputs in dataloader:
            loss, _, _ = self.prediction_step(model, inputs, True, ignore_keys)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            gathered = self.accelerator.gather_for_metrics(loss.repeat(len(inputs["labels"])))
            total += float(gathered.sum())
            count += len(gathered)
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": total / count}, count)

    def _wrap(self, model: Any) -> Any:
        model = self.accelerator.unwrap_model(self.model_wrapped)
        model.eval()
        return model


class Steps(TrainerCallback):
    count = 0

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        Steps.count += 1


def test_evaluation_loop(tmp_path: Path) -> None:
    Steps.count = 0
    plain = trained(tmp_path / "a", evaluation_strategy="steps", eval_steps=3)
    own = trained(tmp_path / "b", OwnLoop, evaluation_strategy="steps", eval_steps=3, callbacks=[Steps])
    assert Steps.count == 2 * 13
    assert own.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)
    assert history(own)[-1]["eval_loss"] == pytest.approx(history(plain)[-1]["eval_loss"], rel=1e-6)


class Wider(Trainer):
    """An evaluate() that adds to what super() gives."""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> Any:
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        metrics[f"{metric_key_prefix}_perplexity"] = math.exp(metrics[f"{metric_key_prefix}_loss"])
        return metrics


def test_evaluate(tmp_path: Path) -> None:
    made = trained(
        tmp_path,
        Wider,
        evaluation_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="perplexity",
        greater_is_better=False,
    )
    assert made.state.best_metric == pytest.approx(
        math.exp(min(r["eval_loss"] for r in made.state.log_history if "eval_loss" in r))
    )


class OwnOptimizer(Trainer):
    def create_optimizer(self) -> Any:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate, momentum=0.9)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            lambda step: 0.5 ** (step / num_training_steps),
        )
        return self.lr_scheduler


class OwnBoth(Trainer):
    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate, momentum=0.9)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 ** (step / num_training_steps)
        )


def by_hand(steps: int) -> torch.nn.Module:
    """The same training, written out."""
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step / steps))
    torch.manual_seed(42)
    torch.empty((), dtype=torch.int64).random_()
    generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
    order = torch.randperm(101, generator=generator).tolist()
    data = rows()
    for step in range(steps):
        batch = [data[i] for i in order[8 * step : 8 * step + 8]]
        x, y = torch.stack([r["x"] for r in batch]), torch.tensor([r["labels"] for r in batch])
        model(x, y)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("cls", [OwnOptimizer, OwnBoth])
def test_create_optimizer_and_create_scheduler(tmp_path: Path, cls: type) -> None:
    made = trained(tmp_path, cls)
    assert type(made.optimizer) is torch.optim.SGD
    reference = by_hand(6).state_dict()
    for name, value in made.model.state_dict().items():
        torch.testing.assert_close(value, reference[name], rtol=1e-5, atol=1e-7)


class ThroughSuper(Trainer):
    """Calls super() and then changes what it made: a lower rate for the first layer."""

    def create_optimizer(self) -> Any:
        optimizer = super().create_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = 5e-3
            group["initial_lr"] = 5e-3
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        return super().create_scheduler(num_training_steps * 2, optimizer)


def test_create_optimizer_through_super(tmp_path: Path) -> None:
    made = trained(tmp_path, ThroughSuper)
    rates = [row["learning_rate"] for row in made.state.log_history if "loss" in row]
    assert rates == pytest.approx([5e-3 * (1 - step / 12) for step in (2, 4, 6)])


def test_create_optimizer_and_scheduler_called_by_a_script(tmp_path: Path) -> None:
    made = trainer(tmp_path / "a", **SETTINGS)
    made.create_optimizer_and_scheduler(num_training_steps=6)
    assert isinstance(made.optimizer, torch.optim.AdamW)
    made.train()
    assert losses(made) == losses(trained(tmp_path / "b"))


class NoDecay(Trainer):
    def get_decay_parameter_names(self, model: Any) -> list[str]:
        return ["second.weight"]


def test_get_decay_parameter_names(tmp_path: Path) -> None:
    made = trained(tmp_path, NoDecay, weight_decay=0.1)
    decayed = [group for group in made.optimizer.param_groups if group["weight_decay"] == 0.1]
    assert [p.shape for group in decayed for p in group["params"]] == [torch.Size([3, 16])]


class OwnClass(Trainer):
    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any) -> Any:
        return torch.optim.SGD, {"lr": args.learning_rate, "nesterov": True, "momentum": 0.5}


def test_get_optimizer_cls_and_kwargs(tmp_path: Path) -> None:
    made = trained(tmp_path, OwnClass)
    assert made.optimizer.param_groups[0]["nesterov"] is True
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(made.args)
    assert issubclass(cls, torch.optim.AdamW)
    assert kwargs["lr"] == 1e-2


class OwnLoaders(Trainer):
    """Loaders of a script's own."""

    def get_train_dataloader(self) -> Any:
        loader = torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            shuffle=False,
        )
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        data = eval_dataset if eval_dataset is not None else self.eval_dataset
        return torch.utils.data.DataLoader(data, batch_size=3, collate_fn=self.data_collator)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        return [self.data_collator(test_dataset[i : i + 2]) for i in range(0, len(test_dataset), 2)]


def test_loaders(tmp_path: Path) -> None:
    made = trained(tmp_path, OwnLoaders, evaluation_strategy="steps", eval_steps=3)
    assert made.evaluate()["eval_loss"] == pytest.approx(
        trainer(tmp_path / "b", model=made.model).evaluate()["eval_loss"], rel=1e-5
    )
    assert made.predict(rows(7)).predictions.shape == (7, 3)


class Sampling(Trainer):
    def _get_train_sampler(self) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def test_the_sampler(tmp_path: Path) -> None:
    one, other = trained(tmp_path / "a", Sampling), trained(tmp_path / "b", OwnLoaders)
    assert weights_equal(one.model, other.model)


class Logging(Trainer):
    """Adds to each row of the log."""

    def log(self, logs: dict[str, float]) -> None:
        if "loss" in logs:
            logs["perplexity"] = math.exp(logs["loss"])
        super().log(logs)


def test_log(tmp_path: Path) -> None:
    heard: list[Any] = []

    class Hear(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            heard.append(dict(logs))

    made = trained(tmp_path, Logging, callbacks=[Hear])
    assert all("perplexity" in row for row in made.state.log_history if "loss" in row)
    assert all("perplexity" in row for row in heard if "loss" in row)


class Saving(Trainer):
    """Writes beside the weights, in the checkpoint and at the end."""

    def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        (Path(output_dir) / "note.json").write_text(json.dumps({"step": self.state.global_step}))


def test_save(tmp_path: Path) -> None:
    made = trained(tmp_path, Saving, save_steps=3)
    assert json.loads((tmp_path / "checkpoint-3" / "note.json").read_text()) == {"step": 3}
    made.save_model(str(tmp_path / "end"))
    assert json.loads((tmp_path / "end" / "note.json").read_text()) == {"step": 6}
    # What a subclass wrote is part of the checkpoint: it resumes.
    trained(tmp_path, Saving, max_steps=7).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


# -- a trainer for question answering --------------------------------------------------------------------


class Spans(torch.nn.Module):
    """Start and end of an answer, from eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 10)

    def forward(self, x: Any, start_positions: Any = None, end_positions: Any = None) -> Any:
        start, end = self.layer(x).split(5, dim=-1)
        if start_positions is None:
            return {"start_logits": start, "end_logits": end}
        loss = torch.nn.functional.cross_entropy(start, start_positions) + torch.nn.functional.cross_entropy(
            end, end_positions
        )
        return {"loss": loss / 2, "start_logits": start, "end_logits": end}


class SpansForQuestionAnswering(Spans):
    """Named so that its labels are known to be two."""


class QuestionAnsweringTrainer(Trainer):
    """Evaluates in two goes: logits first, without metrics; then answers, made from logits and the examples."""

    def __init__(
        self, *args: Any, eval_examples: Any = None, post_process_function: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Any = None,
        eval_examples: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        eval_examples = self.eval_examples if eval_examples is None else eval_examples
        output = self._logits(
            self.get_eval_dataloader(eval_dataset), "Evaluation", ignore_keys, metric_key_prefix
        )
        metrics = output.metrics
        if (
            self.post_process_function is not None
            and self.compute_metrics is not None
            and self.args.should_save
        ):
            found = self.compute_metrics(
                self.post_process_function(eval_examples, eval_dataset, output.predictions)
            )
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()} | metrics
        if self.args.should_log:
            self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(  # type: ignore[override]
        self,
        predict_dataset: Any,
        predict_examples: Any,
        ignore_keys: Any = None,
        metric_key_prefix: str = "test",
    ) -> Any:
        output = self._logits(
            self.get_test_dataloader(predict_dataset), "Prediction", ignore_keys, metric_key_prefix
        )
        predictions = self.post_process_function(
            predict_examples, predict_dataset, output.predictions, "predict"
        )
        found = self.compute_metrics(predictions)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()} | output.metrics
        return PredictionOutput(predictions.predictions, predictions.label_ids, metrics)

    def _logits(self, dataloader: Any, description: str, ignore_keys: Any, prefix: str) -> Any:
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
        started = time.time()
        try:
            output = loop(
                dataloader,
                description=description,
                prediction_loss_only=True if compute_metrics is None else None,
                ignore_keys=ignore_keys,
                metric_key_prefix=prefix,
            )
        finally:
            self.compute_metrics = compute_metrics
        batch = self.args.eval_batch_size * self.args.world_size
        output.metrics.update(
            speed_metrics(
                prefix,
                started,
                num_samples=output.num_samples,
                num_steps=math.ceil(output.num_samples / batch),
            )
        )
        return output


def answers(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"x": row["x"], "start_positions": row["labels"], "end_positions": (row["labels"] + 1) % 5}
        for row in rows(count)
    ]


def post_process(examples: Any, features: Any, predictions: Any, stage: str = "eval") -> EvalPrediction:
    start, end = predictions
    assert start.shape == end.shape == (len(features), 5)
    spans = np.stack([start.argmax(-1), end.argmax(-1)], axis=-1)
    return EvalPrediction(spans, np.array([[e["start_positions"], e["end_positions"]] for e in examples]))


def exact(prediction: EvalPrediction) -> dict[str, float]:
    return {"exact_match": float((prediction.predictions == prediction.label_ids).all(-1).mean())}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.filterwarnings("ignore:.*use_legacy_prediction_loop")
def test_question_answering(tmp_path: Path, legacy: bool) -> None:
    from drivetrain import TrainingArguments

    heard: list[Any] = []

    class Hear(TrainerCallback):
        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
        ) -> None:
            heard.append(metrics["eval_exact_match"])

    args = TrainingArguments(
        str(tmp_path), max_steps=20, evaluation_strategy="steps", eval_steps=10, save_steps=10, learning_rate=0.1,
        load_best_model_at_end=True, metric_for_best_model="exact_match", use_cpu=True, report_to="none",
        disable_tqdm=True, **({"use_legacy_prediction_loop": True} if legacy else {}),
    )  # fmt: skip
    made = QuestionAnsweringTrainer(
        model=SpansForQuestionAnswering(),
        args=args,
        train_dataset=answers(),
        eval_dataset=answers(),
        eval_examples=answers(),
        post_process_function=post_process,
        compute_metrics=exact,
        callbacks=[Hear],
    )
    assert made.label_names == ["start_positions", "end_positions"]
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    assert len(heard) == 4
    assert after["eval_exact_match"] > before["eval_exact_match"]
    assert made.state.best_metric == max(heard[1:3])
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_samples_per_second"] > 0
    output = made.predict(answers(7), answers(7))
    assert output.predictions.shape == (7, 2)
    assert set(output.metrics) >= {"test_exact_match", "test_loss", "test_runtime"}


def test_evaluation_loop_by_itself_has_the_precision_of_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path, bf16=True)
    loader = made.get_eval_dataloader()
    by_itself = made.evaluation_loop(loader, "Evaluation").metrics["eval_loss"]
    assert by_itself == made.evaluate()["eval_loss"]
    assert by_itself != trainer(tmp_path).evaluate()["eval_loss"]


# -- what scripts reach for -------------------------------------------------------------------------------


def test_what_scripts_reach_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, Any] = {}

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            seen.update(kwargs, model=model, inside=made.is_in_train, wrapped=made.model_wrapped)

    made = trainer(tmp_path, callbacks=[Look], gradient_accumulation_steps=2, **SETTINGS)
    assert not made.is_in_train
    result = made.train()
    assert seen["inside"]
    assert seen["model"] is made.model
    assert seen["optimizer"] is made.optimizer
    assert seen["lr_scheduler"] is made.lr_scheduler
    assert seen["wrapped"] is made.model
    assert not made.is_in_train
    assert made.model_wrapped is made.model
    assert made.state.global_step == 6
    assert made.state.max_steps == 6
    assert made.control.should_training_stop
    assert [type(callback).__name__ for callback in made.callback_handler.callbacks] == [
        "DefaultFlowCallback", "Look", "PrinterCallback",
    ]  # fmt: skip
    metrics = dict(result.metrics, train_samples=101)
    made.log_metrics("train", metrics)
    assert "***** train metrics *****" in capsys.readouterr().out
    made.save_metrics("train", metrics)
    made.save_metrics("eval", made.evaluate())
    made.save_state()
    combined = json.loads((tmp_path / "all_results.json").read_text())
    assert {"train_loss", "eval_loss"} <= combined.keys()
    assert json.loads((tmp_path / "train_results.json").read_text())["train_samples"] == 101
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 6
    assert made.num_examples(made.get_train_dataloader()) == 101
    assert made.is_world_process_zero()
    assert made.is_local_process_zero()


def test_speed_metrics() -> None:
    figures = speed_metrics("eval", time.time() - 2, num_samples=10, num_steps=4)
    assert figures["eval_runtime"] == pytest.approx(2, abs=0.1)
    assert figures["eval_samples_per_second"] == pytest.approx(5, rel=0.1)
    assert figures["eval_steps_per_second"] == pytest.approx(2, rel=0.1)


def test_state_and_control_may_be_set(tmp_path: Path) -> None:
    from drivetrain import TrainerControl, TrainerState

    made = trainer(tmp_path)
    made.state = TrainerState(global_step=3)
    made.control = TrainerControl(should_save=True)
    assert made.run.state.global_step == 3
    assert made.run.control.should_save
