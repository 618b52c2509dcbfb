"""`drivetrain checkpoints export`: what it writes is what others read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drivetrain import Trainer, TrainingArguments
from drivetrain.checkpoint import CheckpointContents, load_weights, save_checkpoint, write_weights
from drivetrain.slots import TrainState

Command = Callable[..., Any]


class Tied(torch.nn.Module):
    """Two names for one weight, a buffer of integers, and an embedding that makes several shards."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(16, 16, bias=False)
        self.second = torch.nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.words = torch.nn.Embedding(50, 16)
        self.register_buffer("counts", torch.arange(7))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One of a model that is no model of transformers."""
    torch.manual_seed(0)
    folder = tmp_path / "run" / "checkpoint-3"
    folder.parent.mkdir()
    weights = Tied().state_dict()
    contents = CheckpointContents(TrainState(weights), trainer_state={"global_step": 3})
    save_checkpoint(str(folder), contents, save_model=lambda place: write_weights(place, weights))
    return folder


def loaded(folder: Path) -> Tied:
    made = Tied()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    load_weights(made, str(folder))
    return made


def test_a_bare_folder(checkpoint: Path, tmp_path: Path, drivetrain: Command) -> None:
    target = tmp_path / "bare"
    result = drivetrain("checkpoints", "export", str(checkpoint), str(target))
    assert result.exit_code == 0, result.stderr
    assert os.listdir(target) == ["model.safetensors"]
    one, other = loaded(checkpoint).state_dict(), loaded(target).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "second.weight" not in load_file(target / "model.safetensors")  # tied: written once, and named
    assert f"{target}: 4 tensors" in result.stdout


def test_a_file_and_another_dtype(checkpoint: Path, tmp_path: Path, drivetrain: Command) -> None:
    target = tmp_path / "bare.safetensors"
    result = drivetrain("checkpoints", "export", str(checkpoint), str(target), "--dtype", "bf16")
    assert result.exit_code == 0, result.stderr
    found = load_file(target)
    assert found["first.weight"].dtype == torch.bfloat16
    assert found["counts"].dtype == torch.int64  # integers keep theirs
    assert torch.equal(found["words.weight"], loaded(checkpoint).words.weight.bfloat16())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.safetensors", "run"]


def test_shards(checkpoint: Path, tmp_path: Path, drivetrain: Command) -> None:
    target = tmp_path / "shards"
    words = ["--dtype", "bf16", "--max-shard-size", "1KB"]
    assert drivetrain("checkpoints", "export", str(checkpoint), str(target), *words).exit_code == 0
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {"first.weight", "words.weight", "counts"}
    assert (
        len(set(index["weight_map"].values())) == 2
    )  # 512 and 56 bytes share one; by their old size they would not
    assert index["metadata"]["total_size"] == 2 * (256 + 800) + 8 * 7
    assert torch.equal(loaded(target).second.weight, loaded(target).first.weight)


def test_what_fp16_cannot_hold_is_refused(tmp_path: Path, drivetrain: Command) -> None:
    write_weights(str(_made(tmp_path / "big")), {"w": torch.tensor([1e6, float("inf")])})
    result = drivetrain(
        "checkpoints", "export", str(tmp_path / "big"), str(tmp_path / "out"), "--dtype", "fp16"
    )
    assert result.exit_code == 2
    assert "The tensor 'w' has numbers beyond the largest of float16" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["big"]  # and nothing half-written
    assert (
        drivetrain(
            "checkpoints", "export", str(tmp_path / "big"), str(tmp_path / "out"), "--dtype", "bf16"
        ).exit_code
        == 0
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_is_there_is_not_written_over(checkpoint: Path, tmp_path: Path, drivetrain: Command) -> None:
    target = str(tmp_path / "bare")
    export = ("checkpoints", "export", str(checkpoint))
    assert drivetrain(*export, target).exit_code == 0
    again = drivetrain(*export, target)
    assert again.exit_code == 2
    assert f"{target} is there already: overwrite it by --overwrite." in again.stderr
    assert drivetrain(*export, target, "--dtype", "bf16", "--overwrite").exit_code == 0
    assert loaded(Path(target)).first.weight.equal(loaded(checkpoint).first.weight.bfloat16().float())
    for place in (tmp_path / "run", checkpoint, tmp_path):  # never what no export can have written
        refused = drivetrain(*export, str(place), "--overwrite")
        assert refused.exit_code == 2
        assert "lie within each other" in refused.stderr
    other = _made(tmp_path / "other")
    (other / "thesis.tex").write_text("the only copy")
    refused = drivetrain(*export, str(other), "--overwrite")
    assert refused.exit_code == 2
    assert "holds other things than an export" in refused.stderr
    assert (other / "thesis.tex").is_file()


def test_a_damaged_checkpoint_is_not_exported(checkpoint: Path, tmp_path: Path, drivetrain: Command) -> None:
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = drivetrain("checkpoints", "export", str(checkpoint), str(tmp_path / "bare"))
    assert result.exit_code == 2
    assert "its model.safetensors has changed since it was written" in result.stderr
    assert not (tmp_path / "bare").exists()


def test_a_model_of_no_config_is_not_for_from_pretrained(
    checkpoint: Path, tmp_path: Path, drivetrain: Command
) -> None:
    result = drivetrain(
        "checkpoints", "export", str(checkpoint), str(tmp_path / "hf"), "--format", "huggingface"
    )
    assert result.exit_code == 2
    assert "has no config.json, so that from_pretrained could not read it" in result.stderr


def test_from_pretrained_reads_it(tmp_path: Path, drivetrain: Command) -> None:
    transformers = pytest.importorskip("transformers", reason="it reads what is exported")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "day"])
    )
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    data = [{"input_ids": torch.arange(8) % 50, "labels": torch.arange(8) % 50}] * 8
    args = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, save_steps=2, save_strategy="steps", report_to="none", disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    Trainer(model, args, train_dataset=data, tokenizer=tokenizer).train()
    target = tmp_path / "hf"
    words = ["--dtype", "bf16", "--max-shard-size", "10KB"]
    result = drivetrain("checkpoints", "export", str(tmp_path / "out" / "checkpoint-2"), str(target), *words)
    assert result.exit_code == 0, result.stderr
    names = set(os.listdir(target))
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    } <= names
    assert not names & {
        "optimizer.json",
        "run.json",
        "trainer_state.json",
        "training_args.json",
        "manifest.json",
    }
    assert len([name for name in names if name.startswith("model-")]) > 1
    read, loading = transformers.GPT2LMHeadModel.from_pretrained(target, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert read.lm_head.weight is read.transformer.wte.weight
    for name, weight in model.state_dict().items():
        assert torch.equal(read.state_dict()[name].float(), weight.bfloat16().float()), name
    assert transformers.GPT2LMHeadModel.from_pretrained(target, torch_dtype="auto").dtype == torch.bfloat16
    assert transformers.AutoTokenizer.from_pretrained(target)("good day")["input_ids"]


PROGRAM = """
import sys
from drivetrain.checkpoint.export import export
from drivetrain.checkpoint.difference import compare

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) // 1024

