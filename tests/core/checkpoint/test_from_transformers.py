"""Checkpoints that transformers 4.34.0 wrote are gone on from, as it goes on from them itself.

The checkpoints, and what 4.34.0 made of them, are in `from_4_34_0`; `support.transformers_4_34_0` wrote them.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.launch import torchrun
from support.transformers_4_34_0 import STEPS, Net, make, outcome, rows

from drivetrain import CheckpointError, Trainer, TrainingArguments
from drivetrain.checkpoint import last_checkpoint, load_checkpoint, written_by_transformers
from drivetrain.checkpoint.transformers_files import problem_of, read_transformers
from drivetrain.checkpoint.transformers_optimizer import group_names
from drivetrain.checkpoint.transformers_pickles import read_pickle
from drivetrain.slots import OptimizerFactory

WRITTEN = Path(__file__).parent / "from_4_34_0"
IN_ONE_PROCESS = [name for name in STEPS if name != "two_processes"]


def continued(name: str) -> dict[str, Any]:
    """The run that 4.34.0 itself made of a checkpoint."""
    found: dict[str, Any] = json.loads((WRITTEN / name / "continued.json").read_text())
    return found


def taken(name: str, folder: Path) -> Path:
    """A copy of a checkpoint in a run's folder."""
    target = folder / f"checkpoint-{STEPS[name]}"
    shutil.copytree(WRITTEN / name / f"checkpoint-{STEPS[name]}", target)
    return target


