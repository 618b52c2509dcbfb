"""float8 through torchao: the real conversion, with products that are emulated where there are no units for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drivetrain import ConfigurationError, Trainer, TrainingArguments, hookimpl

pytest.importorskip("torchao", reason="the extra 'torchao' is not installed")

# torchao speaks of its own use of torch.
pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(32, 32)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.out = nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)  # whose rows are no multiple of 16

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.out(self.body(self.words(ids))).mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"ids": torch.randint(0, 32, (6,), generator=generator), "labels": i % 3} for i in range(64)]


class Looks:
    name = "looks"

    def __init__(self) -> None:
        self.converted: list[str] = []

    @hookimpl
    def on_train_begin(self, run: Any) -> None:
        self.converted = [
            name for name, module in run.model.named_modules() if type(module).__name__ == "Float8Linear"
        ]


def trainer(folder: Path, model: nn.Module | None = None, objects: Any = (), **arguments: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": 20, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "logging_steps": 5,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_steps": 10,
    }  # fmt: skip
    args = TrainingArguments(str(folder), **{**settings, **arguments})
    return Trainer(model or Net(), args, train_dataset=rows(), eval_dataset=rows(), plugins=list(objects))


def emulated(**options: Any) -> dict[str, Any]:
    return {"precision": "float8", "plugins": {"float8": {"emulate": True, **options}}}


def losses(made: Trainer) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_trains_evaluates_and_goes_on_near_float32(tmp_path: Path, recipe: str) -> None:
    plain = trainer(tmp_path / "plain")
    plain.train()
    model, looks = Net(), Looks()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    parameters = [id(parameter) for parameter in model.parameters()]
    made = trainer(tmp_path / "made", model, [looks], **emulated(recipe=recipe))
    calls: list[int] = []
    model.out.register_forward_hook(lambda *_: calls.append(1))  # hooks stay where they were hung
    made.train()
    assert looks.converted == ["body.0", "body.2", "out"]
    assert len(calls) == 20
    assert losses(made) == pytest.approx(losses(plain), rel=0.02)
    assert losses(made) != losses(plain)
    assert made.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=0.02)
    # The model is itself again: its own layers, over its own parameters.
    assert [module for module in model.modules() if isinstance(module, nn.Linear)] == linears
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert {type(module) for module in linears} == {nn.Linear}
    if recipe == "tensorwise":
        resumed = trainer(tmp_path / "made", Net(), **emulated(recipe=recipe))
        resumed.train(resume_from_checkpoint=str(tmp_path / "made" / "checkpoint-10"))
        for name, tensor in made.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_layers_can_be_left_out_and_none_is_an_error(tmp_path: Path) -> None:
    looks = Looks()
    trainer(tmp_path, objects=[looks], max_steps=1, **emulated(skip=["body.*"])).train()
    assert looks.converted == ["out"]
    with pytest.raises(
        ConfigurationError, match="finds no linear layer in Net whose sizes are multiples of 16"
    ):
        trainer(tmp_path, **emulated(skip=["*"])).train()


def test_what_is_missing_here_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path, precision="float8").train()
    assert str(caught.value) == (
        "precision='float8' needs a CUDA device of the Ada generation or later, and use_cpu=True keeps this run on the "
        "CPU. Use bf16=True, or for a test plugins={'float8': {'emulate': True}}."
    )


@pytest.mark.parametrize("options", [{"recipe": "columnwise"}, {"skip": "head"}])
def test_wrong_options(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="The options of precision 'float8' are wrong: option "):
        trainer(tmp_path, **emulated(**options)).train()


def test_strategies_that_are_not_tried_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="Precision 'float8' and strategy 'deepspeed' exclude each other"
    ):
        trainer(tmp_path, strategy="deepspeed", **emulated()).train()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs a CUDA device with float8 units",
)
def test_on_a_gpu(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", use_cpu=False)
    plain.train()
    made = trainer(tmp_path / "made", use_cpu=False, precision="float8")
    made.train()
    assert losses(made) == pytest.approx(losses(plain), rel=0.05)
