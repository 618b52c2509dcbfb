"""use_ipex: Intel's extension trains and evaluates as plain torch does, and where it is missing that is said.

The extension needs torch 2.8: `nox -s ipex` runs the real tests in an environment of their own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.toy import rows, trainer

from drivetrain import ConfigurationError, Trainer, TrainingArguments
from drivetrain_plugins.transform import ipex

INSTALLED = importlib.util.find_spec("intel_extension_for_pytorch") is not None
real = pytest.mark.skipif(not INSTALLED, reason="Intel's extension is not installed: nox -s ipex")
# Of torch, about operators that the extension replaces, and of the extension about its own options.
quiet = pytest.mark.filterwarnings("ignore")

TOLERANCE = {"float32": 1e-5, "sgd": 1e-5, "bf16": 2e-2, "bf16_full_eval": 2e-2}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "bf16": {"bf16": True},
    "bf16_full_eval": {"bf16_full_eval": True},
}


class Net(torch.nn.Module):
    """What the extension has kernels of its own for, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(1, 4, 3, padding=1)
        self.lstm = torch.nn.LSTM(4, 16, batch_first=True)
        self.norm = torch.nn.LayerNorm(16)
        self.head = torch.nn.Linear(16, 3)
        self.drop = torch.nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden, _ = self.lstm(torch.relu(self.conv(x[:, None, :])).transpose(1, 2))
        logits = self.head(self.drop(self.norm(hidden[:, -1])))
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def trained(folder: Path, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    made = trainer(
        folder, model=Net(), data=rows(48), max_steps=12, logging_steps=1, save_steps=6, weight_decay=0.1,
        evaluation_strategy="steps", eval_steps=6, **arguments,
    )  # fmt: skip
    made.train()
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What torch gives by itself, before the extension is imported and replaces its operators."""
    found = {}
    for name, arguments in ARGUMENTS.items():
        made = trained(tmp_path_factory.mktemp(name), **arguments)
        found[name] = results(made)
    return found


def updates_by(made: Trainer) -> str:
    """The module of what updates the weights; a scheduler has put a function of its own around it."""
    step: Any = made.optimizer.step  # type: ignore[union-attr]
    function = getattr(step, "__func__", step)
    return str(getattr(function, "__wrapped__", function).__module__)


def results(made: Trainer) -> dict[str, Any]:
    losses = [row[key] for row in made.state.log_history for key in ("loss", "eval_loss") if key in row]
    return {
        "losses": losses,
        "weights": {key: value.clone() for key, value in made.model.state_dict().items()},
        "eval_loss": made.evaluate()["eval_loss"],
        "predictions": made.predict(rows(21, seed=3)).predictions,
    }


@real
@quiet
@pytest.mark.parametrize("name", ARGUMENTS)
def test_trains_evaluates_predicts_and_goes_on_as_plain_torch(
    tmp_path: Path, plain: dict[str, Any], name: str
) -> None:
    made = trained(tmp_path, use_ipex=True, **ARGUMENTS[name])
    assert ("intel_extension_for_pytorch" in updates_by(made)) is (name == "sgd")  # AdamW is torch's, fused
    assert hasattr(made.optimizer, "params_attr")  # which the extension hangs on what it has seen
    found, expected, tolerance = results(made), plain[name], TOLERANCE[name]
    assert found["losses"] == pytest.approx(expected["losses"], rel=tolerance)
    for key, tensor in expected["weights"].items():
        assert found["weights"][key].dtype == torch.float32
        torch.testing.assert_close(found["weights"][key], tensor, rtol=tolerance, atol=tolerance)
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=tolerance)
    np.testing.assert_allclose(
        found["predictions"], expected["predictions"], rtol=tolerance, atol=2 * tolerance
    )
    # The model is as it was.
    assert [type(module) for module in made.model.modules()] == [type(module) for module in Net().modules()]
    # A run that goes on from the middle ends as the one that never stopped.
    torch.manual_seed(0)
    resumed = trainer(
        tmp_path, model=Net(), data=rows(48), max_steps=12, logging_steps=1, save_steps=6, weight_decay=0.1,
        evaluation_strategy="steps", eval_steps=6, use_ipex=True, **ARGUMENTS[name],
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    for key, tensor in found["weights"].items():
        torch.testing.assert_close(resumed.model.state_dict()[key], tensor, rtol=1e-6, atol=1e-7)


@real
@quiet
def test_together_with_a_trace_and_as_a_backend_of_torch_compile(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = trainer(tmp_path / "plain", data=rows(21))
    traced = trainer(tmp_path / "traced", model=plain.model, data=rows(21), use_ipex=True, jit_mode_eval=True)
    expected = plain.predict(rows(21)).predictions
    np.testing.assert_allclose(traced.predict(rows(21)).predictions, expected, rtol=1e-4, atol=1e-5)
    assert [active.name for active in traced.run.plan.of_kind("transform")] == ["ipex", "jit"]
    compiled = trainer(tmp_path / "compiled", model=plain.model, data=rows(21), torch_compile_backend="ipex")
    np.testing.assert_allclose(compiled.predict(rows(21)).predictions, expected, rtol=1e-4, atol=1e-5)


@real
@quiet
def test_the_documented_method(tmp_path: Path) -> None:
    made = trainer(tmp_path, data=rows(16), optim="sgd")
    twin = made.ipex_optimize_model(made.model)
    assert twin is not made.model
    assert not twin.training
    made.create_optimizer()
    assert made.ipex_optimize_model(made.model, training=True) is made.model
    assert "intel_extension_for_pytorch" in updates_by(made)


# -- where it is missing -----------------------------------------------------------------------------------


def args(folder: Path, **values: Any) -> TrainingArguments:
    return TrainingArguments(str(folder), use_ipex=True, report_to="none", **{"use_cpu": True, **values})


@pytest.mark.skipif(INSTALLED, reason="Intel's extension is installed")
def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path, use_ipex=True).train()
    assert "use_ipex=True needs intel-extension-for-pytorch, which is not installed" in str(caught.value)
    assert "leave use_ipex out, or use torch_compile=True" in str(caught.value)


def test_another_torch_than_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake version: the real extension cannot be installed beside another torch than its own."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.4.0")
    (sentence,) = ipex.problems(args(tmp_path))
    assert sentence.startswith(
        "use_ipex=True finds intel-extension-for-pytorch 1.4.0, which is for torch 1.4, and"
    )


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "fairscale"])
def test_spread_weights_are_refused(tmp_path: Path, strategy: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path, use_ipex=True, strategy=strategy).train()
    assert f"Transform 'ipex' and strategy '{strategy}' exclude each other" in str(caught.value)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="option 'level' must be 'O0' or 'O1'"):
        ipex.IPEXOptions(level="O2")