def trainer(name: str, folder: Path, **settings: Any) -> Trainer:
    made: Trainer = make(Trainer, TrainingArguments, name, folder, **settings)
    return made


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """All that was written down of two runs, within the tolerance of `nox -s parity`."""
    assert found["global_step"] == expected["global_step"]
    assert found["epoch"] == pytest.approx(expected["epoch"], rel=2e-5)
    assert found["losses"] == pytest.approx(expected["losses"], rel=2e-5, abs=1e-6)
    for key, value in expected["weights"].items():
        np.testing.assert_allclose(np.array(found["weights"][key]), np.array(value), rtol=2e-5, atol=1e-6)
    assert [row.keys() for row in found["log"]] == [row.keys() for row in expected["log"]]
    for one, other in zip(found["log"], expected["log"], strict=True):
        assert one == pytest.approx(other, rel=2e-5, abs=1.01e-4)  # losses are rounded to four places


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_it_goes_on_as_transformers_does(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = trainer(name, tmp_path / "out")
    checkpoint = WRITTEN / name / f"checkpoint-{STEPS[name]}"
    with caplog.at_level(logging.WARNING, "drivetrain"):
        made.train(resume_from_checkpoint=str(checkpoint))
    close(outcome(made), continued(name))
    said = [record.getMessage() for record in caplog.records]
    assert any("was written by transformers and has no seal" in line for line in said)
    assert not any("Changed since" in line or "The order" in line for line in said)
    # On the CPU dropout and the order of rows draw from one generator, so that it tells nothing of the second epoch's.
    assert any("do not tell the order in which epoch 1" in line for line in said) == (
        name in ("adamw", "adafactor")
    )


def test_the_next_checkpoint_is_an_ordinary_one_and_exact(tmp_path: Path) -> None:
    whole = trainer("adamw", tmp_path / "out")
    whole.train(resume_from_checkpoint=str(WRITTEN / "adamw" / "checkpoint-9"))
    for step in (10, 11):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        assert not written_by_transformers(str(folder))
        again = trainer("adamw", tmp_path / f"again-{step}")
        again.train(resume_from_checkpoint=str(folder))
        assert torch.equal(again.model.inner.weight, whole.model.inner.weight)
        assert again.model.losses == whole.model.losses[step - 9 :]
        assert again.state.log_history[:-1] == whole.state.log_history[:-1]


def test_true_takes_the_last_that_can_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = taken("adamw", tmp_path)
    for step, name, size in (
        (10, "optimizer.pt", 3000),
        (11, "pytorch_model.bin", 1500),
        (12, "scheduler.pt", 9),
    ):
        shutil.copytree(good, tmp_path / f"checkpoint-{step}")
        os.truncate(tmp_path / f"checkpoint-{step}" / name, size)
    shutil.copytree(good, tmp_path / "checkpoint-13", ignore=shutil.ignore_patterns("trainer_state.json"))
    with caplog.at_level(logging.WARNING, "drivetrain"):
        assert last_checkpoint(str(tmp_path)) == str(good)
    assert sum("is passed over" in record.getMessage() for record in caplog.records) == 4
    made = trainer("adamw", tmp_path)
    made.train(resume_from_checkpoint=True)
    close(outcome(made), continued("adamw"))


def test_one_of_drivetrain_without_its_manifest_is_none_of_transformers(tmp_path: Path) -> None:
    trainer("adamw", tmp_path / "out").train(resume_from_checkpoint=str(taken("adamw", tmp_path)))
    folder = tmp_path / "out" / "checkpoint-12"
    (folder / "manifest.json").unlink()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        shutil.copy(tmp_path / "checkpoint-9" / name, folder)
    assert not written_by_transformers(str(folder))
    for name in ("checkpoint-10", "checkpoint-11"):
        shutil.rmtree(tmp_path / "out" / name)
    with pytest.raises(CheckpointError, match="found no valid checkpoint"):
        trainer("adamw", tmp_path / "out").train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        trainer("adamw", tmp_path / "out").train(resume_from_checkpoint=str(folder))


def test_shards_are_read(tmp_path: Path) -> None:
    folder = taken("adamw", tmp_path)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    names = list(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[:3], "pytorch_model-00002-of-00002.bin": names[3:]}
    for file, held in shards.items():
        torch.save({name: weights[name] for name in held}, folder / file)
    where = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    made = trainer("adamw", tmp_path / "out")
    made.train(resume_from_checkpoint=str(folder))
    close(outcome(made), continued("adamw"))
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "00002" in str(problem_of(str(folder)))


# -- several processes -----------------------------------------------------------------------------------

SCRIPT = Path(__file__).with_name("from_transformers_script.py")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_go_on_from_two(strategy: str, tmp_path: Path) -> None:
    """Rank by rank, since each has random states of its own; the order is that of accelerate's generator."""
    checkpoint = WRITTEN / "two_processes" / "checkpoint-4"
    torchrun(SCRIPT, "two_processes", str(tmp_path), json.dumps({"strategy": strategy}), str(checkpoint))
    close(json.loads((tmp_path / "outcome.json").read_text()), continued("two_processes"))


class Watched(torch.utils.data.Dataset[Any]):
    """Data that write down which rows were fetched."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.fetched.append(int(index))
        return self.data[index]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_process_goes_on_from_two(
    accumulation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of the epoch has the rows that were left, whatever makes the eight rows of an update."""
    settings = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    made = trainer("two_processes", tmp_path / "out", **settings)
    made.train_dataset = watched = Watched(rows("two_processes"))
    with caplog.at_level(logging.WARNING, "drivetrain"):
        made.train(resume_from_checkpoint=str(WRITTEN / "two_processes" / "checkpoint-4"))
    generator = torch.Generator()  # the third permutation is the second epoch's
    order = [torch.randperm(24, generator=generator).tolist() for _ in range(3)][2]
    assert watched.fetched[-16:] == order[8:]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "was written by 2 process(es), and 1 go on: an update has 8 rows" in said


def test_the_order_of_several_processes_is_saved_too(tmp_path: Path) -> None:
    settings = {"per_device_train_batch_size": 8}
    made = trainer("two_processes", tmp_path / "out", **settings)
    made.train(resume_from_checkpoint=str(WRITTEN / "two_processes" / "checkpoint-4"))
    again = trainer("two_processes", tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert again.model.losses == made.model.losses[1:]


# -- what cannot be gone on from -------------------------------------------------------------------------


def refused(folder: Path, name: str = "adamw", **settings: Any) -> str:
    """The sentence with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        trainer(name, folder.parent / "out", **settings).train(resume_from_checkpoint=str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_a_state_that_is_missing_is_an_error(name: str, tmp_path: Path) -> None:
    folder = taken("adamw", tmp_path)
    (folder / name).unlink()
    assert f"has no {name}, without which the run cannot go on" in refused(folder)


@pytest.mark.parametrize(
    ("inside", "engine"),
    [
        ("global_step9/zero_pp_rank_0.pt", "DeepSpeed"),
        ("pytorch_model_0/.metadata", "FSDP"),
        ("optimizer_0/.metadata", "FSDP"),
        ("optimizer.bin", "FSDP"),
        ("optimizer.pt_0_0_0", "SageMaker"),
    ],
)
def test_an_engines_own_checkpoint_is_told(inside: str, engine: str, tmp_path: Path) -> None:
    folder = taken("adamw", tmp_path)
    (folder / "optimizer.pt").unlink()
    (folder / inside).parent.mkdir(exist_ok=True)
    (folder / inside).write_bytes(b"")
    said = refused(folder)
    assert f"under {engine}" in said
    assert "from_pretrained" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optim": "sgd"}, "another optimizer than SGD"),
        ({"optim": "adafactor"}, "another optimizer than Adafactor"),
        ({"optim": "adamw_hf"}, "another optimizer than AdamW"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "evaluation_strategy": "epoch"}, "another scheduler"),
    ],
)
def test_another_optimizer_or_scheduler_is_an_error(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    assert words in refused(taken("adamw", tmp_path), **settings)


def test_other_parameters_are_an_error(tmp_path: Path) -> None:
    folder = taken("adamw", tmp_path)

    def of(change: Callable[[Net], Any]) -> str:
        made = trainer("adamw", tmp_path / "out")
        change(made.model)
        with pytest.raises(CheckpointError) as caught:
            made.train(resume_from_checkpoint=str(folder))
        return str(caught.value)

    assert "2 group(s) of 2, 4 parameters, and the optimizer here has 2 group(s) of 1, 4" in of(
        lambda model: model.inner.weight.requires_grad_(False)
    )
    assert "has for parameter 0 a 'exp_avg' of shape (8, 6), and 0 is 'inner.weight' of shape (6, 8)" in of(
        lambda model: swap(folder)
    )


def swap(folder: Path) -> None:
    """Weights of another shape than the optimizer's state."""
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**weights, "inner.weight": weights["inner.weight"].T}, folder / "pytorch_model.bin")


