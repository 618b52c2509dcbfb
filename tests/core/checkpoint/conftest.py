from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drivetrain.checkpoint import CheckpointContents, optimizer_state_out, write_model
from drivetrain.slots import TrainState


class Trained:
    """A small network that has taken some steps, and what a checkpoint of it holds."""

    def __init__(self, steps: int = 3, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 5])
        self.step = 0
        for _ in range(steps):
            self.train_step()

    def train_step(self) -> None:
        self.model(torch.randn(5, 6)).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1

    def contents(self, **fields: object) -> CheckpointContents:
        named = list(self.model.named_parameters())
        state, groups, extra = optimizer_state_out(self.optimizer, named)
        gradients = {name: p.grad for name, p in named if p.grad is not None}
        return CheckpointContents(
            train_state=TrainState(dict(self.model.state_dict()), state, groups, gradients, None, extra),
            scheduler=self.scheduler.state_dict(),
            trainer_state={
                "global_step": self.step,
                "epoch": 0.5,
                "log_history": [{"loss": float("nan"), "step": 1}],
            },
            args={"seed": 7, "output_dir": "out"},
            **fields,  # type: ignore[arg-type]
        )

    def save_model(self, folder: str) -> object:
        return write_model(self.model, folder)


@pytest.fixture
def trained() -> Trained:
    return Trained()


@pytest.fixture(autouse=True)
def random_states_stay() -> Iterator[None]:
    """A test that restores a random state leaves none behind for the next."""
    from drivetrain.checkpoint import RandomState

    before = RandomState.capture()
    yield
    before.restore()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def make_trained() -> type[Trained]:
    return Trained
