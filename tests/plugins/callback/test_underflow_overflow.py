"""`debug="underflow_overflow"`: models in which NaN or infinity begins at a place that is known."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.toy import rows, trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from drivetrain import ConfigurationError, DrivetrainError, NonFiniteError


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
class Made:
    hidden: Tensor
    more: dict[str, Any]


class Block(nn.Module):
    """A linear layer, a product with `scale`, which may be anything, and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.act = nn.Tanh()
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.linear(x) * self.scale)


class Stretch(nn.Module):
    """What a module gives: its input, times a number that a test sets; in the form that a test asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.by = 1.0
        self.form = "tensor"

    def forward(self, x: Tensor) -> Any:
        y = x * self.by
        if self.form == "tuple":
            return x, (x, y)
        if self.form == "dict":
            return {"x": x, "y": [y]}
        if self.form == "named":
            return Pair(x, y)
        return Made(x, {"y": y}) if self.form == "dataclass" else y


def last_of(value: Any, form: str) -> Tensor:
    """The stretched tensor, out of its form."""
    return {
        "tuple": lambda: value[1][1],
        "dict": lambda: value["y"][0],
        "named": lambda: value.right,
        "dataclass": lambda: value.more["y"],
        "tensor": lambda: value,
    }[form]()


class Faulty(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float) -> Tensor:  # type: ignore[override]
        ctx.by = by
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.by, None


class BadBackward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return Faulty.apply(x, self.by)  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self, checkpointed: str = "") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.stretch = Stretch()
        self.bad = BadBackward()
        self.head = nn.Linear(8, 8, bias=False)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.head.weight
        self.checkpointed = checkpointed
        self.between = 1.0
        self.loss_by = 1.0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            if self.checkpointed:
                x = checkpoint(block, x, use_reentrant=self.checkpointed == "reentrant")
            else:
                x = block(x)
        x = last_of(self.stretch(x), self.stretch.form)
        x = self.bad(x) * self.between
        logits = self.tied(self.head(x))
        return {"loss": nn.functional.cross_entropy(logits, labels) * self.loss_by, "logits": logits}


class At:
    """A callback that changes the model before an update."""

    def __init__(self, step: int, change: Any) -> None:
        self.step, self.change = step, change

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.change(model)


def run(folder: Path, change: Any, model: nn.Module | None = None, **values: Any) -> str:
    """Trains until the fault, which a change before the third update makes, is found; gives the error's sentence."""
    made = trainer(
        folder,
        model=model if model is not None else Net(),
        callbacks=[At(2, change)],
        **{
            "debug": "underflow_overflow",
            "max_steps": 5,
            "save_strategy": "no",
            "logging_steps": 1,
            **values,
        },
    )
    with pytest.raises(NonFiniteError) as caught:
        made.train()
    assert not [found for found in made.model.modules() if found._forward_hooks or found._forward_pre_hooks]
    return str(caught.value)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda model: setattr(model.stretch, "by", INF),
            "Infinity began in stretch (Stretch): in its output, from inputs and weights that are finite, update 3, "
            "micro-batch 2.",
        ),
        (
            lambda model: setattr(model.blocks[1], "scale", NAN),
            "NaN is in input[0] of blocks.1.act (Tanh), and no module gave it: it began in the forward of blocks.1",
        ),
        (
            lambda model: model.blocks[2].linear.weight.data[1].fill_(INF),
            "Infinity is in the weight blocks.2.linear.weight, update 3",
        ),
        (
            lambda model: setattr(model, "between", NAN),
            "NaN is in input[0] of head (Linear), and no module gave it: it began in the forward of the model",
        ),
        (
            lambda model: setattr(model, "loss_by", INF),
            "Infinity began in the model (Net): in its output.loss, from inputs and weights that are finite",
        ),
        (
            lambda model: setattr(model.bad, "by", NAN),
            "NaN began in the backward pass of bad (BadBackward): in the gradient of its input[0], which is the output "
            "of stretch (Stretch), while the gradient that came to its own output was finite, update 3",
        ),
        (
            lambda model: model.head.weight.data.fill_(3e38),
            " began in head (Linear): in its output, from inputs and weights that are finite",
        ),
    ],
    ids=["output", "between modules", "weight", "in the model", "loss", "backward", "overflow"],
)
def test_where_it_began(tmp_path: Path, change: Any, said: str) -> None:
    sentence = run(tmp_path, change)
    assert said in sentence
    report = (tmp_path / "underflow_overflow-rank0.txt").read_text()
    assert "here it began" in report
    assert sentence.startswith(report.splitlines()[0].rstrip()[:60])


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("tuple", "output[1][1]"),
        ("dict", "output.y[0]"),
        ("named", "output.right"),
        ("dataclass", "output.more.y"),
    ],
)
def test_outputs_of_every_form(tmp_path: Path, form: str, name: str) -> None:
    model = Net()
    model.stretch.form = form
    assert f"began in stretch (Stretch): in its {name}," in run(
        tmp_path, lambda model: setattr(model.stretch, "by", NAN), model
    )


