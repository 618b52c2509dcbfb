"""Where the time of a run goes: by a clock that stands still unless somebody moves it, and by the real one."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.launch import torchrun
from support.toy import Toy, rows, trainer
from torch import Tensor

from drivetrain import Trainer, TrainerCallback, device_timing, hookimpl, timing, timing_told
from drivetrain.callbacks import handler
from drivetrain.device_timing import EVERY, DeviceTiming
from drivetrain.shares import duration, percent

Spend = Callable[[float], None]


@pytest.fixture
def spend(monkeypatch: pytest.MonkeyPatch) -> Spend:
    """Moves the clock of `Timing`, which stands still else: a stand-in, so that seconds can be told exactly."""
    now = [0.0]

    def pass_(seconds: float) -> None:
        now[0] += seconds

    for module in (timing, handler):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    return pass_


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, spend: Spend, seconds: float) -> Tensor:  # type: ignore[override]
        ctx.spend, ctx.seconds = spend, seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.spend(ctx.seconds)
        return gradients[0], None, None


class Model(Toy):
    """Two units of time forward, three backward; one forward in an evaluation."""

    def __init__(self, spend: Spend, unit: float = 1.0) -> None:
        super().__init__()
        self.spend, self.unit = spend, unit

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        found = super().forward(x, labels)
        if not self.training:
            self.spend(self.unit)
            return found
        self.spend(2 * self.unit)
        return {"loss": Backward.apply(found["loss"], self.spend, 3 * self.unit), "logits": found["logits"]}


class Data(torch.utils.data.Dataset[Any]):
    """An eighth of a unit a row."""

    def __init__(self, count: int, spend: Spend, unit: float = 1.0) -> None:
        self.rows, self.spend, self.unit = rows(count), spend, unit

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        self.spend(self.unit / 8)
        return self.rows[index]


class Callback(TrainerCallback):
    """Half a unit after each update, four when a checkpoint is whole."""

    def __init__(self, spend: Spend, unit: float = 1.0) -> None:
        self.spend, self.unit = spend, unit

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.spend(self.unit / 2)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.spend(4 * self.unit)


class Listener:
    """A quarter of a unit before each micro-batch, five units for each row of the log."""

    name = "listener"

    def __init__(self, spend: Spend, unit: float = 1.0) -> None:
        self.spend, self.unit = spend, unit

    @hookimpl
    def on_micro_batch(self) -> None:
        self.spend(self.unit / 4)

    @hookimpl
    def on_log(self) -> None:
        self.spend(5 * self.unit)


class Saving(Trainer):
    """Seven units for a checkpoint."""

    spend: Spend

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        self.spend(7.0)
        super().save_model(*args, **kwargs)


def made(folder: Path, spend: Spend, **values: Any) -> Trainer:
    settings = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "evaluation_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 4,
        "logging_steps": 2,
        "max_steps": 4,
        "record": False,
    }
    found = trainer(
        folder,
        model=Model(spend),
        data=Data(64, spend),
        eval_dataset=rows(24),
        callbacks=[Callback(spend)],
        plugins=[Listener(spend)],
        cls=Saving,
        **{**settings, **values},
    )
    found.spend = spend  # type: ignore[attr-defined]
    return found


def test_every_second_is_in_its_part(tmp_path: Path, spend: Spend) -> None:
    run = made(tmp_path, spend)
    run.train()
    # Four updates; rows of the log: two of training, two of evaluations, one of the end; one batch is fetched ahead.
    assert run.run.timing.plugins == {
        "Callback": 4 * 0.5 + 4,
        "listener": 4 * 0.25 + 5 * 5,
        "printer": 0,
    }
    parts = run.run.timing.parts()
    assert parts == {
        "data": 5.0,
        "forward": 8.0,
        "backward": 12.0,
        "evaluation": 6.0,  # twice three batches
        "saving": 7.0,
        "plugins": 32.0,
    }


def test_accumulation_and_an_overridden_step(tmp_path: Path, spend: Spend) -> None:
    run = made(tmp_path, spend, gradient_accumulation_steps=2, evaluation_strategy="no", save_strategy="no")
    run.train()
    assert {name: run.run.timing.parts()[name] for name in ("forward", "backward")} == {
        "forward": 16.0,
        "backward": 24.0,
    }

    class Own(Saving):
        def training_step(self, model: Any, inputs: Any) -> Tensor:
            loss: Tensor = model(**inputs)["loss"]
            loss.backward()
            return loss.detach()

    run = made(tmp_path, spend, evaluation_strategy="no", save_strategy="no")
    run.__class__ = Own
    run.train()
    parts = run.run.timing.parts()
    assert parts["forward and backward"] == 20.0
    assert "forward" not in parts


def test_an_evaluation_and_a_checkpoint_of_a_callback_are_what_they_are(tmp_path: Path, spend: Spend) -> None:
    class Evaluating(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            spend(1.0)
            run.evaluate()
            run._save_checkpoint(run.model, None)
            spend(1.0)

    run = made(tmp_path, spend, evaluation_strategy="no", save_steps=100, max_steps=1)
    run.add_callback(Evaluating)
    run.train()
    assert run.run.timing.plugins["Evaluating"] == 2.0
    assert run.run.timing.parts()["evaluation"] == 3.0
    assert run.run.timing.parts()["saving"] == 7.0


def test_sleep_is_found_where_it_was_slept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the real clock: no part has less than was slept in it, and all together are the run's time."""
    unit, sleep = 0.01, time.sleep
    run = trainer(
        tmp_path,
        model=Model(sleep, unit),
        data=Data(800, sleep, 8 * 2 * unit),
        callbacks=[Callback(sleep, unit)],
        plugins=[Listener(sleep, unit)],
        max_steps=8,
        per_device_train_batch_size=8,
        save_strategy="no",
        disable_tqdm=False,
    )
    before = time.perf_counter()
    run.train()
    passed = time.perf_counter() - before
    found = run.run.timing
    parts = found.parts()
    for part, units in {"data": 9 * 16, "forward": 16, "backward": 24}.items():
        assert parts[part] >= units * unit
    assert found.plugins["Callback"] >= 4 * unit
    assert found.plugins["listener"] >= 7 * unit
    last = sum(found.ranks[0].values())
    assert (9 * 16 + 16 + 24 + 11) * unit <= last <= passed
    printed = capsys.readouterr().out.splitlines()
    said = [
        line for line in printed if line.startswith(("Time: ", "Spent on: ", "Plugins: ", "Data loading"))
    ]
    assert len(said) == 4
    assert all(f"{part} " in said[1] for part in ("data", "forward", "backward"))
    assert "listener" in said[2]
    assert re.match(r"Data loading is the bottleneck: updates waited for it \d+ % of their time\.", said[3])


