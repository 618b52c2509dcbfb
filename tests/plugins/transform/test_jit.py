"""jit_mode_eval: what is evaluated by a trace is what the model gives, and the model is itself again."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.toy import Toy, rows, trainer, weights_equal
from torch import nn

from drivetrain import ConfigurationError, Trainer, hookimpl
from drivetrain_plugins.transform import traced
from drivetrain_plugins.transform.jit import JIT


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens: "trace" where one is made, "call" where one is called."""
    happened: list[str] = []
    make, call = traced.Traced._trace, traced.Traced.__call__
    monkeypatch.setattr(traced.Traced, "_trace", lambda *given: (happened.append("trace"), make(*given))[1])
    monkeypatch.setattr(traced.Traced, "__call__", lambda *given: (happened.append("call"), call(*given))[1])
    return happened


class Shows:
    """Gives what an evaluation and a prediction gave."""

    def __init__(self, made: Trainer) -> None:
        self.metrics = made.evaluate()
        self.output = made.predict(rows(21, seed=3))

    def same_as(self, other: Shows, tolerance: float = 0.0) -> bool:
        return (
            abs(self.metrics["eval_loss"] - other.metrics["eval_loss"]) <= tolerance
            and np.abs(self.output.predictions - other.output.predictions).max() <= tolerance
            and (self.output.label_ids == other.output.label_ids).all()
        )


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"bf16_full_eval": True}])
def test_evaluation_and_prediction_are_those_of_the_model(
    tmp_path: Path, traces: list[str], precision: dict[str, Any]
) -> None:
    plain = Shows(trainer(tmp_path / "plain", data=rows(21), **precision))
    assert traces == []
    made = trainer(tmp_path / "traced", data=rows(21), jit_mode_eval=True, **precision)
    model, keys = made.model, list(made.model.state_dict())
    shown = Shows(made)
    # Each traces from its first batch, and calls that trace for all of its three, of two shapes.
    assert traces == ["trace", "call", "call", "call"] * 2
    assert shown.same_as(plain, 1e-2 if precision else 1e-6)
    assert made.model is model
    assert model._compiled_call_impl is None
    assert list(model.state_dict()) == keys


def test_training_is_not_traced_and_each_evaluation_has_the_weights_of_its_time(
    tmp_path: Path, traces: list[str]
) -> None:
    common: dict[str, Any] = {
        "data": rows(16), "dropout": 0.1, "num_train_epochs": 3, "evaluation_strategy": "epoch",
        "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    plain = trainer(tmp_path / "plain", **common)
    plain.train()
    made = trainer(tmp_path / "traced", jit_mode_eval=True, **common)
    made.train()
    assert traces == ["trace", "call", "call"] * 3
    seen = [
        [row.get("loss", row.get("eval_loss", 0.0)) for row in t.state.log_history] for t in (made, plain)
    ]
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)
    assert weights_equal(made.model, plain.model)
    assert made.model._compiled_call_impl is None


def test_weights_that_change_by_hand_are_traced_anew(tmp_path: Path, traces: list[str]) -> None:
    """Also where no evaluation ends and nothing is trained in between."""

    class Changes:
        name = "changes"

        @hookimpl
        def on_prediction_step(self, run: Any) -> None:
            with torch.no_grad():
                run.model.second.bias.add_(1.0)

    results = []
    for wanted in (False, True):
        made = trainer(tmp_path / str(wanted), data=rows(24), jit_mode_eval=wanted, plugins=[Changes()])
        results.append(made.predict(rows(24)).predictions)
    assert traces == ["trace", "call"] * 3
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_together_with_torch_compile_training_is_compiled(tmp_path: Path, traces: list[str]) -> None:
    torch._dynamo.reset()
    made = trainer(
        tmp_path, data=rows(16), jit_mode_eval=True, torch_compile_backend="eager", max_steps=2,
        evaluation_strategy="steps", eval_steps=1, save_strategy="no", plugins=[Compiled()],
    )  # fmt: skip
    made.train()
    assert Compiled.seen
    assert traces == ["trace", "call", "call"] * 2
    assert made.model._compiled_call_impl is None
    plan = [active.name for active in made.run.plan.of_kind("transform")]
    assert plan == ["torch_compile", "jit"]


class Compiled:
    """Sees whether a training step was compiled."""

    name = "compiled"
    seen = False

    @hookimpl
    def on_train_begin(self, run: Any) -> None:
        def note(*_: Any) -> None:
            Compiled.seen |= torch.compiler.is_compiling()

        run.model.first.register_forward_hook(note)


