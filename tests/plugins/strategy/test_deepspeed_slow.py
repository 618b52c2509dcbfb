"""More of DeepSpeed: offload, its own optimizers and schedules, half precision, loss scales, its launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.launch import torchrun
from support.zero import SCRIPT, assert_is_zero, assert_same, launch, zero

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
AUTO = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
EPOCHS = {"save_strategy": "epoch"}


def adamw(**params: Any) -> dict[str, Any]:
    return {"type": "AdamW", "params": {**AUTO, **params}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deepspeed-slow")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    scenarios: list[dict[str, Any]] = [
        {"name": "base", "settings": EPOCHS},
        {"name": "bf16", "settings": {"bf16": True}},
        {"name": "sgd", "sgd": True, "times": 2},
        {"name": "frozen", "freeze": True},
        {"name": "adagrad", "settings": {"optim": "adagrad"}},
        {"name": "scaled", "scaled": True, "overflow": True, "settings": EPOCHS},
    ]
    return {name: ranks[0] for name, ranks in launch(folder, 1, scenarios).items()}


@pytest.fixture(scope="module")
def many(folder: Path, alone: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    base, scaled = (str(folder / name / "checkpoint-4") for name in ("base", "scaled"))
    both = {"offload_param": {"device": "cpu"}, **OFFLOAD}
    decay = {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto",
            "warmup_type": "linear",
        },
    }  # fmt: skip
    scenarios: list[dict[str, Any]] = [{"name": "offload-param", "settings": zero(3, both)}]
    for stage in (1, 2, 3):
        scenarios += [
            {"name": f"offload-{stage}", "settings": zero(stage, OFFLOAD)},
            {"name": f"offload-into-{stage}", "world": 1, "resume": base, "settings": zero(stage, OFFLOAD)},
            {"name": f"half-{stage}", "settings": {**zero(stage, bf16={"enabled": True}), **EPOCHS}},
            {"name": f"sgd-{stage}", "sgd": True, "times": 2, "settings": zero(stage)},
            {"name": f"frozen-{stage}", "freeze": True, "settings": zero(stage)},
            {"name": f"adagrad-{stage}", "settings": {"optim": "adagrad", **zero(stage)}},
        ]
    for stage in (0, 1, 2, 3):
        scenarios += [
            {"name": f"bf16-{stage}", "settings": {"bf16": True, **zero(stage, bf16={"enabled": "auto"})}},
            {"name": f"own-{stage}", "settings": zero(stage, optimizer=adamw(torch_adam=True))},
            {"name": f"scaled-{stage}", "scaled": True, "overflow": True, "settings": zero(stage)},
            {"name": f"scaled-into-{stage}", "scaled": True, "overflow": True, "world": 1, "resume": scaled,
             "settings": zero(stage)},
        ]  # fmt: skip
    scenarios.append({"name": "decay", "settings": {"warmup_steps": 2, **zero(2, scheduler=decay)}})
    return launch(folder, 2, scenarios)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.soak
def test_offload(stage: int, alone: dict[str, Any], many: dict[str, Any]) -> None:
    for name in (f"offload-{stage}", f"offload-into-{stage}"):
        assert_same(alone["base"], many[name])
        assert_is_zero(stage, many[name])


def test_offload_of_parameters(alone: dict[str, Any], many: dict[str, Any]) -> None:
    assert_same(alone["base"], many["offload-param"])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_its_own_optimizer_with_our_schedule(stage: int, alone: dict[str, Any], many: dict[str, Any]) -> None:
    assert_same(alone["base"], many[f"own-{stage}"])
    assert_is_zero(stage, many[f"own-{stage}"])


def test_its_own_schedule_with_our_optimizer(many: dict[str, Any]) -> None:
    """DeepSpeed's schedules lag behind by one update: the first is made at the smallest rate."""
    rates = [row["learning_rate"] for row in many["decay"][0]["history"] if "learning_rate" in row]
    peak, steps, warmup = 2e-2, 8, 2
    wanted = [peak * min(n / warmup, (steps - n) / (steps - warmup)) for n in range(steps)]
    assert rates == pytest.approx(wanted)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_is_autocast_over_single_precision(
    stage: int, alone: dict[str, Any], many: dict[str, Any]
) -> None:
    assert_same(alone["bf16"], many[f"bf16-{stage}"], tolerance=2e-2)
    assert many[f"bf16-{stage}"][0]["facts"]["dtype"] == "torch.float32"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_engines_own_half_precision(
    stage: int, folder: Path, alone: dict[str, Any], many: dict[str, Any]
) -> None:
    """Only where the configuration asks for it: weights are halved, the copies that are saved are not."""
    from safetensors.torch import load_file

    assert_same(alone["base"], many[f"half-{stage}"], tolerance=5e-2)
    assert many[f"half-{stage}"][0]["facts"]["dtype"] == "torch.bfloat16"
    weights = load_file(folder / f"half-{stage}" / "checkpoint-8" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    given_back = many[f"half-{stage}"][1]["weights"]
    assert torch.equal(given_back["first.weight"], weights["first.weight"])
    assert not torch.equal(weights["first.weight"], weights["first.weight"].bfloat16().float())


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", ["sgd", "frozen", "adagrad"])
def test_other_optimizers(name: str, stage: int, alone: dict[str, Any], many: dict[str, Any]) -> None:
    """One that was handed in, which a second train() goes on with; frozen weights; Adagrad's two groups."""
    assert_same(alone[name], many[f"{name}-{stage}"])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_loss_scale_and_an_overflow(stage: int, alone: dict[str, Any], many: dict[str, Any]) -> None:
    """The overflow skips the step and halves the scale; the learning rate waits; a resume knows the scale."""
    for name in (f"scaled-{stage}", f"scaled-into-{stage}"):
        assert_same(alone["scaled"], many[name])
        assert many[name][0]["facts"]["scale"] == 1024.0  # halved once, doubled once


def test_a_rank_that_fails_takes_the_others_down(folder: Path) -> None:
    scenario = {"name": "one", "failing": [1], "settings": zero(3)}
    with pytest.raises(pytest.fail.Exception, match="rank 1 fails at step 3"):
        launch(folder, 2, [scenario])


@pytest.mark.soak
@pytest.mark.timeout(1800)  # the compiler alone takes minutes, on a busy machine many
def test_operators_that_are_compiled(folder: Path, alone: dict[str, Any]) -> None:
    """DeepSpeed's own Adams, on the host and fused; what they write, torch's AdamW goes on with, and the reverse."""
    cpu, fused = {"optimizer": adamw()}, {"optimizer": adamw()}
    one = [
        {"name": "compile-cpu", "rows": 24, "settings": zero(2, OFFLOAD, **cpu)},
        {"name": "compile-fused", "rows": 24, "settings": zero(2, **fused)},
    ]
    launch(folder, 1, one, timeout=1200)  # by one process, so that two do not wait for each other's compiler
    base = str(folder / "base" / "checkpoint-4")
    scenarios = [
        {"name": f"{name}-{stage}", "settings": {**settings, **EPOCHS}}
        for stage in (2, 3)
        for name, settings in (("cpu", zero(stage, OFFLOAD, **cpu)), ("fused", zero(stage, **fused)))
    ]
    scenarios.append({"name": "fused-0", "settings": {**zero(0, **fused), **EPOCHS}})
    scenarios += [
        {"name": f"{s['name']}-into", "world": 1, "resume": base, "settings": s["settings"]}
        for s in scenarios
    ]
    made = launch(folder, 2, scenarios)
    for name, ranks in made.items():
        inner = "DeepSpeedCPUAdam" if name.startswith("cpu") else "FusedAdam"
        assert_is_zero(int(name.split("-")[1]), ranks, inner)
        assert_same(alone["base"], ranks, tolerance=2e-6)
    back = launch(
        folder,
        1,
        [
            {"name": f"{name}-back", "world": 2, "resume": str(folder / name / "checkpoint-4")}
            for name in ("cpu-2", "cpu-3", "fused-0", "fused-2", "fused-3")
        ],
    )
    for ranks in back.values():
        assert_same(alone["base"], ranks, tolerance=2e-6)


@pytest.mark.parametrize("extra", [[], ["--no_local_rank"]], ids=["local_rank", "no_local_rank"])
@pytest.mark.soak
def test_its_own_launcher(tmp_path: Path, extra: list[str]) -> None:
    """Started as DeepSpeed's users start it, with arguments that HfArgumentParser reads, --local_rank among them."""
    pytest.importorskip("transformers")
    script = tmp_path / "train.py"
    script.write_text(
        "from support.toy import Toy, rows\n"
        "from transformers import HfArgumentParser\n"
        "from drivetrain import Trainer, TrainingArguments\n"
        "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
        "trainer = Trainer(Toy(), args, train_dataset=rows())\n"
        "trainer.train()\n"
        # At once: print writes its parts by themselves, and the ranks share a pipe.
        "name = type(trainer.run.strategy).__name__\n"
        "import sys\n"
        "sys.stdout.write(f'trained by {name} {args.process_index} of {args.world_size}\\n')\n"
    )
    config = tmp_path / "ds.json"
    config.write_text('{"zero_optimization": {"stage": 2}, "train_batch_size": "auto"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    bin_folder = Path(sys.executable).parent
    done = subprocess.run(
        [
            sys.executable, str(bin_folder / "deepspeed"), "--num_gpus", "2", "--master_port", port, *extra, str(script),
            "--output_dir", str(tmp_path / "out"), "--use_cpu", "--max_steps", "3", "--report_to", "none",
            "--save_strategy", "no", "--deepspeed", str(config),
        ],
        capture_output=True, text=True, timeout=280, check=False,
        env={
            **os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for rank in range(2):
        assert f"trained by DeepSpeedStrategy {rank} of 2" in done.stdout


def test_a_machine_without_a_compiler_trains(tmp_path: Path) -> None:
    """Nothing is compiled for torch's optimizers: no compiler on the PATH, and an empty cache stays empty."""
    cache = tmp_path / "cache"
    scenario = tmp_path / "scenario.json"
    scenario.write_text('[{"name": "bare", "settings": {"deepspeed": {"zero_optimization": {"stage": 3}}}}]')
    nothing = tmp_path / "bin"
    nothing.mkdir()
    before = {name: os.environ.get(name) for name in ("PATH", "TORCH_EXTENSIONS_DIR", "CXX", "CC")}
    os.environ.update(PATH=str(nothing), TORCH_EXTENSIONS_DIR=str(cache), CXX="no-compiler", CC="no-compiler")
    try:
        torchrun(SCRIPT, str(tmp_path), str(scenario))
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    assert not cache.exists() or not any(cache.iterdir())
