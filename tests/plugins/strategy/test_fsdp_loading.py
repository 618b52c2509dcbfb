"""Models that no process holds whole: the same numbers as in one process, and the memory that it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plugins.strategy.fsdp_loading_worker import Large, scenarios
from plugins.strategy.fsdp_model import Hard
from safetensors.torch import load_file, save_file
from support.launch import torchrun
from support.toy import rows, trainer

WORKER = Path(__file__).with_name("fsdp_loading_worker.py")


def launch(folder: Path, what: str) -> list[dict[str, Any]]:
    torchrun(WORKER, str(folder), what)
    found: list[dict[str, Any]] = json.loads((folder / f"{what}.json").read_text())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    torch.manual_seed(5)
    weights = Hard(frozen=False, scalar=False).state_dict()
    del weights["again.weight"]  # tied: one name is enough
    (folder / "weights").mkdir()
    save_file(weights, folder / "weights" / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def small(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "weights").symlink_to(folder / "weights")
    return scenarios(folder / "one"), launch(folder / "two", "small")


@pytest.mark.parametrize("name", ["init2", "init1", "files2", "files1"])
def test_the_numbers_are_those_of_one_process(
    name: str, folder: Path, small: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    """Also those of a second initialisation, a rejecting one, a tied weight, buffers that no file holds."""
    one, two = small[0][name], small[1][0][name]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["evaluated"] == pytest.approx(one["evaluated"], rel=1e-5)
    if one["again"] is not None:
        assert two["again"] == pytest.approx(one["again"], rel=1e-5)
    saved = [load_file(folder / where / name / "saved" / "model.safetensors") for where in ("one", "two")]
    assert (
        saved[0].keys() <= saved[1].keys()
    )  # a model in shards may write a tied weight under both its names
    for key in saved[0]:
        torch.testing.assert_close(saved[1][key], saved[0][key], rtol=1e-5, atol=1e-5)


def test_such_a_model_stays_in_shards_under_version_2(
    small: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    for rank in small[1]:
        assert rank["init2"]["sharded"]
        assert rank["files2"]["sharded"]
        assert not rank["init1"]["sharded"]


def test_what_has_no_numbers_is_told(small: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    for rank in small[1]:
        assert rank["nothing"].startswith(
            "Nothing gives numbers to the buffer 'forwards' of a Block on the meta device"
        )
        assert rank["lacking"].startswith(
            "Nothing gives numbers to 'scale' of the Hard on the meta device: name weights"
        )


@pytest.mark.slow
@pytest.mark.parametrize("source", ["init", "files"])
def test_no_process_holds_more_than_its_share(source: str, tmp_path: Path) -> None:
    """At most 0.6 of the model's bytes at any time while it is built, loaded and evaluated in two processes."""
    if source == "files":
        torch.manual_seed(0)
        (tmp_path / "large").mkdir()
        save_file(Large().state_dict(), tmp_path / "large" / "model.safetensors")
    for rank in launch(tmp_path, source):
        print(f"peak of a rank, {source}: {rank['share']:.3f} of the model")
        assert rank["share"] <= 0.6
        assert rank["later"] <= 0.1  # it stays where it is
        assert rank["again"] == rank["evaluated"]
    if source == "init":
        made = trainer(tmp_path / "one", data=rows(16), model_init=Large)
        assert rank["evaluated"] == pytest.approx(made.evaluate()["eval_loss"], rel=1e-5)