def test_what_has_changed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"learning_rate": 0.5, "weight_decay": 0.0, "num_train_epochs": 3, "adam_beta1": 0.8}
    made = trainer("adamw", tmp_path / "out", **settings)
    with caplog.at_level(logging.WARNING, "drivetrain"):
        made.train(resume_from_checkpoint=str(WRITTEN / "adamw" / "checkpoint-9"))
    said = " ".join(record.getMessage() for record in caplog.records)
    for clause in (
        "learning_rate of group 0 was 0.01, which holds, and is 0.5",
        "weight_decay of group 0 was 0.1, which holds, and is 0.0",
        "betas of group 1 was (0.9, 0.999), which holds, and is (0.8, 0.999)",
        "the run had 12 updates and has 18",
    ):
        assert clause in said


def test_another_place_than_the_checkpoint_tells_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer("adamw", tmp_path / "out", per_device_train_batch_size=2)
    with caplog.at_level(logging.WARNING, "drivetrain"):
        made.train(resume_from_checkpoint=str(WRITTEN / "adamw" / "checkpoint-9"))
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "9 updates are 1.50 epochs; with 11 updates an epoch" in said
    assert "the run goes on at 0.82" in said
    assert made.state.global_step == 22


def test_an_order_that_transformers_did_not_have_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer("adamw", tmp_path / "out", data_seed=3)
    with caplog.at_level(logging.WARNING, "drivetrain"):
        made.train(resume_from_checkpoint=str(WRITTEN / "adamw" / "checkpoint-9"))
    assert any("The order of epoch 1 is another here" in record.getMessage() for record in caplog.records)


def test_without_random_states_a_seed_is_derived_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = taken("adamw", tmp_path)
    (folder / "rng_state.pth").unlink()
    made = trainer("adamw", tmp_path / "out")
    with caplog.at_level(logging.WARNING, "drivetrain"):
        made.train(resume_from_checkpoint=str(folder))
    assert any(
        "has no random state, so rank r draws from a seed of (42, 9, r)" in r.getMessage()
        for r in caplog.records
    )
    assert made.model.losses != pytest.approx(continued("adamw")["losses"], rel=2e-5)