@pytest.mark.parametrize("way", ["reentrant", "not reentrant"])
def test_gradient_checkpointing_doubles_no_frame(
    tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the forward and in the backward of a block that is recomputed; a call is shown once all the same."""
    monkeypatch.setenv("COLUMNS", "160")
    data = rows(16)
    for row in data:
        row["x"].requires_grad_()  # without which a reentrant checkpoint has no gradient
    model = Net(way)
    model.blocks[1].act = BadBackward()
    sentence = run(
        tmp_path,
        lambda model: setattr(model.blocks[1].act, "by", NAN),
        model,
        data=data,
        plugins={"underflow_overflow": {"trace_batch_nums": [0]}},
    )
    assert (
        "NaN began in the backward pass of blocks.1.act (BadBackward): in the gradient of its input[0]"
        in sentence
    )
    printed = capsys.readouterr().err.split("as trace_batch_nums asks.")[1].split("began in")[0]
    forward, backward = printed.split("micro-batch 0, backward")
    modules = [name for name, _ in model.named_modules()]
    for name in modules:
        if name and name != "blocks":
            assert forward.count(f" {name} (") == 1, name
    assert backward.count("gradient of the weight weight, blocks.1.linear (Linear)") == 1
    model = Net(way)
    model.blocks[2].act = Stretch()
    sentence = run(tmp_path, lambda model: setattr(model.blocks[2].act, "by", NAN), model, data=data)
    assert "NaN began in blocks.2.act (Stretch): in its output" in sentence


def test_the_batch_is_to_blame(tmp_path: Path) -> None:
    data = rows(40)
    data[17]["x"] = torch.full((8,), NAN)
    sentence = run(tmp_path, lambda _: None, data=data, num_train_epochs=1)
    assert sentence.startswith("NaN is in the batch: input.x of the model (Net), update ")


def test_the_update_is_to_blame(tmp_path: Path) -> None:
    """Adam without its epsilon divides a gradient of zero by zero."""
    model = Net()
    model.blocks[0].scale = 0.0
    sentence = run(tmp_path, lambda _: None, model, adam_epsilon=0.0, lr_scheduler_type="constant")
    assert re.search(
        r"NaN began in the optimizer's update \(AdamW\): in the weight blocks.0.linear.weight, from gradients that are "
        r"finite and of norm \d.\d\de.\d\d; the learning rate of its group is 1.00e-02, update \d, micro-batch \d",
        sentence,
    )


def test_the_norm_overflows(tmp_path: Path) -> None:
    """Finite gradients, whose squares are not."""
    sentence = run(tmp_path, lambda model: setattr(model.bad, "by", 1e25), max_grad_norm=1.0)
    assert (
        "The norm of the gradients is inf, though each of them is finite: their squares overflow, or their sum over "
        "micro-batches does, update 3, micro-batch 2."
    ) in sentence


def test_a_loss_from_outside_of_the_model(tmp_path: Path) -> None:
    from drivetrain import Trainer

    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            logits = model(**inputs)["logits"]
            loss = logits.pow(2).mean()
            if self.state.global_step == 2:
                loss = torch.sqrt(
                    (logits - logits.detach()).pow(2)
                ).mean()  # whose derivative at 0 is not a number
            return loss

    sentence = run(tmp_path, lambda _: None, cls=Own)
    assert (
        "NaN began in the backward pass of the loss: in the gradient of output.logits of the model (Net)"
        in sentence
        or "NaN began in the backward pass of what the model computes from the output of tied (Linear)"
        in sentence
    )


def test_micro_batches_are_counted_and_evaluations_are_not(tmp_path: Path) -> None:
    sentence = run(
        tmp_path,
        lambda model: setattr(model.stretch, "by", NAN),
        gradient_accumulation_steps=3,
        evaluation_strategy="steps",
        eval_steps=1,
    )
    assert "update 3, micro-batch 6." in sentence


def test_bf16(tmp_path: Path) -> None:
    """Autocast: the product that overflows is in bfloat16, the model's own output in float32."""
    sentence = run(tmp_path, lambda model: model.head.weight.data.mul_(1e38), bf16=True)
    assert " began in " in sentence
    report = (tmp_path / "underflow_overflow-rank0.txt").read_text()
    assert "bfloat16" in report


class Scaled:
    """Half precision's loss scale on a CPU, in single precision."""

    name = "scaled"

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def build(self) -> Any:
        from contextlib import nullcontext

        from drivetrain import PrecisionPolicy, hookimpl

        scale = self.scale

        class Precision:
            policy = PrecisionPolicy("scaled", loss_scale={"init_scale": scale, "growth_interval": 100})

            def setup(self, run: Any) -> None: ...

            def autocast(self, device_type: str) -> Any:
                return nullcontext()

            def close(self) -> None: ...

        class Plugin:
            name = "scaled"

            @hookimpl
            def make_precision(self, run: Any) -> Any:
                return Precision()

        return Plugin()


def test_an_overflow_under_a_loss_scale_is_no_fault(tmp_path: Path) -> None:
    """A scale that is too large makes gradients infinite: the scaler skips, and lowers it, and the run goes on."""
    model = Net()
    model.bad.by = 1e4
    made = trainer(
        tmp_path,
        model=model,
        plugins=[Scaled(2.0**127).build()],
        debug="underflow_overflow",
        max_steps=4,
        save_strategy="no",
    )
    made.train()
    assert made.state.global_step == 4
    assert made.lr_scheduler.last_epoch < 4  # some were skipped
    sentence = run(tmp_path, lambda model: setattr(model.stretch, "by", NAN), plugins=[Scaled(2.0).build()])
    assert "NaN began in stretch (Stretch): in its output" in sentence
    sentence = run(tmp_path, lambda model: setattr(model.bad, "by", NAN), plugins=[Scaled(1.0).build()])
    assert "NaN began in the backward pass of bad (BadBackward)" in sentence


def test_traced_batches_are_printed_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"trace_batch_nums": [1, 2], "abort_after_batch_num": 2, "max_frames_to_save": 3}
    made = trainer(
        tmp_path,
        model=Net(),
        callbacks=[At(2, lambda model: setattr(model.stretch, "by", NAN))],
        plugins={"underflow_overflow": options},
        max_steps=5,
        save_strategy="no",
        debug="underflow_overflow",
    )
    with pytest.raises(DrivetrainError, match="ends after micro-batch 2, as abort_after_batch_num=2"):
        made.train()
    printed = capsys.readouterr().err
    assert [f"Micro-batch {number}, as trace" in printed for number in range(4)] == [False, True, True, False]
    assert printed.count("the model (Net)") >= 2
    assert "nan" in printed.split("Micro-batch 2")[1]
    assert "nan" not in printed.split("Micro-batch 2")[0]


