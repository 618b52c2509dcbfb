"""torch.compile: equal results, unchanged keys, and a name that this torch lacks is refused."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor
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

    made._plugins.append(Looks())
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

    made._plugins.append(Fails())
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


# The documented names that are no backends of today's torch, and what other packages bring.
@pytest.mark.parametrize(
    "backend",
    [
        "nvfuser",
        "aot_nvfuser",
        "ofi",
        "fx2trt",
        "onnxrt",
        "ipex",
        "tensorrt",
        "torch_tensorrt",
        "hpu_backend",
    ],
)
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
@pytest.mark.parametrize("backend", ["cudagraphs", "aot_cudagraphs"])
def test_cudagraphs_needs_a_device(tmp_path: Path, backend: str) -> None:
    said = problems(tmp_path, torch_compile_backend=backend)
    assert f"torch_compile_backend={backend!r} needs a CUDA device" in said


@pytest.mark.parametrize(("backend", "package"), [("tvm", "tvm"), ("openxla", "torch_xla")])
def test_a_backend_of_another_package_names_it(tmp_path: Path, backend: str, package: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    said = problems(tmp_path, torch_compile_backend=backend)
    assert f"needs {package}, which is not installed. Use torch_compile_backend='inductor'." in said


def test_a_mode_belongs_to_inductor(tmp_path: Path) -> None:
    said = problems(tmp_path, torch_compile_backend="eager", torch_compile_mode="reduce-overhead")
    assert "torch_compile_mode='reduce-overhead' is a mode of the backend 'inductor' alone" in said
    assert "torch_compile_backend is 'eager'" in said


def test_inductor_without_a_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "needs a C++ compiler" in problems(tmp_path, torch_compile=True)


# -- what was compiled, and why again ----------------------------------------------------------------------


class Words(nn.Module):
    """Takes sequences of any length."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(8, 16)
        self.head = nn.Linear(16, 3)
        self.breaks = breaks

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        mean = self.words(ids).mean(1)
        if self.breaks:
            torch._dynamo.graph_break()
        logits = self.head(mean)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class InOrder(Trainer):
    def _get_train_sampler(self) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def told(
    folder: Path, caplog: pytest.LogCaptureFixture, model: nn.Module, **options: Any
) -> tuple[Trainer, str]:
    """Trains on six lengths of sequences, and returns what was said."""
    lengths = [{"ids": torch.arange(3 + i // 4) % 8, "labels": i % 3} for i in range(24)]
    args = TrainingArguments(
        str(folder), num_train_epochs=1, per_device_train_batch_size=4, logging_steps=2, report_to="none",
        save_strategy="no", use_cpu=True, disable_tqdm=True, log_level="info", torch_compile_backend="eager",
        plugins={"torch_compile": options},
    )  # fmt: skip
    made = InOrder(model, args, train_dataset=lengths, eval_dataset=lengths[:4])
    with caplog.at_level(logging.INFO, logger="drivetrain"):
        made.train()
    said = [row.getMessage() for row in caplog.records if row.getMessage().startswith("torch.compile")]
    return made, "\n".join(said)


def test_sizes_are_compiled_for_at_once_from_the_second_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, said = told(tmp_path, caplog, Words())
    assert "torch.compile: 2 compiled, 1 of them again, 0 graph breaks, in " in said
    assert "are 6 updates, and what else was due" in said
    assert "compiled again: forward (test_torch_compile.py:" in said
    assert "tensor 'ids' size mismatch at index 1. expected 3, actual 4" in said
    assert made.run.figures["compile_seconds"] > 0
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="drivetrain"):
        made.evaluate()
    assert "torch.compile: 1 compiled, 1 of them again" in caplog.text  # without gradients


def test_dynamic_true_compiles_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, said = told(tmp_path, caplog, Words(), dynamic=True)
    assert "torch.compile: 1 compiled, 0 of them again" in said


def test_the_limit_of_recompilations_is_a_warning_with_the_cure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = torch._dynamo.config.recompile_limit
    made, said = told(tmp_path / "limited", caplog, Words(), dynamic=False, recompile_limit=3)
    assert "torch.compile: 3 compiled, 2 of them again" in said
    assert "compiled again, 2 times of this kind: forward" in said
    assert "torch.compile has compiled forward (test_torch_compile.py:" in said
    assert "plugins={'torch_compile': {'dynamic': True}}" in said
    assert [row.levelno for row in caplog.records if "as often as" in row.getMessage()] == [logging.WARNING]
    assert torch._dynamo.config.recompile_limit == limit
    other, _ = told(tmp_path / "unlimited", caplog, Words())  # the last batches ran uncompiled
    assert losses(made) == pytest.approx(losses(other), rel=1e-5)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # torch's own look at what it resumes with
def test_graph_breaks_are_counted_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, said = told(tmp_path / "broken", caplog, Words(breaks=True), dynamic=True)
    assert "1 graph breaks" in said
    assert "graph broken off: forward (test_torch_compile.py:" in said
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        told(tmp_path / "full", caplog, Words(breaks=True), fullgraph=True)


def test_nothing_listens_after_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from torch._dynamo.callback import callback_handler as handler

    before = len(handler.start_callbacks), len(handler.end_callbacks)
    told(tmp_path, caplog, Words())
    assert (len(handler.start_callbacks), len(handler.end_callbacks)) == before


@pytest.mark.parametrize("options", [{"dynamic": "yes"}, {"recompile_limit": 0}])
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    said = problems(tmp_path, torch_compile_backend="eager", plugins={"torch_compile": options})
    assert "The options of transform 'torch_compile' are wrong: option " in said


class Sequential(Trainer):
    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        outputs = model(inputs["input"])
        loss = nn.functional.cross_entropy(outputs, inputs["labels"])
        return (loss, {"logits": outputs}) if return_outputs else loss


def test_a_model_that_is_torchs_own_is_compiled_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    data = [{"input": row["x"], "labels": row["labels"]} for row in rows(16)]
    args = TrainingArguments(
        str(tmp_path), max_steps=2, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        log_level="info", torch_compile_backend="eager", remove_unused_columns=False,
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="drivetrain"):
        Sequential(model, args, train_dataset=data).train()
    assert "torch.compile: 1 compiled" in caplog.text
    assert "forward" not in vars(model)


# -- inductor ------------------------------------------------------------------------------------------------

inductor = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor on a CPU needs g++")


@inductor
@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_inductor_trains_evaluates_and_predicts_as_the_plain_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    plain = trainer(tmp_path / "plain")
    plain.train()
    compiled = trainer(tmp_path / "compiled", torch_compile=True)
    compiled.train()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
    assert compiled.run.figures["compile_seconds"] > 0
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    assert compiled.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-4)
    torch.testing.assert_close(
        compiled.predict(rows()).predictions, plain.predict(rows()).predictions, rtol=1e-4, atol=1e-5
    )


@pytest.mark.soak
@inductor
@pytest.mark.filterwarnings("ignore")  # inductor's own
@pytest.mark.parametrize("mode", sorted(torch._inductor.list_mode_options()))
def test_every_mode_of_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    plain = trainer(tmp_path / "plain")
    plain.train()
    compiled = trainer(tmp_path / "compiled", torch_compile_mode=mode)
    compiled.train()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