# -- nothing in it is executed ---------------------------------------------------------------------------


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "pytorch_model.bin"]
)
@pytest.mark.parametrize("as_archive", [True, False])
def test_a_hostile_pickle_is_not_executed(name: str, as_archive: bool, tmp_path: Path) -> None:
    folder, touched = taken("adamw", tmp_path), tmp_path / "touched"
    held = {"state": Hostile(touched)}
    if as_archive:
        torch.save(held, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(held))
    assert "without running code" in refused(folder)
    assert not touched.exists()
    torch.load(folder / name, weights_only=False) if as_archive else pickle.loads(
        (folder / name).read_bytes()
    )
    assert touched.exists()  # it would have been


def test_the_arguments_are_not_opened(tmp_path: Path) -> None:
    folder, touched = taken("adamw", tmp_path), tmp_path / "touched"
    torch.save(Hostile(touched), folder / "training_args.bin")
    made = trainer("adamw", tmp_path / "out")
    made.train(resume_from_checkpoint=str(folder))
    close(outcome(made), continued("adamw"))
    assert not touched.exists()


def test_what_the_user_has_declared_safe_counts_nothing(tmp_path: Path) -> None:
    folder, touched = taken("adamw", tmp_path), tmp_path / "touched"
    torch.save(Hostile(touched), folder / "scheduler.pt")
    with torch.serialization.safe_globals([Path.touch, type(touched)]):
        before = set(torch.serialization.get_safe_globals())
        assert problem_of(str(folder)) is not None
        assert set(torch.serialization.get_safe_globals()) == before
    assert not touched.exists()


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], dtype=object),
        np.zeros(3, dtype=[("a", "u4")]),
        np.array(["text"]),
        np.array(["2020-01-01"], dtype="M8[D]"),
    ],
    ids=["objects", "records", "text", "dates"],
)
def test_arrays_of_anything_but_numbers_are_refused(array: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"numpy": array}, path)
    with pytest.raises(CheckpointError, match="cannot be read without running code"):
        read_pickle(str(path))


