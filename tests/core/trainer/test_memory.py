"""`auto_find_batch_size`: torch's own out-of-memory errors, and a restart that equals a run begun so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import Toy, history, trainer, weights_equal

from drivetrain import TrainerCallback
from drivetrain.errors import DrivetrainError
from drivetrain.memory import is_out_of_memory


class Greedy(Toy):
    """Asks torch's allocator for more than any machine has, for batches above a size, from an update on."""

    def __init__(self, rows: int = 4, calls: int = 0, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.rows, self.calls = rows, calls
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen += 1
            if len(x) > self.rows and int(self.seen) > self.calls:
                torch.empty(2**46)
        return super().forward(x, labels)


def test_torchs_own_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("something else"))
    assert not is_out_of_memory(KeyboardInterrupt())


class Count(TrainerCallback):
    """A state that a failed attempt must not leave behind."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1

    def save_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def run(folder: Path, **values: Any) -> tuple[Any, Count]:
    torch.manual_seed(0)
    count = Count()
    model = values.pop("model", None) or Greedy(dropout=0.2, calls=3)
    settings: dict[str, Any] = {
        "num_train_epochs": 1,
        "logging_steps": 2,
        "evaluation_strategy": "steps",
        "eval_steps": 2,
    }
    made = trainer(folder, model=model, callbacks=[count], **{**settings, **values})
    made.train()
    return made, count


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_restart_equals_a_run_begun_with_the_smaller_batch(
    tmp_path: Path, accumulation: int, caplog: pytest.LogCaptureFixture
) -> None:
    found, count = run(
        tmp_path / "a",
        per_device_train_batch_size=16,
        auto_find_batch_size=True,
        gradient_accumulation_steps=accumulation,
    )
    assert "Out of memory with 16 rows a device: starting again with 8." in caplog.text
    assert "Out of memory with 8 rows a device: starting again with 4." in caplog.text
    begun, reference = run(
        tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=accumulation
    )
    assert found.state.global_step == begun.state.global_step
    assert history(found) == history(begun)
    assert weights_equal(found.model, begun.model)
    assert count.steps == reference.steps
    # The argument is the user's: it stays as it was set.
    assert found.args.per_device_train_batch_size == 16


def test_an_optimizer_that_was_handed_in_is_put_back(tmp_path: Path) -> None:
    def own(folder: Path, **values: Any) -> Any:
        torch.manual_seed(0)
        model = Greedy(calls=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return run(folder, model=model, optimizers=(optimizer, scheduler), **values)[0]

    found = own(tmp_path / "a", per_device_train_batch_size=8, auto_find_batch_size=True)
    begun = own(tmp_path / "b", per_device_train_batch_size=4)
    assert weights_equal(found.model, begun.model)
    assert history(found) == history(begun)


def test_one_row_that_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(DrivetrainError, match="out of memory even with one row a device"):
        run(tmp_path, model=Greedy(rows=0), per_device_train_batch_size=4, auto_find_batch_size=True)


def test_without_it_the_error_is_torchs(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        run(tmp_path, per_device_train_batch_size=8)


def test_another_error_ends_the_run(tmp_path: Path) -> None:
    class Broken(Toy):
        def forward(self, x: Any, labels: Any = None) -> Any:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run(tmp_path, model=Broken(), auto_find_batch_size=True)


SCRIPT = """
import resource, sys
import numpy as np
import torch
from drivetrain.checkpoint import RandomState
from support.toy import Toy, history, rows, trainer, weights_equal

folder, hard = sys.argv[1], resource.getrlimit(resource.RLIMIT_AS)[1]


class Wide(Toy):
    when = ""

    def forward(self, x, labels=None):
        if self.when in ("both", "train" if self.training else "eval"):
            x = x + 0 * x.repeat(1, 65_536).sin().mean(1, keepdim=True)  # 2 MB a row, and 2 for its sine
        return super().forward(x, labels)


def made(name, when, **values):
    settings = dict(max_steps=4, logging_steps=1, save_strategy="no", per_device_train_batch_size=2)
    settings |= dict(per_device_eval_batch_size=2, evaluation_strategy="steps", eval_steps=2)
    torch.manual_seed(0)
    model = Wide(0.2)
    model.when = when
    settings |= dict(data=rows(70))
    return trainer(f"{folder}/{name}", model=model, **{**settings, **values})


def limited(work):
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 120 * 2**20, hard))
    try:
        return work()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


made("first", "").train()  # what torch maps at its first use is mapped now

found = made("a", "train", per_device_train_batch_size=64, auto_find_batch_size=True)
limited(found.train)
size = found._train_batch_size
assert size in (8, 16, 32), size
plain = made("b", "train", per_device_train_batch_size=size)
plain.train()
assert weights_equal(found.model, plain.model) and history(found) == history(plain)

found = made("c", "eval", per_device_eval_batch_size=64, auto_find_batch_size=True)
limited(found.train)
size = found._eval_batch_size
assert size in (8, 16, 32), size
assert found._train_batch_size == 2
random = RandomState.capture()
plain = made("d", "eval", per_device_eval_batch_size=size)
plain.train()
assert weights_equal(found.model, plain.model) and history(found) == history(plain)
assert torch.equal(random.torch_cpu, RandomState.capture().torch_cpu)

for name in ("evaluate", "predict"):  # by themselves
    one = made("e", "eval", per_device_eval_batch_size=64, auto_find_batch_size=True)
    data = rows(70, seed=3)
    torch.manual_seed(1)
    got = limited(lambda: getattr(one, name)(data))
    random, size = RandomState.capture(), one._eval_batch_size
    assert size in (8, 16, 32), size
    other = made("f", "eval", per_device_eval_batch_size=size)
    torch.manual_seed(1)
    wanted = getattr(other, name)(data)
    assert torch.equal(random.torch_cpu, RandomState.capture().torch_cpu)
    if name == "predict":
        assert np.array_equal(got.predictions, wanted.predictions)
        assert got.metrics["test_loss"] == wanted.metrics["test_loss"]
    else:
        assert got["eval_loss"] == wanted["eval_loss"]

kept = made("g", "train", per_device_train_batch_size=64, auto_find_batch_size=True, keep_effective_batch_size=True)
kept.model.dropout.p = 0.0
limited(kept.train)
assert kept._train_batch_size == 64 and kept._parts in (2, 4, 8), kept._parts
whole = made("h", "", per_device_train_batch_size=64)
whole.model.dropout.p = 0.0
whole.train()
for name, weight in whole.model.state_dict().items():
    torch.testing.assert_close(kept.model.state_dict()[name], weight, rtol=2e-5, atol=2e-5)
print("DONE")
"""


@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to know how much is mapped")
def test_a_process_that_has_too_little_memory(tmp_path: Path) -> None:
    """In training, in an evaluation in its midst, in one by itself, and with the update's rows kept."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "DONE"
    assert "Out of memory with 64 rows a device: starting again with 32." in done.stderr
    assert "Out of memory with 64 rows a device in an evaluation: starting it again with 32." in done.stderr
    assert "starting again with 32, 2 parts a batch." in done.stderr
