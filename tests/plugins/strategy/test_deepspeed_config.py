"""DeepSpeed's configuration: every "auto" filled, every contradiction named, nothing that cannot be had let through."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain import ConfigurationError
from drivetrain.arguments import TrainingArguments
from drivetrain.slots import OptimizerFactory
from drivetrain_plugins.strategy.deepspeed import locks
from drivetrain_plugins.strategy.deepspeed.configuration import Configuration, read
from drivetrain_plugins.strategy.deepspeed.elementwise import check_element_wise
from drivetrain_plugins.strategy.deepspeed.filling import fill_from_arguments, fill_from_run
from drivetrain_plugins.strategy.deepspeed.known import NAMES
from drivetrain_plugins.strategy.deepspeed.loss_scale import LossScale
from drivetrain_plugins.strategy.deepspeed.probe import problems
from drivetrain_plugins.strategy.deepspeed.unsupported import inert


def args_of(tmp_path: Path, **settings: Any) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), **{"use_cpu": True, "report_to": "none", **settings})


ALL_AUTO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": "auto",
            "warmup_max_lr": "auto",
            "warmup_num_steps": "auto",
            "total_num_steps": "auto",
        },
    },
    "zero_optimization": {
        "stage": 3,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": "auto",
    },
}


def test_every_auto_is_filled(tmp_path: Path) -> None:
    args = args_of(
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        max_grad_norm=0.7,
        learning_rate=1e-3,
        adam_beta2=0.99,
        weight_decay=0.1,
        warmup_ratio=0.1,
        bf16=True,
    )
    config = read(ALL_AUTO)
    model = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=16))
    assert fill_from_arguments(config, args, world_size=2) == []
    assert config.get("train_batch_size") == 24
    assert fill_from_run(config, args, model, max_steps=50, batch_size=4, accumulation=3) == []
    assert list(config.autos()) == []
    assert config.content == {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.7,
        # the engine's own half precision is never asked for by "auto": bf16=True is autocast everywhere
        "bf16": {"enabled": False},
        "fp16": {"enabled": False, "loss_scale": 0},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 1e-3, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1},
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": 0,
                "warmup_max_lr": 1e-3,
                "warmup_num_steps": 5,
                "total_num_steps": 50,
            },
        },
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 256,
            "stage3_prefetch_bucket_size": 230,
            "stage3_param_persistence_threshold": 160,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }
    assert ALL_AUTO["train_batch_size"] == "auto"  # what was given stays as it is


def test_clipping_is_always_written(tmp_path: Path) -> None:
    """This DeepSpeed clips at 1.0 where nothing is said."""
    for norm, written in ((0.5, 0.5), (0.0, 0.0)):
        config = read({"zero_optimization": {"stage": 1}})
        assert fill_from_arguments(config, args_of(tmp_path, max_grad_norm=norm), 1) == []
        assert config.get("gradient_clipping") == written


def test_contradictions_name_both_and_all_of_them(tmp_path: Path) -> None:
    given = {
        "train_batch_size": 100,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 7,
        "gradient_clipping": 3,
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 0.5, "betas": [0.8, 0.9], "eps": 1, "weight_decay": 2},
        },
        "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 0.2}},
        "bf16": {"enabled": False},
    }
    found = fill_from_arguments(read(given), args_of(tmp_path, bf16=True), 2)
    cure = ": write 'auto' there, or make the two equal."
    assert found == [
        f"deepspeed sets {line}{cure}"
        for line in (
            "train_micro_batch_size_per_gpu=4, but per_device_train_batch_size=8",
            "gradient_accumulation_steps=7, but gradient_accumulation_steps=1",
            "train_batch_size=100, but per_device_train_batch_size * gradient_accumulation_steps * processes is 16",
            "gradient_clipping=3, but max_grad_norm=1.0",
            "optimizer.params.lr=0.5, but learning_rate=5e-05",
            "optimizer.params.weight_decay=2, but weight_decay=0.0",
            "optimizer.params.betas=[0.8, 0.9], but adam_beta1 and adam_beta2 is [0.9, 0.999]",
            "optimizer.params.eps=1, but adam_epsilon=1e-08",
            "scheduler.params.warmup_max_lr=0.2, but learning_rate=5e-05",
            "bf16.enabled=False, but bf16=True",
        )
    ]


def test_what_agrees_is_no_contradiction(tmp_path: Path) -> None:
    given = {
        "train_batch_size": 16,
        "gradient_clipping": 1,
        "optimizer": {"type": "Adam", "params": {"lr": 5e-5, "betas": (0.9, 0.999)}},
    }
    assert fill_from_arguments(read(given), args_of(tmp_path), 2) == []


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        ({"zero_optimization": {"stage": 4}}, {}, "zero_optimization.stage must be 0, 1, 2 or 3, not 4."),
        ({"optimizer": {}}, {}, "'optimizer' must name its 'type'."),
        ({"scheduler": 3}, {}, "'scheduler' must be a dict, not 3."),
        ({"somewhere": {"deep": "auto"}}, {}, "nothing fills the 'auto' of somewhere.deep; write a value"),
        (
            {"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}},
            {},
            "fp16.enabled=true needs a CUDA device, and this run is on the CPU. Use bf16=True",
        ),
        ({"bf16": {"enabled": True}}, {}, "bf16.enabled=true needs zero_optimization.stage 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            {},
            "offload_param.device='nvme' is not there yet: use 'cpu'",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            {},
            "offload_param needs zero_optimization.stage 3, and this is 2.",
        ),
        ({"elasticity": {"enabled": True}}, {}, "elasticity cannot be used here"),
        ({"tensor_parallel": {"autotp_size": 2}}, {}, "tensor_parallel cannot be used here"),
        ({"optimizer": {"type": "Lamb"}}, {}, "Lamb does not work element by element"),
        ({"amp": {"enabled": True}}, {}, "amp.enabled is Apex's mixed precision"),
        (
            {"optimizer": {"type": "AdamW"}},
            {"optim": "sgd"},
            "sets optimizer.type='AdamW', but optim='sgd': take the block 'optimizer' out",
        ),
        (
            {"scheduler": {"type": "WarmupLR"}},
            {"lr_scheduler_type": "cosine"},
            "sets scheduler.type='WarmupLR', but lr_scheduler_type='cosine'",
        ),
        (
            {"zero_optimisation": {"stage": 1}},
            {},
            "deepspeed has no option 'zero_optimisation'. Did you mean 'zero_optimization'?",
        ),
        (
            {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}, "fp16": {"enabled": True}},
            {},
            "sets both bf16.enabled and fp16.enabled: keep one",
        ),
    ],
)
def test_what_cannot_be_had_is_said(tmp_path: Path, content: Any, settings: Any, said: str) -> None:
    found = problems(args_of(tmp_path, deepspeed=content, **settings))
    assert any(said in line for line in found), found


def test_a_name_like_none_is_said() -> None:
    """A later DeepSpeed may know it, so it is no error."""
    (line,) = inert(Configuration({"quux": 1, "zero_optimization": {"stage": 1}}))
    assert line.startswith("deepspeed: quux is not known here")


def test_the_names_are_deepspeeds() -> None:
    """What its reader knows by constants of its own is known here too."""
    reader = pytest.importorskip("deepspeed.runtime.config")
    source = inspect.getsource(reader)
    read = re.findall(r"get_scalar_param\(param_dict, ([A-Z_]+)", source)
    assert len(read) > 10
    assert {getattr(reader, name) for name in read} <= NAMES


def test_a_scheduler_by_both_names_is_one(tmp_path: Path) -> None:
    args = args_of(
        tmp_path, deepspeed={"scheduler": {"type": "WarmupLR"}}, lr_scheduler_type="constant_with_warmup"
    )
    assert problems(args) == []


def test_hidden_size_is_needed_where_it_is_asked_for(tmp_path: Path) -> None:
    config = read({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "stage3_x": "auto"}})
    assert fill_from_arguments(config, args_of(tmp_path), 1) == []
    assert config.get("zero_optimization.stage3_x") is None  # of another stage
    (said,) = fill_from_run(config, args_of(tmp_path), torch.nn.Linear(2, 2), 5, 8, 1)
    assert said == (
        "deepspeed: the 'auto' of zero_optimization.reduce_bucket_size is filled from the model's config.hidden_size, "
        "which Linear does not have; write a number there."
    )


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"bfloat16": {"enabled": True}, "zero_optimization": {"stage": 1}}))
    assert read(str(path)).half == "bf16"
    path.write_text("{")
    with pytest.raises(ConfigurationError, match=r"deepspeed='.*ds\.json' is not valid JSON"):
        read(str(path))
    path.write_text("[]")
    with pytest.raises(ConfigurationError, match="must hold a JSON object"):
        read(str(path))
    assert read(None).stage == 2


def test_a_lock_of_a_killed_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    names = locks.operators(
        Configuration(
            {
                "optimizer": {"type": "AdamW"},
                "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
            }
        )
    )
    assert names == ["cpu_adam"]
    assert list(locks.stale(names)) == []
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    assert list(locks.stale(names)) == []  # somebody compiles at this moment
    (said,) = locks.stale(names, now=time.time() + 2 * locks.STALE_AFTER)
    assert str(lock) in said
    assert f"remove the folder {lock.parent}" in said


def test_only_operators_that_are_compiled_have_locks() -> None:
    assert locks.operators(Configuration({"optimizer": {"type": "AdamW"}})) == ["fused_adam"]
    torchs = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}
    assert locks.operators(Configuration(torchs)) == []
    assert locks.operators(Configuration({})) == []


class Normalising(torch.optim.Optimizer):
    """A trust ratio, as LAMB has: the update depends on the whole parameter's norm."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(p.grad / p.grad.norm(), alpha=group["lr"])


