"""Subclasses of the Trainer as people write them, and scripts that reach into one."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import Toy, accuracy, history, rows, trainer, weights_equal

from drivetrain import Trainer, TrainerCallback, TrainingArguments
from drivetrain.errors import ConfigurationError
from drivetrain.evaluation import EvalLoopOutput, speed_metrics

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


def test_an_override_that_nothing_would_call_is_an_error(tmp_path):
    class Own(Trainer):
        def _inner_training_loop(self, *args, **kwargs):
            return None

    with pytest.raises(
        ConfigurationError, match=r"Own overrides _inner_training_loop.*: override training_step"
    ):
        Own(torch.nn.Linear(1, 1), TrainingArguments(str(tmp_path), report_to="none"))


def test_the_tokenizer_may_be_called_processing_class(tmp_path):
    args = TrainingArguments(str(tmp_path), report_to="none")
    tokenizer = object()
    trainer = Trainer(torch.nn.Linear(1, 1), args, processing_class=tokenizer)
    assert trainer.tokenizer is trainer.processing_class is tokenizer
    assert trainer.data_collator.tokenizer is tokenizer
    with pytest.raises(ConfigurationError, match="pass one of them"):
        Trainer(torch.nn.Linear(1, 1), args, tokenizer=tokenizer, processing_class=tokenizer)


def test_a_trainer_can_be_copied(tmp_path):
    made = trained(tmp_path)
    twin = copy.deepcopy(made)
    assert twin.evaluate()["eval_loss"] == made.evaluate()["eval_loss"]
    rows_before, weights = len(made.state.log_history), copy.deepcopy(made.model.state_dict())
    twin.train()
    assert twin.callback_handler.run is twin.run is not made.run
    assert twin.state.global_step == 6
    assert len(made.state.log_history) == rows_before  # the original has heard nothing of it
    assert all(torch.equal(value, weights[name]) for name, value in made.model.state_dict().items())


def test_attributes_of_a_script_are_its_own(tmp_path: Path) -> None:
    """Names that scripts like to keep things under are free; what the Trainer has beyond transformers' is hidden."""
    mine = [
        "losses",
        "batches",
        "position",
        "clock",
        "steps",
        "writer",
        "layout",
        "disk",
        "parts",
        "history",
        "stages",
        "session",
        "metrics",
        "plugins",
    ]

    class Collecting(Trainer):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            for name in mine:
                setattr(self, name, [])

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            self.losses.append(loss.detach())
            return (loss, outputs) if return_outputs else loss

    trained = trainer(
        tmp_path,
        cls=Collecting,
        data=rows(16),
        max_steps=3,
        save_steps=1,
        evaluation_strategy="steps",
        eval_steps=1,
    )
    trained.train()
    trained.evaluate()
    assert len(trained.losses) > 3
    assert all(getattr(trained, name) == [] for name in mine if name != "losses")