def test_silent_runs_put_the_lines_into_the_log(
    tmp_path: Path, spend: Spend, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "drivetrain")
    made(tmp_path, spend, log_level="info").train()
    assert (
        "Spent on: plugins 46 %, backward 17 %, forward 11 %, saving 10 %, evaluation 8.6 %, data 7.1 %."
        in caplog.text
    )
    assert "Plugins: listener 26.0 s, Callback 6.0 s." in caplog.text
    assert "Spent on" not in capsys.readouterr().out
    assert "bottleneck" not in caplog.text


def test_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is true of the loader and the machine."""

    def said(wait: float, cores: int, **loader: Any) -> str:
        return timing_told._advice(SimpleNamespace(**loader), wait, cores)

    assert "dataloader_num_workers=3 would fetch" in said(0.1, 4, num_workers=0)
    assert "workers would not better" in said(0.0001, 4, num_workers=0)
    assert said(0.1, 1, num_workers=0).endswith("there is no core for a worker.")
    assert "up to dataloader_num_workers=7" in said(0.1, 8, num_workers=2)
    assert said(0.1, 4, num_workers=4).endswith("there is a worker for each core already.")
    assert said(0.1, 4).endswith("a batch takes 100 ms.")

    run: Any = SimpleNamespace(
        state=SimpleNamespace(global_step=10),
        accumulation=1,
        train_dataloader=SimpleNamespace(num_workers=0),
        processes=SimpleNamespace(local_world_size=1),
    )
    monkeypatch.setattr(timing_told, "cores", lambda: 4)
    quick = {"data": 1.0, "forward": 9.0}
    assert timing_told.hint(run, [quick]) is None
    assert timing_told.hint(run, [{"data": 0.9, "forward": 0.1}]) is None  # not worth a word
    both = timing_told.hint(run, [quick, {"data": 5.0, "forward": 5.0, "evaluation": 90.0}])
    assert both is not None
    assert "50 % of their time in rank 1." in both


def test_durations_and_shares() -> None:
    assert [duration(value) for value in (0.00831, 0.9999, 4.2, 59.96, 723, 11100)] == [
        *("8.31 ms", "1.0 s", "4.2 s", "1 min 0 s", "12 min 3 s", "3 h 05 min")
    ]
    assert [percent(value) for value in (0.314, 0.0999, 0.004)] == ["31 %", "10 %", "0.4 %"]


class Event:
    """A stand-in for a device's event, since there is no device: the time at which it is recorded, or never done."""

    now = 0.0
    done = True

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return Event.done

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_one_update_in_many_is_timed_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "now", 0.0)
    device = DeviceTiming(Event)
    laps = {"data": 1.0, "forward": 2.0, "backward": 3.0, "other": 0.5, "optimizer": 4.0}

    def update(factor: float = 1.0) -> None:
        # Two micro-batches; after the update there is an evaluation, of which the clock of an update has nothing.
        for part in ("data", "forward", "backward", "other", "data", "forward", "backward", "optimizer"):
            Event.now += factor * laps[part]
            device.lap(part)
        Event.now += 1000.0
        device.lap("other")

    update()  # the first one of a run is not timed: nothing stands before it
    update()
    whole = 2 * (1 + 2 + 3) + 0.5 + 4
    assert device.shares() == {
        "data": 2 / whole,
        "forward": 4 / whole,
        "backward": 6 / whole,
        "other": 0.5 / whole,
        "optimizer": 4 / whole,
    }
    monkeypatch.setattr(Event, "done", False)
    for _ in range(EVERY):
        update(2.0)
    assert sum(device.milliseconds.values()) == whole  # nobody waits for an event
    monkeypatch.setattr(Event, "done", True)
    device.shares()
    assert sum(device.milliseconds.values()) == 3 * whole

    found = timing.Timing()
    found.device = device
    found.seconds.update({"data": 1.0, "forward": 1.0, "backward": 1.0, "waiting": 15.0, "logging": 1.0})
    found.mark = timing.perf_counter()
    parts = found.parts()
    assert parts["backward"] == pytest.approx(18 * 6 / whole, rel=1e-3)
    assert parts["logging"] == 1.0
    assert "waiting" not in parts