@pytest.mark.parametrize(
    ("cls", "kwargs", "fits"),
    [
        (torch.optim.AdamW, {"lr": 0.0, "fused": True}, True),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, True),
        (torch.optim.RMSprop, {"lr": 0.1, "centered": True}, True),
        (torch.optim.Adagrad, {"lr": 0.1}, True),
        (torch.optim.Adafactor, {"lr": 0.1}, False),
        (torch.optim.Muon, {"lr": 0.1}, False),
        (Normalising, {"lr": 0.1}, False),
    ],
)
def test_optimizers_are_tried_out(cls: Any, kwargs: Any, fits: bool) -> None:
    model = torch.nn.Linear(6, 5, bias=cls is not torch.optim.Muon)
    for factory in (
        OptimizerFactory(cls, kwargs),
        OptimizerFactory(cls, finished=cls(model.parameters(), **kwargs)),
    ):
        groups = factory.build(model).param_groups
        if fits:
            check_element_wise(factory, groups, 2)
        else:
            with pytest.raises(ConfigurationError, match=f"{cls.__name__} does not work element by element"):
                check_element_wise(factory, groups, 2)


def test_the_loss_scale_is_that_of_torch() -> None:
    """Its numbers and its state are those of torch's scaler, through good updates and overflows."""
    ours = LossScale.of({"init_scale": 256.0, "growth_interval": 2}, Configuration({}))
    torchs = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    for good in (True, True, True, False, True, True, False, False, True):
        loss = torchs.scale((parameter * (1.0 if good else float("inf"))).sum())
        loss.backward()
        torchs.step(optimizer)
        torchs.update()
        optimizer.zero_grad()
        ours.update(good)
        assert ours.state_dict() == torchs.state_dict()
    fixed = LossScale.of({}, Configuration({"fp16": {"loss_scale": 128, "loss_scale_window": 5}}))
    fixed.update(False)
    assert fixed.scale == 128


def test_the_info_is_light() -> None:
    code = (
        "import sys\n"
        "from drivetrain_plugins.strategy.deepspeed.info import DEEPSPEED\n"
        "print([name for name in ('torch', 'deepspeed') if name in sys.modules], DEEPSPEED.shards)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[] True"