def test_the_report_has_so_many_frames(tmp_path: Path) -> None:
    for count in (1, 4):
        run(
            tmp_path,
            lambda model: setattr(model.stretch, "by", NAN),
            plugins={"underflow_overflow": {"max_frames_to_save": count}},
        )
        report = (tmp_path / "underflow_overflow-rank0.txt").read_text()
        assert sum("(" in line and "began" not in line for line in report.splitlines()) == count


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(8, 8)
        self.mask = nn.Softmax(dim=-1)
        self.maker = nn.Identity()

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        shut = torch.zeros(8).index_fill(0, torch.tensor([3]), -INF)
        return nn.functional.cross_entropy(self.mask(self.maker(self.scores(x) + shut)), labels), x


def test_a_mask_is_no_fault(tmp_path: Path) -> None:
    """Negative infinity that goes into a module; what a module gives may be infinite where it is told so."""
    sentence = run(tmp_path, lambda _: None, Masked())
    assert "Infinity began in maker (Identity): in its output" in sentence
    values = {"max_steps": 3, "save_strategy": "no", "debug": ["underflow_overflow"]}
    made = trainer(tmp_path, model=Masked(), plugins={"underflow_overflow": {"ignore": ["mak*"]}}, **values)
    made.train()
    assert made.state.global_step == 3


def test_an_error_of_the_models_own_comes_after_the_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Strict(Net):
        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            y = last_of(self.stretch(x), "tensor")
            if not bool(torch.isfinite(y).all()):
                raise RuntimeError("not with me")
            return super().forward(x, labels)

    made = trainer(
        tmp_path,
        model=Strict(),
        callbacks=[At(2, lambda model: setattr(model.stretch, "by", NAN))],
        max_steps=5,
        save_strategy="no",
        debug="underflow_overflow",
    )
    with pytest.raises(RuntimeError, match="not with me"):
        made.train()
    assert "Before this error: NaN began in stretch (Stretch): in its output" in caplog.text
    assert "here it began" in capsys.readouterr().err


def test_the_last_update_is_saved_and_gone_on_from(tmp_path: Path) -> None:
    """The fault is found before the update that it would spoil."""
    run(
        tmp_path,
        lambda model: setattr(model.bad, "by", NAN),
        save_strategy="steps",
        save_steps=100,
        save_on_exception=True,
    )
    again = trainer(tmp_path, model=Net(), max_steps=5, save_strategy="no", debug="underflow_overflow")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 5
    assert all(bool(torch.isfinite(weight).all()) for weight in again.model.parameters())


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'underflow_overflow'.*'torch_compile' exclude each other"):
        trainer(tmp_path, debug="underflow_overflow", torch_compile=True, max_steps=1).train()
    with pytest.raises(ConfigurationError, match="max_frames_to_save=0 must be at least 1"):
        trainer(
            tmp_path, debug="underflow_overflow", plugins={"underflow_overflow": {"max_frames_to_save": 0}}
        )


def test_the_spellings_of_4_34_0(tmp_path: Path) -> None:
    from drivetrain.arguments.enums import DebugOption

    for spelled in ("underflow_overflow", ["underflow_overflow"], [DebugOption.UNDERFLOW_OVERFLOW]):
        made = trainer(tmp_path, debug=spelled)
        assert [active.name for active in made.run.plan.active if active.name == "underflow_overflow"]