class Chooses(Toy):
    """Adds what depends on the numbers it is given, which a trace takes for fixed."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        outputs = super().forward(x, labels)
        if len(x) > 5:
            outputs["logits"] = outputs["logits"] + 1
        return outputs


class Counts(Toy):
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, Any]:
        return {**super().forward(x, labels), "times": {1: object()}[1]}


class Refuses(Toy):
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if torch.jit.is_tracing():
            raise RuntimeError("not while a trace is made\nat all")
        return super().forward(x, labels)


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (Refuses, "Refuses is evaluated without a trace, since not while a trace is made."),
        (Counts, "Counts is evaluated without a trace, since it returns a value of type object."),
        (
            Chooses,
            "Chooses is evaluated without a trace, since the trace does not give what the model gives for",
        ),
    ],
)
def test_what_cannot_be_traced_is_evaluated_as_it_is_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cls: type[Toy], why: str
) -> None:
    torch.manual_seed(0)
    model = cls()
    kept = {"ignore_keys": ["times"]}
    plain = trainer(tmp_path / "plain", model=copy.deepcopy(model), data=rows(21)).predict(rows(21), **kept)
    caplog.clear()
    made = trainer(tmp_path / "traced", model=model, data=rows(21), jit_mode_eval=True)
    found = made.predict(rows(21), **kept)
    assert (found.predictions == plain.predictions).all()
    assert [row.levelno for row in caplog.records if "jit_mode_eval" in row.getMessage()] == [logging.WARNING]
    assert why in caplog.text
    assert model._compiled_call_impl is None


def test_a_choice_that_a_trace_takes_for_fixed_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(tmp_path, model=Decides(), data=rows(16), jit_mode_eval=True, log_level="info")
    with caplog.at_level(logging.INFO, logger="drivetrain"):
        made.evaluate()
    assert (
        "The trace of Decides takes 1 choices of the model for fixed; the first: Converting a tensor"
        in caplog.text
    )


class Decides(Toy):
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return super().forward(x * 2 if bool(x.sum() > 1e9) else x, labels)


def test_an_error_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    class Fails:
        name = "fails"

        @hookimpl
        def on_prediction_step(self, run: Any) -> None:
            raise RuntimeError("enough")

    made = trainer(tmp_path, data=rows(16), jit_mode_eval=True, plugins=[Fails()])
    with pytest.raises(RuntimeError, match="enough"):
        made.evaluate()
    assert made.model._compiled_call_impl is None


class Named(dict):  # type: ignore[type-arg]
    """An output whose values are attributes, as transformers gives them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Nested(Toy):
    """Nested outputs of a class of its own, a plain value among them, and arguments that are no tensors."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, scale: float = 1.0) -> Any:
        found = super().forward(x * scale, labels)
        return Named(loss=found["loss"], logits=(found["logits"], [x, found["logits"] * 2]), rows=3)


def test_outputs_come_in_their_own_form() -> None:
    torch.manual_seed(0)
    model = Nested().eval()
    x, labels = torch.randn(4, 8), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        expected = model(x=x, labels=labels, scale=2.0)
        trace = traced.Traced(model, (), {"x": x, "labels": labels, "scale": 2.0})
        given = {"x": x, "labels": labels, "scale": 2.0}
        found = trace(traced.signature_of((), given), (), given)
    assert type(found) is Named
    assert found.rows == 3
    assert isinstance(found.logits, tuple)
    assert isinstance(found.logits[1], list)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits[1], expected.logits[1])
    # Another plain value, type or number of dimensions is another trace.
    assert trace.fits(traced.signature_of((), {**given, "x": torch.randn(2, 8)}))
    for other in ({"scale": 3.0}, {"x": x.double()}, {"x": x[None]}):
        assert not trace.fits(traced.signature_of((), {**given, **other}))


def test_the_documented_method(tmp_path: Path, traces: list[str]) -> None:
    made = trainer(tmp_path, data=rows(16))
    loader = made.get_eval_dataloader()
    assert made.torch_jit_model_eval(made.model, loader, training=True) is made.model
    twin = made.torch_jit_model_eval(made.model, loader)
    assert twin is not made.model
    assert traces == ["trace", "call"]
    batch = next(iter(loader))
    with torch.no_grad():
        torch.testing.assert_close(twin(**batch)["logits"], made.model(**batch)["logits"])
    assert traces == ["trace", "call", "call"]
    assert made.model._compiled_call_impl is None


def test_models_of_transformers_are_traced(tmp_path: Path, traces: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )
    gpt = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )
    for model in (bert, gpt):
        words = [torch.arange(8) + i for i in range(10)]
        data = [{"input_ids": ids, "labels": ids if model is gpt else i % 2} for i, ids in enumerate(words)]
        results = []
        for wanted in (False, True):
            made = trainer(tmp_path / "out", model=model, data=data, jit_mode_eval=wanted)
            results.append(made.predict(data))
        assert traces == ["trace", "call", "call"]
        traces.clear()
        one, other = (found.predictions for found in results)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert results[0].metrics["test_loss"] == pytest.approx(results[1].metrics["test_loss"], rel=1e-5)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "fairscale"])
def test_spread_weights_have_no_trace(tmp_path: Path, strategy: str) -> None:
    made = trainer(tmp_path, jit_mode_eval=True, strategy=strategy)
    with pytest.raises(
        ConfigurationError, match=f"Transform 'jit' and strategy '{strategy}' exclude each other"
    ):
        made.evaluate()


def test_there_is_one_wrapper_for_a_model_and_one_for_what_replaced_it(make_run: Any) -> None:
    """The bare model is traced within a wrapper; what an earlier transform put in its place, in its place."""
    run = make_run(nn.Linear(3, 2))
    run.precision = type("P", (), {"policy": type("Q", (), {"compute": None})})
    wrapper, other = nn.Sequential(run.model), nn.Linear(3, 2)
    plugin = JIT()
    plugin.transform_model(run, wrapper)
    assert run.model._compiled_call_impl is not None
    assert wrapper._compiled_call_impl is None
    plugin.transform_model(run, other)
    assert other._compiled_call_impl is not None
    assert run.model._compiled_call_impl is None


def test_an_override_that_nothing_calls_is_an_error_where_it_was_called(tmp_path: Path) -> None:
    class Own(Trainer):
        def torch_jit_model_eval(self, model: Any, dataloader: Any, training: bool = False) -> Any:
            return model

    assert trainer(tmp_path, cls=Own, data=rows(8)).evaluate()["eval_loss"] > 0
    with pytest.raises(
        ConfigurationError, match="Own overrides torch_jit_model_eval, which drivetrain does not call"
    ):
        trainer(tmp_path, cls=Own, data=rows(8), jit_mode_eval=True)
