"""torch.compile: equal results, unchanged keys, and a name that this torch lacks is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drivetrain import ConfigurationError, Trainer, TrainingArguments


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.body(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(count: int = 32) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    return [{"x": torch.randn(6), "labels": int(i % 3)} for i in range(count)]


def trainer(folder: Path, **arguments: Any) -> Trainer:
    args = TrainingArguments(
        str(folder),
        **{
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        },
    )
    return Trainer(Net(), args, train_dataset=rows(), eval_dataset=rows())


@pytest.fixture(autouse=True)
def fresh_cache() -> None:
    torch._dynamo.reset()


def losses(made: Trainer) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_training_and_evaluation_are_those_of_the_plain_model(tmp_path: Path, backend: str) -> None:
    plain = trainer(tmp_path / "plain")
    plain.train()
    compiled = trainer(tmp_path / "compiled", torch_compile_backend=backend)
    calls: list[bool] = []
    compiled.model.body[0].register_forward_hook(lambda *_: calls.append(torch.compiler.is_compiling()))
    compiled.train()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], tensor)
    assert compiled.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())


def test_the_model_is_compiled_while_it_trains_and_bare_afterwards(tmp_path: Path) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.register_backend(counting, name="counting")
    made = trainer(tmp_path, torch_compile=True, torch_compile_backend="counting")
    model = made.model
    seen: list[bool] = []

    class Looks:
        name = "looks"

        from drivetrain import hookimpl

        @hookimpl
        def on_step_end(self, run: Any) -> None:
            seen.append(run.model_wrapped._compiled_call_impl is not None)

    made.plugins.append(Looks())
    made.train()
    assert seen
    assert all(seen)
    assert made.model is model
    assert model._compiled_call_impl is None
    assert len(graphs) == 1
    # torch keeps what it compiled: the same model trains again without compiling again.
    made.train()
    assert len(graphs) == 1
    assert model._compiled_call_impl is None


@pytest.mark.parametrize("what", ["evaluate", "predict"])
def test_evaluation_and_prediction_by_themselves_are_compiled_too(tmp_path: Path, what: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.register_backend(counting, name=f"counting_{what}")
    made = trainer(tmp_path, torch_compile_backend=f"counting_{what}")
    for _ in range(2):
        if what == "evaluate":
            made.evaluate()
        else:
            made.predict(rows())
        assert len(graphs) == 1  # the second time finds it compiled
        assert made.model._compiled_call_impl is None


def test_an_error_leaves_the_model_bare(tmp_path: Path) -> None:
    made = trainer(tmp_path, torch_compile_backend="eager")

    class Fails:
        name = "fails"

        from drivetrain import hookimpl

        @hookimpl
        def on_step_end(self, run: Any) -> None:
            raise RuntimeError("enough")

    made.plugins.append(Fails())
    with pytest.raises(RuntimeError, match="enough"):
        made.train()
    assert made.model._compiled_call_impl is None


@pytest.mark.parametrize("older", ["eager", "aot_eager"])
def test_the_older_spelling(tmp_path: Path, older: str) -> None:
    from drivetrain_plugins.transform import TORCH_COMPILE
    from drivetrain_plugins.transform.backends import chosen

    with pytest.warns(FutureWarning, match="torch_compile_backend"):
        args = TrainingArguments(str(tmp_path), torchdynamo=older, report_to="none", use_cpu=True)
    assert TORCH_COMPILE.chosen_by is not None
    assert TORCH_COMPILE.chosen_by(args) is not None
    assert chosen(args) == (older, None)


def problems(tmp_path: Path, **arguments: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path, **arguments).train()
    return str(caught.value)


@pytest.mark.parametrize("backend", ["nvfuser", "aot_nvfuser", "ofi", "fx2trt", "ipex"])
def test_a_backend_that_this_torch_lacks_is_an_error_naming_those_it_has(
    tmp_path: Path, backend: str
) -> None:
    said = problems(tmp_path, torch_compile_backend=backend)
    assert f"torch_compile_backend={backend!r} is not a backend of this torch" in said
    for known in ("aot_eager", "cudagraphs", "eager", "inductor"):
        assert known in said


def test_a_slip_of_the_pen_is_answered_with_the_nearest(tmp_path: Path) -> None:
    assert "Did you mean 'inductor'?" in problems(tmp_path, torch_compile_backend="inducktor")
    assert "Did you mean 'max-autotune'?" in problems(
        tmp_path, torch_compile_backend="inductor", torch_compile_mode="max-autotun"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cudagraphs_needs_a_device(tmp_path: Path) -> None:
    assert "needs a CUDA device" in problems(tmp_path, torch_compile_backend="aot_cudagraphs")


def test_a_mode_belongs_to_inductor(tmp_path: Path) -> None:
    said = problems(tmp_path, torch_compile_backend="eager", torch_compile_mode="reduce-overhead")
    assert "torch_compile_mode='reduce-overhead' is a mode of the backend 'inductor' alone" in said
    assert "torch_compile_backend is 'eager'" in said


def test_inductor_without_a_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "needs a C++ compiler" in problems(tmp_path, torch_compile=True)


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor on a CPU needs g++")
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_inductor_trains_as_the_plain_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    plain = trainer(tmp_path / "plain")
    plain.train()
    compiled = trainer(tmp_path / "compiled", torch_compile=True, torch_compile_mode="default")
    compiled.train()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