def test_a_host_has_no_clock_beside_its_own() -> None:
    assert DeviceTiming.of(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, whose events keep the time")
def test_updates_on_cuda_are_timed_there(tmp_path: Path) -> None:
    run = trainer(tmp_path, use_cpu=False, max_steps=3 * EVERY, save_strategy="no", logging_steps=EVERY)
    run.train()
    assert run.run.timing.device is not None
    shares = run.run.timing.device.shares()
    assert set(shares) >= {"data", "forward", "backward", "optimizer"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert device_timing.EVERY == EVERY


RANKS = """
import sys, time
import torch, torch.distributed as dist
from support.toy import rows, trainer

class Data(torch.utils.data.Dataset):
    def __init__(self):
        self.rows = rows(64)
    def __len__(self):
        return 64
    def __getitem__(self, index):
        time.sleep(0.04 if dist.get_rank() == 1 else 0.0)
        return self.rows[index]

made = trainer(sys.argv[1], data=Data(), max_steps=8, per_device_train_batch_size=4, disable_tqdm=False, save_strategy="no")
made.train()
waited = [parts["data"] for parts in made.run.timing.ranks]
assert waited[1] >= 8 * 4 * 0.04, waited
"""


def test_the_rank_that_waits_is_named_and_one_speaks(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS, encoding="utf-8")
    printed = torchrun(script, str(tmp_path / "out"))
    assert printed.count("Spent on: ") == 1
    assert re.search(r"data [\d.]+ % \(rank 1: \d+ %\)", printed), printed
    assert "of their time in rank 1." in printed
    lines = (tmp_path / "out" / "drivetrain-record.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum('"kind": "begin"' in line for line in lines) == 1
    assert sum('"kind": "end"' in line for line in lines) == 1
