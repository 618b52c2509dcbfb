"""What training computes: accumulation, label smoothing, model_init, optimizers of the user's own, settled arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import Toy, history, rows, trainer, weights_equal

from drivetrain import ConfigurationError, Trainer, TrainerCallback, TrainingArguments, hookimpl

# -- loss under accumulation -----------------------------------------------------------------------------


class Gradients:
    """Keeps the gradients of each update, before clipping."""

    def __init__(self) -> None:
        self.kept: list[dict[str, torch.Tensor]] = []

    @hookimpl
    def on_gradients_ready(self, run: Any) -> None:
        self.kept.append({name: p.grad.clone() for name, p in run.model.named_parameters()})


@pytest.mark.parametrize("reduction", ["micro_batches", "tokens"])
def test_an_accumulated_update_equals_that_of_the_whole_batch(tmp_path: Path, reduction: str) -> None:
    """Micro-batches of equal size and a mean over rows: both reductions are that of the whole batch."""
    whole, parts = Gradients(), Gradients()
    values: dict[str, Any] = {
        "data": rows(96),
        "max_steps": 5,
        "logging_steps": 1,
        "loss_reduction": reduction,
    }
    one = trainer(tmp_path / "a", plugins=[whole], per_device_train_batch_size=24, **values)
    one.train()
    other = trainer(
        tmp_path / "b",
        plugins=[parts],
        per_device_train_batch_size=6,
        gradient_accumulation_steps=4,
        **values,
    )
    other.train()
    for a, b in zip(whole.kept, parts.kept, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)
    for a, b in zip(history(one), history(other), strict=True):
        assert a.get("loss") == pytest.approx(b.get("loss"), abs=2e-4)


def test_the_returned_loss_is_the_mean_over_updates(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=6, logging_steps=2, gradient_accumulation_steps=2)
    result = made.train()
    logged = [row["loss"] for row in made.state.log_history if "loss" in row]
    assert result.training_loss == pytest.approx(sum(logged) / 3, abs=1e-4)
    assert result.metrics["train_loss"] == result.training_loss
    assert result.global_step == 6


def test_a_left_over_micro_batch_carries_its_gradient_into_the_next_epoch(tmp_path: Path) -> None:
    """Three batches, accumulation two: the second update is of the third batch and the next epoch's first."""
    seen: list[list[int]] = []

    class Watching(Trainer):
        def training_step(self, model: Any, inputs: Any) -> Any:
            seen.append(len(seen))
            return super().training_step(model, inputs)

    kept = Gradients()
    made = trainer(
        tmp_path,
        cls=Watching,
        plugins=[kept],
        data=rows(24),
        gradient_accumulation_steps=2,
        num_train_epochs=2,
    )
    made.train()
    assert made.state.max_steps == 2
    assert made.state.global_step == 2
    assert len(seen) == 4


# -- label smoothing -------------------------------------------------------------------------------------


def test_label_smoothing(tmp_path: Path) -> None:
    """The first logged loss is torch's own smoothed cross entropy of the first batch."""
    batches: list[Any] = []

    class Watching(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            if not batches:
                with torch.no_grad():
                    logits = model(x=inputs["x"])["logits"]
                batches.append(
                    torch.nn.functional.cross_entropy(logits, inputs["labels"], label_smoothing=0.2)
                )
            return super().compute_loss(model, inputs, return_outputs)

    made = trainer(tmp_path, cls=Watching, label_smoothing_factor=0.2, max_steps=1, logging_steps=1)
    made.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(float(batches[0]), abs=1e-4)


# -- model_init ------------------------------------------------------------------------------------------


def test_model_init_makes_runs_repeat(tmp_path: Path) -> None:
    made: list[Toy] = []

    def init() -> Toy:
        made.append(Toy(0.2))
        return made[-1]

    one = trainer(tmp_path, model_init=init, max_steps=4, logging_steps=1)
    assert len(made) == 1
    one.train()
    first = history(one)
    weights = {name: value.clone() for name, value in one.model.state_dict().items()}
    torch.manual_seed(1)
    one.train()
    assert history(one) == first
    assert all(torch.equal(weights[name], value) for name, value in one.model.state_dict().items())
    assert len(made) == 3
    assert one.model is made[2]


def test_model_init_takes_a_trial(tmp_path: Path) -> None:
    trials: list[Any] = []

    def init(trial: Any) -> Toy:
        trials.append(trial)
        return Toy()

    trainer(tmp_path, model_init=init, max_steps=1).train()
    assert trials == [None, None]


def test_model_init_that_gives_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="model_init returned None; it must return the model"):
        trainer(tmp_path, model_init=lambda: None)


def test_neither_model_nor_model_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Trainer needs a model, or model_init to build one"):
        Trainer(args=TrainingArguments(str(tmp_path), report_to="none"))


def test_optimizers_beside_model_init(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(Toy().parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="optimizers cannot go with model_init"):
        trainer(tmp_path, model_init=Toy, optimizers=(optimizer, None))


# -- optimizers of the user's own --------------------------------------------------------------------------


def test_a_finished_optimizer_and_scheduler_are_used_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    made = trainer(tmp_path, model=model, optimizers=(optimizer, scheduler), max_steps=6, logging_steps=1)
    made.train()
    assert made.optimizer is optimizer
    assert made.lr_scheduler is scheduler
    rates = [row["learning_rate"] for row in made.state.log_history if "loss" in row]
    assert rates == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025, 0.0125])