def test_arrays_and_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    held = {
        "array": np.arange(12, dtype=np.uint32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(4, dtype=">i2"),
        "number": np.float64(0.25),
        "nested": [(np.int64(3), {"flag": np.bool_(True)})],
    }
    torch.save(held, path)
    found = read_pickle(str(path))
    for key in ("array", "fortran", "swapped"):
        np.testing.assert_array_equal(found[key], held[key])
    assert found["number"] == 0.25
    assert found["nested"] == [(3, {"flag": True})]


def test_an_array_shorter_than_its_shape_is_refused(tmp_path: Path) -> None:
    """What numpy itself would be given to believe."""
    path, bad = tmp_path / "file.pt", tmp_path / "bad.pt"
    torch.save({"numpy": np.zeros(4, dtype=np.uint8)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bad, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert content.count(b"K\x04\x85") == 1  # the shape: one number, 4
                content = content.replace(b"K\x04\x85", b"K\x7f\x85")
            target.writestr(entry, content)
    with pytest.raises(CheckpointError, match="cannot be read without running code"):
        read_pickle(str(bad))


def test_a_random_state_that_is_none_is_refused(tmp_path: Path) -> None:
    for key, value in (
        ("numpy", ("MT19937", np.zeros(624, np.uint32), 70_000, 0, 0.0)),
        ("numpy", 5),
        ("python", (3, ("a",), None)),
        ("cpu", torch.zeros(3)),
        ("cpu", "text"),
    ):
        folder = taken("adamw", tmp_path / f"{key}-{type(value).__name__}-{id(value)}")
        saved = torch.load(folder / "rng_state.pth", weights_only=False)
        torch.save({**saved, key: value}, folder / "rng_state.pth")
        assert "random state" in refused(folder)


@pytest.mark.parametrize(
    ("file", "held"),
    [
        ("optimizer.pt", {"state": {}, "param_groups": []}),
        ("optimizer.pt", {"state": {0: 1}, "param_groups": [{"params": [0, 1]}, {"params": [2, 3, 4, 5]}]}),
        ("optimizer.pt", {"state": {}, "param_groups": [{"params": [0, 0]}, {"params": [2, 3, 4, 5]}]}),
        ("optimizer.pt", {"state": {}, "param_groups": [{"params": [[], []]}, {"params": [2, 3, 4, 5]}]}),
        ("optimizer.pt", [1, 2]),
        ("scheduler.pt", {"last_epoch": "many", "base_lrs": [0.1, 0.1]}),
        ("scheduler.pt", {"last_epoch": 3}),
        ("scheduler.pt", torch.zeros(3)),
    ],
)
def test_states_that_are_none_are_refused(file: str, held: Any, tmp_path: Path) -> None:
    folder = taken("adamw", tmp_path)
    torch.save(held, folder / file)
    refused(folder)


def test_a_count_beyond_the_run_leaves_nothing_to_do(tmp_path: Path) -> None:
    """And nothing is drawn for each of its epochs."""
    folder = taken("adamw", tmp_path)
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps({**state, "global_step": 10**15}))
    made = trainer("adamw", tmp_path / "out")
    assert made.train(resume_from_checkpoint=str(folder)).global_step == 10**15
    assert made.model.losses == []


def test_a_schedulers_file_sets_no_attribute_that_it_has_not(tmp_path: Path) -> None:
    folder = taken("adamw", tmp_path)
    saved = torch.load(folder / "scheduler.pt", weights_only=True)
    torch.save({**saved, "step": 5, "optimizer": 6, "get_last_lr": 7}, folder / "scheduler.pt")
    made = trainer("adamw", tmp_path / "out")
    made.train(resume_from_checkpoint=str(folder))
    close(outcome(made), continued("adamw"))


# -- what a CPU cannot write -----------------------------------------------------------------------------


def test_loss_scale_and_random_states_of_devices_are_read(tmp_path: Path) -> None:
    """As a run on CUDA writes them: the scaler of fairscale's, and one state or, of several processes, one a device."""
    folder = taken("adamw", tmp_path)
    scale = {
        "scale": 1024.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 7,
    }
    torch.save(scale, folder / "scaler.pt")
    model = Net()
    names = group_names(OptimizerFactory(torch.optim.SGD), model)
    assert names == [[name for name, _ in model.named_parameters()]]
    names = [["inner.weight", "outer.weight"], ["inner.bias", "norm.weight", "norm.bias", "outer.bias"]]
    one = torch.arange(16, dtype=torch.uint8)
    for cuda, devices in ((one, [one]), ([one, one + 1], [one, one + 1])):
        saved = torch.load(folder / "rng_state.pth", weights_only=False)
        torch.save({**saved, "cuda": cuda}, folder / "rng_state.pth")
        found = read_transformers(str(folder), names, model, 0, 1)
        assert found.train_state.loss_scale == scale
        assert found.random is not None
        assert all(map(torch.equal, found.random.devices["cuda"], devices))
        assert found.version is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a CUDA device")
def test_the_loss_scale_goes_on(tmp_path: Path) -> None:
    folder = taken("adamw", tmp_path)
    scale = {"scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    torch.save({**scale, "_growth_tracker": 7}, folder / "scaler.pt")
    made = trainer("adamw", tmp_path / "out", use_cpu=False, fp16=True)
    made.train(resume_from_checkpoint=str(folder))
    state = load_checkpoint(str(tmp_path / "out" / "checkpoint-10")).train_state
    assert state is not None
    assert state.loss_scale == {**scale, "_growth_tracker": 8}


# -- the other way round ---------------------------------------------------------------------------------


def test_from_pretrained_reads_a_checkpoint_in_shards(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    ids = torch.arange(6)
    settings = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "max_steps": 2, "save_steps": 1}
    arguments = TrainingArguments(str(tmp_path), **settings, max_shard_size="3KB")
    Trainer(model, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8).train()
    folder = tmp_path / "checkpoint-2"
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    again = transformers.GPT2LMHeadModel.from_pretrained(str(folder))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