import threading, time
peak, stop = [anonymous()], threading.Event()
def watch():
    while not stop.is_set():
        peak.append(anonymous())
        time.sleep(0.002)
before = anonymous()
thread = threading.Thread(target=watch)
thread.start()
export(sys.argv[1], sys.argv[2], dtype="fp32")
compare(sys.argv[1], sys.argv[3])
stop.set()
thread.join()
print(max(peak) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_neither_an_export_nor_a_diff_holds_all_weights(tmp_path: Path) -> None:
    """Of 480 MB in 60 tensors, and of two states of 240 MB, memory of its own is that of a few tensors."""
    for name, shift in (("one", 0), ("other", 1)):
        write_weights(
            str(_made(tmp_path / name)),
            {f"w{i}": torch.full((2_000_000,), float(i + shift)).bfloat16() for i in range(60)},
        )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "one"), str(tmp_path / "out"), str(tmp_path / "other")],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300, done.stdout


def test_a_full_disk_leaves_what_was_there(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    target = tmp_path / "bare"
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from drivetrain.checkpoint.export import export\n"
        "export(sys.argv[1], sys.argv[2])\n"
        "before = open(sys.argv[2] + '/model.safetensors', 'rb').read()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    export(sys.argv[1], sys.argv[2], overwrite=True)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
        "assert open(sys.argv[2] + '/model.safetensors', 'rb').read() == before\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(checkpoint), str(target)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "was not written (File too large); what was there before is as it was." in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["bare", "run"]


def test_each_format_takes_the_weights_that_are_meant_for_it(tmp_path: Path, drivetrain: Command) -> None:
    """Where save_pretrained writes other names than the state_dict has, each has its own reader."""
    folder = tmp_path / "run" / "checkpoint-3"
    folder.parent.mkdir()
    contents = CheckpointContents(TrainState({"base.w": torch.ones(3)}), trainer_state={"global_step": 3})

    def save_pretrained(place: str) -> None:
        write_weights(place, {"w": torch.ones(3)})
        Path(place, "config.json").write_text("{}")

    save_checkpoint(str(folder), contents, save_model=save_pretrained)
    for form, names in (("huggingface", {"w"}), ("safetensors", {"base.w"})):
        target = tmp_path / form
        result = drivetrain("checkpoints", "export", str(folder), str(target), "--format", form)
        assert result.exit_code == 0, result.stderr
        assert set(load_file(target / "model.safetensors")) == names