def test_a_finished_optimizer_alone_gets_the_documented_schedule(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = trainer(tmp_path, model=model, optimizers=(optimizer, None), max_steps=4, logging_steps=1)
    made.train()
    rates = [row["learning_rate"] for row in made.state.log_history if "loss" in row]
    assert rates == pytest.approx([0.075, 0.05, 0.025, 0.0])


class Sign(torch.optim.Optimizer):
    """An optimizer of the user's own class."""

    def __init__(self, params: Any, lr: float = 0.1, scale: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "scale": scale})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"] * group["scale"])


def test_an_optimizer_class(tmp_path: Path) -> None:
    made = trainer(tmp_path, optim=Sign, optim_args="scale=0.5", max_steps=3, save_steps=2, logging_steps=1)
    made.train()
    assert type(made.optimizer) is Sign
    assert made.optimizer.param_groups[0]["scale"] == 0.5
    # It is resumed like any other.
    again = trainer(tmp_path, optim=Sign, optim_args="scale=0.5", max_steps=3, save_steps=2, logging_steps=1)
    again.train(resume_from_checkpoint=True)
    assert weights_equal(again.model, made.model)


# -- arguments as they are when the run begins -------------------------------------------------------------


def test_arguments_set_after_the_trainer_was_built_count(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=2)
    made.args.set_optimizer("sgd", learning_rate=0.5)
    made.args.max_steps = 3
    made.args.logging_steps = 1
    made.args.lr_scheduler_type = "constant"
    made.train()
    assert type(made.optimizer) is torch.optim.SGD
    assert [row["learning_rate"] for row in made.state.log_history if "loss" in row] == [0.5] * 3


def test_a_wrong_value_set_later_is_answered_when_the_run_begins(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=2)
    made.args.learning_rate = "fast"
    made.args.evaluation_strategy = "stps"
    with pytest.raises(ConfigurationError) as caught:
        made.train()
    text = str(caught.value)
    assert "learning_rate" in text
    assert "evaluation_strategy" in text
    assert len(caught.value.problems) == 2
    # The trainer stands: put right, it trains.
    made.args.learning_rate, made.args.evaluation_strategy = 1e-2, "no"
    made.train()
    assert made.state.global_step == 2


def test_what_follows_from_an_argument_set_later_follows(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=2)
    made.args.evaluation_strategy = "steps"
    made.args.logging_steps = 1
    made.args.load_best_model_at_end = True
    made.args.save_steps = 1
    made.train()
    assert made.args.metric_for_best_model == "loss"
    assert made.args.eval_steps == 1
    assert made.state.best_metric is not None


def test_training_needs_data(tmp_path: Path) -> None:
    made = Trainer(Toy(), TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    with pytest.raises(ConfigurationError, match="Trainer needs train_dataset to train"):
        made.train()
    with pytest.raises(ConfigurationError, match="Trainer needs eval_dataset to evaluate"):
        made.evaluate()


def test_a_model_without_a_loss_is_answered(tmp_path: Path) -> None:
    class Silent(Toy):
        def forward(self, x: Any, labels: Any = None) -> Any:
            return {"logits": self.second(torch.relu(self.first(x)))}

    with pytest.raises(
        ValueError, match=r"The model gave no loss, only the keys: logits. It got the inputs: x, labels."
    ):
        trainer(tmp_path, model=Silent(), max_steps=1).train()


def test_rows_that_are_tuples_are_the_models_arguments_in_order(tmp_path: Path) -> None:
    """A plain TensorDataset, whose batches are lists of tensors, trains a model that returns its loss."""

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return ((self.layer(x)[:, 0] - y) ** 2).mean()

    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, x.sum(1))
    made = trainer(tmp_path, model=Line(), data=data, max_steps=60, learning_rate=0.1, logging_steps=20)
    made.train()
    found = [row["loss"] for row in made.state.log_history if "loss" in row]
    assert found[-1] < 0.1 * found[0]


def test_a_second_train_goes_on_with_the_weights(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=3)
    made.train()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    made.train()
    assert made.state.global_step == 3
    assert any(not torch.equal(before[name], value) for name, value in made.model.state_dict().items())


def test_after_an_error_the_trainer_is_as_before(tmp_path: Path) -> None:
    class Once(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2 and not getattr(self, "done", False):
                self.done = True
                raise RuntimeError("once")

    made = trainer(tmp_path, bf16=True, max_steps=3, callbacks=[Once])
    forward = made.model.forward
    with pytest.raises(RuntimeError, match="once"):
        made.train()
    assert not made.is_in_train
    assert made.model_wrapped is made.model
    # The precision's autocast is off the model's forward.
    assert made.model.forward == forward
    assert made.model(torch.zeros(1, 8))["logits"].dtype == torch.float32
    assert made.train().global_step == 3


def test_training_begins_in_training_mode(tmp_path: Path) -> None:
    """Every module, also below one that is in training mode already, as a wrapper is that has just been made."""
    made = trainer(tmp_path, max_steps=1, dropout=0.5)
    made.model.train()
    made.model.dropout.eval()
    seen: list[bool] = []
    made.model.dropout.register_forward_hook(lambda module, given, gives: seen.append(module.training))
    made.train()
    assert seen == [True]
