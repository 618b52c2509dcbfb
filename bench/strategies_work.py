"""What is trained in `strategies.py`: two models, their data, and the clock that the models carry.

As in `workload.py` the time of a step is that from one forward pass to the next, on every process for itself;
set-up and the first steps are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from workload import Batches, as_it_is

LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 1e-3, 0.01, 1.0


def memory(field: str) -> float:
    """A figure of this process in MiB: VmRSS now, VmHWM at its highest; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


class Clock:
    """Wall and processor time of every `window` calls; after the last of them it is `done`.

    Attributes:
        total: how many updates a run needs so that the last window is closed.
        stamps: (wall, processor) seconds, at the edges of the windows. Processor time is that of all threads of
            this process; a process that waits for another uses none.
        peak: MiB, the highest resident set of this process until the last call.
    """

    def __init__(self, warm_up: int, window: int, windows: int) -> None:
        self.warm_up, self.window = warm_up, window
        self.total = warm_up + windows * window + 1
        self.calls = 0
        self.stamps: list[tuple[float, float]] = []
        self.peak = 0.0

    def tick(self) -> None:
        if self.calls >= self.warm_up and (self.calls - self.warm_up) % self.window == 0:
            self.stamps.append((time.perf_counter(), time.process_time()))
        self.calls += 1
        if self.calls == self.total:
            self.peak = memory("VmHWM")

    @property
    def windows(self) -> list[tuple[float, float]]:
        """(wall, processor) milliseconds a step of each window."""
        if self.calls != self.total:
            raise RuntimeError(f"{self.calls} steps were made of {self.total}")
        pairs = zip(self.stamps, self.stamps[1:], strict=False)
        return [((b[0] - a[0]) / self.window * 1e3, (b[1] - a[1]) / self.window * 1e3) for a, b in pairs]


class Timed(nn.Module):
    """A model with a clock; `forward(x, labels)` gives the loss and the logits, as the trainers expect it."""

    clock: Clock

    def logits(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.clock.tick()
        logits = self.logits(x)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return {"loss": loss, "logits": logits}


class Dense(nn.Module):
    """A residual layer: what is sharded as a unit in the small model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(x))


class Classifier(Timed):
    """42,000 parameters: too small to hide what a trainer costs."""

    FEATURES, WIDTH, CLASSES = 64, 128, 10

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.first = nn.Linear(self.FEATURES, self.WIDTH)
        self.blocks = nn.Sequential(Dense(self.WIDTH), Dense(self.WIDTH))
        self.last = nn.Linear(self.WIDTH, self.CLASSES)

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.blocks(torch.relu(self.first(x))))
        return logits


class Block(nn.Module):
    """A layer of a transformer, norms first: what is sharded as a unit."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(rows, length, width))
        down: Tensor = self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return x + down


class Transformer(Timed):
    """A small language model of 5.0 million parameters."""

    VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 512, 64, 256, 4, 6

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.words = nn.Embedding(self.VOCABULARY, self.WIDTH)
        self.places = nn.Embedding(self.LENGTH, self.WIDTH)
        self.blocks = nn.Sequential(*(Block(self.WIDTH, self.HEADS) for _ in range(self.LAYERS)))
        self.norm = nn.LayerNorm(self.WIDTH)
        self.head = nn.Linear(self.WIDTH, self.VOCABULARY)

    def logits(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        logits: Tensor = self.head(self.norm(self.blocks(self.words(x) + self.places(places))))
        return logits


def numbers(rows: int) -> Batches:
    """Rows of the small model, with the labels of a random teacher."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, Classifier.FEATURES, generator=generator)
    teacher = torch.randn(Classifier.FEATURES, Classifier.CLASSES, generator=generator)
    return Batches(x, (x @ teacher).argmax(1))


def sentences(rows: int) -> Batches:
    """Rows of the transformer: arithmetic progressions, so that the next word can be learnt."""
    generator = torch.Generator().manual_seed(0)
    start, step = torch.randint(0, Transformer.VOCABULARY, (2, rows, 1), generator=generator)
    words = (start + step * torch.arange(Transformer.LENGTH + 1)) % Transformer.VOCABULARY
    return Batches(words[:, :-1].contiguous(), words[:, 1:].contiguous())


@dataclass(frozen=True)
class Work:
    """What an engine trains, and in which portions it is timed.

    Attributes:
        block: the class of the layers that are sharded as units.
        batch: rows a process and step.
        steps: of an epoch, so of all processes together `batch * steps * processes` rows.
    """

    name: str
    model: Callable[[Clock], Timed]
    block: type[nn.Module]
    data: Callable[[int], Batches]
    batch: int
    steps: int
    warm_up: int
    window: int
    log_every: int
    folder: Path = Path()

    def clock(self, windows: int) -> Clock:
        return Clock(self.warm_up, self.window, windows)

    def dataset(self) -> Batches:
        return self.data(self.batch * self.steps * dist.get_world_size())

    def loader(self, spread: bool = True) -> DataLoader[Any]:
        """The loader that one writes by hand; with `spread` each process reads its own share."""
        dataset = self.dataset()
        sampler: Any = DistributedSampler(dataset, shuffle=True, seed=1) if spread else None
        return DataLoader(
            dataset, self.batch, shuffle=None if spread else True, sampler=sampler, collate_fn=as_it_is
        )


WORKS = {
    work.name: work
    for work in (
        Work("small", Classifier, Dense, numbers, 32, steps=200, warm_up=40, window=200, log_every=50),
        Work("transformer", Transformer, Block, sentences, 2, steps=1000, warm_up=4, window=10, log_every=5),
    )
}


def is_decayed(name: str) -> bool:
    """Weight decay spares biases and norms; decided by name, since an engine may flatten what it shards."""
    return "bias" not in name and "norm" not in name


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups: decayed and not."""
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if is_decayed(name)], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in named if not is_decayed(name)], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of every engine: torch's AdamW, fused."""
    return torch.optim.AdamW(groups(model), lr=LEARNING_RATE, fused=True)


def linear(optimizer: torch.optim.Optimizer, clock: Clock) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of every engine: linear to zero."""
    total = clock.total
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))


def zero_2(work: Work) -> dict[str, Any]:
    """DeepSpeed's configuration. What is not said is its default; clipping has to be said."""
    return {
        "train_micro_batch_size_per_gpu": work.batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": MAX_NORM,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
