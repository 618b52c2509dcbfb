"""A checkpoint, whole: what goes in comes out, and a save that fails leaves what was there."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivetrain.checkpoint import (
    CheckpointContents,
    RandomState,
    last_checkpoint,
    load_checkpoint,
    optimizer_state_in,
    save_checkpoint,
    set_gradients,
    set_weights,
    validate,
)
from drivetrain.checkpoint import files as checkpoint_files
from drivetrain.errors import CheckpointError
from drivetrain.slots import TrainState


def restored(make: Any, folder: str) -> Any:
    """A network as a new process would have it, from a checkpoint."""
    fresh = make(steps=0, seed=99)
    contents = load_checkpoint(folder, model=fresh.model)
    set_weights(fresh.model, contents.train_state.weights)
    optimizer_state_in(fresh.optimizer, fresh.model.named_parameters(), contents.train_state)
    set_gradients(fresh.model.named_parameters(), contents.train_state.gradients)
    fresh.scheduler.load_state_dict(contents.scheduler)
    fresh.step = contents.step
    contents.random.restore()
    return fresh


def test_a_resumed_network_goes_on_bit_for_bit(output: Path, make_trained: Any) -> None:
    first = make_trained(steps=3)
    first.model(torch.randn(5, 6)).sum().backward()  # half an accumulation
    folder = str(output / "checkpoint-3")
    save_checkpoint(folder, first.contents(), save_model=first.save_model)
    draws = (random.random(), np.random.rand(), torch.rand(1))
    first.train_step()
    first.train_step()

    second = restored(make_trained, folder)
    assert (random.random(), np.random.rand()) == draws[:2]
    assert torch.equal(torch.rand(1), draws[2])
    second.train_step()
    second.train_step()
    assert second.step == first.step == 5
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert first.scheduler.state_dict() == second.scheduler.state_dict()


def test_everything_comes_back(output: Path, trained: Any) -> None:
    contents = trained.contents(
        plugins={"strategy:single": {"version": "0.1.0"}},
        configuration={"options": {"$odd": 1}, "limit": float("inf")},
        position={"epoch": 1, "batch": 7, "random": torch.get_rng_state()},
        loss={"sum": torch.tensor(1.25), "rows": 3},
        plugin_states={"callback:early": {"best": (1, 2.5)}},
        callback_states={"0:Own": [None, True]},
        extra={"note": {1: "a"}},
    )
    contents.train_state.loss_scale = {"scale": 65536.0, "_growth_tracker": 3}
    folder = str(output / "checkpoint-3")
    save_checkpoint(folder, contents, save_model=trained.save_model)
    back = load_checkpoint(folder)
    assert back.plugins == {"strategy:single": {"version": "0.1.0"}}
    assert back.configuration == {"options": {"$odd": 1}, "limit": "inf"}
    assert back.position is not None
    assert torch.equal(back.position.pop("random"), contents.position["random"])
    assert back.position == {"epoch": 1, "batch": 7}
    assert back.loss == {"sum": torch.tensor(1.25), "rows": 3}
    assert back.plugin_states == contents.plugin_states
    assert back.callback_states == contents.callback_states
    assert back.extra == {"note": {1: "a"}}
    assert back.train_state is not None
    assert back.train_state.loss_scale == {"scale": 65536.0, "_growth_tracker": 3}
    assert back.scheduler == trained.scheduler.state_dict()
    assert (back.step, back.world_size) == (3, 1)
    assert back.versions["torch"] == torch.__version__
    assert isinstance(back.trainer_state, dict)
    assert back.trainer_state["epoch"] == 0.5
    assert np.isnan(back.trainer_state["log_history"][0]["loss"])


def test_the_documented_state_file_is_readable_as_ever(output: Path, trained: Any) -> None:
    save_checkpoint(str(output / "checkpoint-3"), trained.contents(), save_model=trained.save_model)
    text = (output / "checkpoint-3" / "trainer_state.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_no_token_is_written(output: Path, trained: Any) -> None:
    token = "hf_" + "a1B2c3D4" * 4
    contents = trained.contents(
        configuration={"logger": {"api_key": "0123456789abcdef"}, "url": f"https://user:{token}@host"},
    )
    contents.args = {
        "hub_token": token, "push_to_hub_token": token, "include_tokens_per_second": True, "seed": 7,
        "nested": [{"password": "0123456789abcdef"}], "tokenizer": "kept",
    }  # fmt: skip
    save_checkpoint(str(output / "checkpoint-3"), contents, save_model=trained.save_model)
    for path in (output / "checkpoint-3").rglob("*"):
        raw = path.read_bytes()
        assert token.encode() not in raw, path
        assert b"0123456789abcdef" not in raw, path
    back = load_checkpoint(str(output / "checkpoint-3"))
    assert back.args["include_tokens_per_second"] is True
    assert back.args["tokenizer"] == "kept"
    assert back.args["hub_token"] is None


def test_nothing_is_pickled(output: Path, trained: Any) -> None:
    trained.model(torch.randn(5, 6)).sum().backward()
    save_checkpoint(str(output / "checkpoint-3"), trained.contents(), save_model=trained.save_model)
    names = {path.name for path in (output / "checkpoint-3").iterdir()}
    assert {path.split(".")[-1] for path in names} == {"json", "safetensors"}
    assert "gradients.safetensors" in names


def test_one_that_stands_there_is_replaced(output: Path, make_trained: Any) -> None:
    folder = str(output / "checkpoint-3")
    for seed in (1, 2):
        net = make_trained(seed=seed)
        save_checkpoint(folder, net.contents(), save_model=net.save_model)
        assert torch.equal(restored(make_trained, folder).model[0].weight, net.model[0].weight)
    assert os.listdir(output) == ["checkpoint-3"]


def test_a_save_that_fails_leaves_the_one_before(output: Path, make_trained: Any) -> None:
    net = make_trained()
    folder = str(output / "checkpoint-3")
    save_checkpoint(folder, net.contents(), save_model=net.save_model)

    def fails(into: str) -> None:
        net.save_model(into)
        raise RuntimeError("from the script")

    with pytest.raises(RuntimeError, match="from the script"):
        save_checkpoint(folder, net.contents(), save_model=fails)
    with pytest.raises(CheckpointError, match=r"callback_states\['x'\] is a builtins\.object"):
        save_checkpoint(folder, net.contents(callback_states={"x": object()}), save_model=net.save_model)
    assert os.listdir(output) == ["checkpoint-3"]
    assert validate(folder) is None


def test_a_file_system_that_refuses_is_one_sentence(output: Path, make_trained: Any) -> None:
    net = make_trained()
    save_checkpoint(str(output / "checkpoint-3"), net.contents(), save_model=net.save_model)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
        with pytest.raises(CheckpointError) as caught:
            save_checkpoint(str(output / "checkpoint-4"), net.contents())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "checkpoint-4 was not written, because the system limits the size of files" in str(caught.value)
    assert os.listdir(output) == ["checkpoint-3"]
    (output / "file").write_text("")
    with pytest.raises(CheckpointError, match="checkpoint-9 was not written: "):
        save_checkpoint(str(output / "file" / "checkpoint-9"), net.contents())


def test_a_full_disk_says_how_much_is_missing(tmp_path: Path) -> None:
    error = OSError(28, "No space left on device")
    text = checkpoint_files.failure(str(tmp_path / "checkpoint-1"), 10**18, error)
    assert "is full: 1000000.0 TB" not in text
    assert text.startswith("Checkpoint checkpoint-1 was not written, because the disk of ")
    assert "TB more are needed; free some space there, or lower save_total_limit." in text
    assert "takes about 10.0 MB" in checkpoint_files.failure(str(tmp_path / "checkpoint-1"), 10**7, error)


def test_at_another_world_size_random_states_are_derived_and_it_is_said(
    output: Path, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(output / "checkpoint-3")
    saved = RandomState.capture()
    save_checkpoint(folder, trained.contents(), save_model=trained.save_model)
    draws = []
    with caplog.at_level(logging.WARNING, "drivetrain"):
        for rank in (0, 1, 2, 1):
            state = load_checkpoint(folder, rank, 3).random
            assert state is not None
            state.restore()
            draws.append((random.random(), np.random.rand(), float(torch.rand(1))))
    saved.restore()
    assert draws[0] == (random.random(), np.random.rand(), float(torch.rand(1)))  # the order of rows goes on
    assert draws[1] == draws[3]
    assert len({draw[2] for draw in draws}) == 3
    assert len(caplog.records) == 1  # of rank 0
    assert (
        "1 process(es) saved it and 3 resume it, so rank r > 0 draws from a seed of (7, 3, r)" in caplog.text
    )


def test_random_states_of_numpys_and_pythons_gauss_are_whole(output: Path) -> None:
    random.gauss(0, 1)  # leaves a second number in hand
    np.random.standard_normal()
    state = RandomState.capture()
    drawn = [random.gauss(0, 1), np.random.standard_normal(), random.random()]
    save_checkpoint(str(output / "checkpoint-1"), CheckpointContents(random=state))
    random.seed(0)
    np.random.seed(0)
    back = load_checkpoint(str(output / "checkpoint-1")).random
    assert back is not None
    back.restore()
    assert [random.gauss(0, 1), np.random.standard_normal(), random.random()] == drawn


def test_a_random_state_that_does_not_fit_is_one_sentence() -> None:
    state = RandomState.capture()
    state.torch_cpu = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="random state does not fit this Python, numpy or torch"):
        state.restore()


def test_a_gradient_of_another_shape_is_named(output: Path) -> None:
    state = TrainState({"w": torch.ones(3)}, gradients={"w": torch.ones(2)})
    save_checkpoint(str(output / "checkpoint-1"), CheckpointContents(train_state=state))
    with pytest.raises(CheckpointError, match=r"gradient of 'w' has shape \(2,\) and its weight \(3,\)"):
        load_checkpoint(str(output / "checkpoint-1"))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("run.json", {"step": "three"}, "holds no 'step' that can be used"),
        ("run.json", {"position": 3}, "holds no 'position' that can be used"),
        ("run.json", {"format": 2}, "this version reads 1"),
        ("run.json", None, "lacks 'format'"),
        ("optimizer.json", {"state": {"x": {"step": {"$tensor": "gone"}}}}, "names the tensor 'gone'"),
        ("optimizer.json", {"groups": [{}]}, "does not hold an optimizer's state"),
        ("optimizer.json", {"state": [1]}, "does not hold an optimizer's state"),
        ("random-0.json", {"state": {}}, "random state lacks 'python'"),
        ("random-0.json", {"state": {"$what": 1}}, "'$what', which this version does not know"),
        ("scheduler.json", {"state": {"$float": []}}, "holds a $float that cannot be read"),
    ],
)
def test_a_file_that_was_sealed_with_nonsense_is_one_sentence(
    output: Path, trained: Any, name: str, change: Any, words: str
) -> None:
    from drivetrain.checkpoint.manifest import seal

    folder = output / "checkpoint-3"
    save_checkpoint(str(folder), trained.contents(), save_model=trained.save_model)
    content = {} if change is None else {**json.loads((folder / name).read_text()), **change}
    (folder / name).write_text(json.dumps(content))
    (folder / "manifest.json").unlink()
    seal(str(folder))
    assert last_checkpoint(str(output)) == str(folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(folder))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
