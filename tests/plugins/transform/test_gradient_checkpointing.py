"""Gradient checkpointing: equal gradients, more forwards, less memory, and nothing left behind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drivetrain import ConfigurationError, Trainer, TrainingArguments, hookimpl
from drivetrain_plugins.transform.gradient_checkpointing import GradientCheckpointingOptions, repeated_blocks


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)
        self.calls = 0

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.calls += 1
        return x + scale * self.drop(self.outer(torch.relu(self.inner(self.norm(x)))))


class Deep(nn.Module):
    def __init__(self, depth: int = 4, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(2))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        for block in self.blocks:
            x = block(x, scale=0.5)
        logits = self.heads[0](x) + self.heads[1](x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(count: int = 16, width: int = 8) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    return [{"x": torch.randn(width), "labels": i % 2} for i in range(count)]


def trainer(folder: Path, model: nn.Module, data: Any = None, **arguments: Any) -> Trainer:
    args = TrainingArguments(
        str(folder),
        **{
            "num_train_epochs": 1,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        },
    )
    data = rows() if data is None else data
    return Trainer(model, args, train_dataset=data, eval_dataset=data)


def losses(made: Trainer) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


def test_repeated_blocks_are_found() -> None:
    assert list(repeated_blocks(Deep())) == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    assert list(repeated_blocks(nn.Sequential(encoder))) == ["0.layers.0", "0.layers.1", "0.layers.2"]
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == {}


def test_the_blocks_run_twice_and_everything_else_is_equal(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", Deep())
    plain.train()
    made = trainer(tmp_path / "checkpointed", Deep(), gradient_checkpointing=True)
    keys = list(made.model.state_dict())
    made.train()
    # Dropout too: the recomputation draws the numbers that the first pass drew.
    assert losses(made) == losses(plain)
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(made.model.state_dict()[name], tensor, rtol=0, atol=0)
    assert [block.calls for block in plain.model.blocks] == [2] * 4
    assert [block.calls for block in made.model.blocks] == [4] * 4
    assert list(made.model.state_dict()) == keys
    # Undone: an evaluation, or the user's own loop, runs each block once.
    assert all("forward" not in vars(block) for block in made.model.blocks)
    made.evaluate()
    assert [block.calls for block in made.model.blocks] == [6] * 4


def test_evaluation_within_training_recomputes_nothing(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, Deep(), gradient_checkpointing=True, evaluation_strategy="epoch", num_train_epochs=2
    )
    made.train()
    assert [block.calls for block in made.model.blocks] == [2 * (2 * 2 + 2)] * 4


def kept_bytes(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass, parameters left out."""
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x=x, labels=labels)["loss"]
    loss.backward()
    return sum(kept.values())


class Measures:
    """Measures what the model keeps, in the midst of training."""

    name = "measures"

    def __init__(self) -> None:
        self.kept = 0
        self.copied: nn.Module | None = None

    @hookimpl
    def on_train_begin(self, run: Any) -> None:
        run.model.train()
        self.kept = kept_bytes(run.model, torch.randn(64, 8), torch.zeros(64, dtype=torch.long))
        run.model.zero_grad()
        self.copied = copy.deepcopy(run.model)


def test_less_is_kept_for_the_backward_pass(tmp_path: Path) -> None:
    kept = {}
    for wanted in (False, True):
        measures = Measures()
        made = trainer(tmp_path / str(wanted), Deep(), gradient_checkpointing=wanted)
        made._plugins.append(measures)
        made.train()
        kept[wanted] = measures.kept
    assert kept[True] < kept[False] / 3


def test_a_copy_of_the_model_runs_its_own_weights(tmp_path: Path) -> None:
    measures = Measures()
    made = trainer(tmp_path, Deep(), gradient_checkpointing=True)
    made._plugins.append(measures)
    made.train()
    copied = measures.copied
    assert copied is not None
    calls = [block.calls for block in made.model.blocks]
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.train()
    assert not copied(x=torch.randn(3, 8))["logits"].any()
    assert [block.calls for block in made.model.blocks] == calls


def test_blocks_can_be_named(tmp_path: Path) -> None:
    options = {"gradient_checkpointing": {"blocks": ["blocks.[01]"]}}
    made = trainer(tmp_path, Deep(), gradient_checkpointing=True, plugins=options)
    made.train()
    assert [block.calls for block in made.model.blocks] == [4, 4, 2, 2]


def test_a_name_that_no_module_bears(tmp_path: Path) -> None:
    options = {"gradient_checkpointing": {"blocks": ["layers.*"]}}
    with pytest.raises(ConfigurationError, match=r"'layers\.\*'.*Its repeated blocks: blocks\.0"):
        trainer(tmp_path, Deep(), gradient_checkpointing=True, plugins=options).train()
    with pytest.raises(ValueError, match="list of patterns"):
        GradientCheckpointingOptions(blocks="layers")  # type: ignore[arg-type]


