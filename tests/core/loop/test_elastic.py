"""A run begun with two processes goes on with one and with four, and every update sees the rows it would have seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.launch import torchrun
from support.toy import trainer

from drivetrain import CheckpointError, ConfigurationError
from drivetrain.checkpoint import read_run
from drivetrain.data import Split
from drivetrain.elastic import Layout, layout, micro_batches, saved_layout

SCRIPT = Path(__file__).parents[2] / "plugins" / "strategy" / "train_script.py"


@pytest.fixture(scope="module", params=[1, 3], ids=["no accumulation", "accumulation"])
def two(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run of two processes with four rows each, of 101 rows, and its settings.

    With an accumulation of three the checkpoint at step 4, the end of the first epoch, carries gradients.
    """
    folder = tmp_path_factory.mktemp("two")
    settings = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": request.param,
        "save_strategy": "steps",
        "save_steps": 4 if request.param == 3 else 5,
        "weight_decay": 0.1,
    }
    torchrun(SCRIPT, str(folder), json.dumps(settings))
    return folder, settings


@pytest.mark.parametrize("processes", [1, 4])
def test_other_processes_go_on(two: tuple[Path, dict[str, Any]], tmp_path: Path, processes: int) -> None:
    folder, settings = two
    steps = sorted(int(found.name.rpartition("-")[2]) for found in (folder / "run").glob("checkpoint-*"))
    checkpoint = folder / "run" / f"checkpoint-{steps[0]}"
    said = torchrun(
        SCRIPT, str(tmp_path), json.dumps({**settings, "resume": str(checkpoint)}), processes=processes
    )
    expected = torch.load(folder / "result-2.pt", weights_only=True)
    found = torch.load(tmp_path / f"result-{processes}.pt", weights_only=True)
    each = "2 micro-batch(es) of 4 rows" if processes == 1 else "1 micro-batch(es) of 2 rows"
    assert (
        f"was written by 2 process(es), and {processes} go on: the global batch stays 8 rows, "
        f"each process running {each}"
    ) in " ".join(said.split())
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], tensor, rtol=1e-5, atol=1e-6)
    assert len(found["history"]) == len(expected["history"])
    for a, b in zip(found["history"], expected["history"], strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    torch.testing.assert_close(found["predictions"], expected["predictions"], rtol=1e-4, atol=1e-5)


def test_processes_that_cannot_share_a_batch(two: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Three processes and eight rows: the error says which numbers would do."""
    folder, settings = two
    checkpoint = str(max((folder / "run").glob("checkpoint-*")))
    with pytest.raises(pytest.fail.Exception) as raised:
        torchrun(SCRIPT, str(tmp_path), json.dumps({**settings, "resume": checkpoint}), processes=3)
    told = "3 process(es) cannot share the global batch of 8 rows that 2 process(es) began with: start 1, 2, 4, 8, or"
    assert told in str(raised.value)


def test_a_run_of_one_goes_on_with_two(tmp_path: Path) -> None:
    """And what the user changes on purpose, here the batch, is what holds."""
    made = trainer(
        tmp_path / "run", per_device_train_batch_size=8, save_strategy="steps", save_steps=5, max_steps=5
    )
    made.train()
    checkpoint = str(tmp_path / "run" / "checkpoint-5")
    saved = saved_layout(read_run(checkpoint)["position"])
    assert saved == Layout(8, Split(1), 1)
    assert saved.rows == 8
    run = made.run
    assert layout(run, 8, checkpoint) == saved
    assert layout(run, 4, checkpoint) == Layout(4, Split(1), 1)
    run.args.gradient_accumulation_steps = 2
    assert layout(run, 4, checkpoint) == Layout(4, Split(1), 2)


def test_micro_batches_are_counted_anew() -> None:
    two, one = Layout(4, Split(2), 3), Layout(4, Split(2, 2), 3)
    assert one.accumulation == 6
    assert one.rows == two.rows == 24
    assert micro_batches(14, two, one, carries=True) == 28
    assert micro_batches(28, one, two, carries=True) == 14
    larger = Layout(8, Split(2), 2)
    assert micro_batches(12, two, larger, carries=False) == 8
    with pytest.raises(CheckpointError, match="carries gradients of an unfinished update of 24 rows"):
        micro_batches(14, two, larger, carries=True)
    assert micro_batches(7, None, one, carries=False) == 7


def test_a_larger_accumulation_on_purpose(tmp_path: Path) -> None:
    """Two micro-batches are done and one update: the next update begins with a micro-batch of its own."""
    settings: dict[str, Any] = {"per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path / "run", max_steps=3, **settings).train()
    gone = trainer(tmp_path / "run", max_steps=6, gradient_accumulation_steps=2, **settings)
    counted: list[int] = []
    inner = gone.training_step
    gone.training_step = lambda *given: counted.append(gone.state.global_step) or inner(*given)  # type: ignore[method-assign]
    gone.train(resume_from_checkpoint=True)
    assert counted == [3, 3, 4, 4, 5, 5]


def test_a_loader_of_each_process_stays_with_them(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from torch.utils.data import DataLoader, DistributedSampler

    from drivetrain.elastic import check_loader

    kept = Layout(4, Split(2, 2), 1)
    data = list(range(10))
    one, four = SimpleNamespace(world_size=1), SimpleNamespace(world_size=4)
    own = DataLoader(data, 4, sampler=DistributedSampler(data, 2, 0))
    with pytest.raises(ConfigurationError, match=r"began with: start 2, or choose another"):
        check_loader(own, kept, one)
    batches = DataLoader(data, batch_sampler=[[0, 1], [2, 3]])
    check_loader(batches, kept, one)
    with pytest.raises(ConfigurationError, match=r"began with: start 1, 2, or choose another"):
        check_loader(batches, Layout(4, Split(2), 1), four)
    check_loader(DataLoader(data, 4), Layout(4, Split(2), 1), four)
    shutil.rmtree(tmp_path)