def test_a_model_without_blocks_is_told_so(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.cross_entropy(self.layer(x), labels)}

    with pytest.raises(ConfigurationError, match="no switch or repeated blocks in Flat: name its blocks"):
        trainer(tmp_path, Flat(), gradient_checkpointing=True).train()


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.layers(x[:, None, :])[:, 0])
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_together_with_compilation(tmp_path: Path) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.register_backend(counting, name="counting_blocks")
    plain = trainer(tmp_path / "plain", Encoder())
    plain.train()
    made = trainer(
        tmp_path / "both", Encoder(), gradient_checkpointing=True, torch_compile_backend="counting_blocks"
    )
    made.train()
    assert losses(made) == pytest.approx(losses(plain), rel=1e-5)
    # One graph of the whole model, with the blocks' recomputation in it.
    assert len(graphs) == 1
    assert sum("checkpoint" in str(node.target) for node in graphs[0].graph.nodes) == 3
    assert all("forward" not in vars(block) for block in made.model.layers.layers)


class Drops(nn.Module):
    """Its gradient shows the mask of the backward pass, its output that of the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mask() for _ in range(2))
        self.same: list[bool] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = [block(x) for block in self.blocks]
        return {"loss": outputs[0].sum() + outputs[1].sum(), "one": outputs[0], "other": outputs[1]}


class Mask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(torch.ones_like(x) * self.weight)


class Sees(Trainer):
    """Notes of each micro-batch whether forward and backward had one mask."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        loss, self.outputs = super().compute_loss(model, inputs, return_outputs=True)
        return loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super().training_step(model, inputs)
        for block, output in zip(self.model.blocks, ("one", "other"), strict=True):
            self.same.append(torch.equal(block.weight.grad, self.outputs[output].detach().sum(0)))
        return loss

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.same: list[bool] = []
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_dropout_has_one_mask_in_forward_and_backward(tmp_path: Path, backend: str | None) -> None:
    torch._dynamo.reset()
    args = TrainingArguments(
        str(tmp_path), max_steps=2, learning_rate=0.0, report_to="none", save_strategy="no", use_cpu=True,
        disable_tqdm=True, torch_compile_backend=backend, gradient_checkpointing=True,
        plugins={"gradient_checkpointing": {"blocks": ["blocks.*"]}},
    )  # fmt: skip
    made = Sees(Drops(), args, train_dataset=rows())
    made.train()
    assert made.same == [True] * 4


def test_a_backend_that_gives_dropout_another_mask_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, Deep(), gradient_checkpointing=True, torch_compile_backend="eager")
    with pytest.raises(
        ConfigurationError, match="gradients are wrong under dropout: with gradient_checkpointing=True"
    ):
        made.train()


def test_a_model_with_a_switch_uses_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, use_cache=True
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    data = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(8)]
    state: list[tuple[bool, bool]] = []

    class Looks:
        name = "looks"

        @hookimpl
        def on_step_end(self, run: Any) -> None:
            state.append((run.model.transformer.gradient_checkpointing, run.model.config.use_cache))

    plain = trainer(tmp_path / "plain", copy.deepcopy(model), data)
    plain.train()
    made = trainer(tmp_path / "switched", model, data, gradient_checkpointing=True)
    made._plugins.append(Looks())
    calls = []
    model.transformer.h[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    made.train()
    assert state == [(True, False)]
    assert len(calls) == 2  # one update, forward and recomputation
    assert not model.transformer.gradient_checkpointing
    assert model.config.use_cache is True
    assert losses(made) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_both_forms_of_a_models_switch_are_exact_with_dropout(tmp_path: Path, use_reentrant: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    data = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(16)]
    plain = trainer(tmp_path / "plain", copy.deepcopy(model), data)
    plain.train()
    options = {"gradient_checkpointing": {"use_reentrant": use_reentrant}}
    made = trainer(tmp_path / "made", model, data, gradient_checkpointing=True, plugins=options)
    calls = []
    model.transformer.h[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    made.train()
    # The older form runs without gradients at first, and with them again.
    assert calls == ([False, True] if use_reentrant else [True, True]) * 2
    for (
        name,
        tensor,
    ) in plain.model.state_dict().items():  # the head's weight, which is tied, sums in another order
        torch.testing.assert_close(made.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-5)


def test_the_older_form_is_for_a_switch_alone(tmp_path: Path) -> None:
    options = {"gradient_checkpointing": {"use_reentrant": True}}
    with pytest.raises(
        ConfigurationError, match="is for a model's own switch, and Deep has none: leave it out"
    ):
        trainer(tmp_path, Deep(), gradient_checkpointing=True, plugins=options).train()
    with pytest.raises(ValueError, match="give one of them"):
        GradientCheckpointingOptions(blocks=["blocks.*"], use_reentrant=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_a_gpu(tmp_path: Path) -> None:
    peaks = {}
    for wanted in (False, True):
        model = Deep(depth=16, width=256)
        made = trainer(
            tmp_path / str(wanted),
            model,
            rows(4096, 256),
            gradient_checkpointing=wanted,
            use_cpu=False,
            per_device_train_batch_size=4096,
        )
        torch.cuda.reset_peak_memory_stats()
        made.train()
        peaks[wanted] = torch.cuda.max_memory_allocated()
        del made, model
    assert peaks[True] < 0.6 * peaks[False]
