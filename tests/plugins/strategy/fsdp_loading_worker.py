"""Models that are too large for one process, in several. Called with a folder and the name of what to do."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from plugins.strategy.fsdp_model import Hard, rows
from support.toy import trainer
from torch import nn

from drivetrain import Trainer, TrainingArguments
from drivetrain.errors import DrivetrainError
from drivetrain.processes import current

WIDTH, DEPTH = 1024, 96  # 403 MB of weights


class Initialised(Hard):
    """As models of transformers are: initialised once by their layers and then once more as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rotary", 1.0 / (10000 ** (torch.arange(0, 6, 2) / 6)), persistent=False)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        self.apply(self.initialise)

    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.3)
            module.bias.data.zero_()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return super().forward(x * self.rotary.sum(), labels)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * self.inner(x)


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = self.first(x)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.last(hidden)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def own_memory() -> int:
    """Bytes of memory that are this process's own, without what is mapped from files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


class Peak:
    """The most memory that there was at a time, looked at every few milliseconds."""

    def __enter__(self) -> Peak:
        self.base = self.most = own_memory()
        self.going = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.going:
            self.most = max(self.most, own_memory())
            time.sleep(0.002)

    def __exit__(self, *error: Any) -> None:
        self.going = False
        self.thread.join()

    @property
    def grown(self) -> int:
        return self.most - self.base


def small(folder: Path, build: Any, **settings: Any) -> Trainer:
    world = dist.get_world_size() if dist.is_initialized() else 1
    return trainer(
        folder,
        data=rows(53),
        per_device_train_batch_size=8 // world,
        logging_steps=1,
        save_strategy="no",
        num_train_epochs=1,
        **build,
        **settings,
    )


def result(made: Trainer) -> dict[str, Any]:
    loss = made.train().training_loss
    found: dict[str, Any] = {"loss": loss, "evaluated": made.evaluate()["eval_loss"]}
    found["again"] = made.train().training_loss if made.model_init is None else None
    found["sharded"] = any(hasattr(p, "to_local") for p in made.model.parameters())
    made.save_model(str(Path(made.args.output_dir) / "saved"))
    return found


def scenarios(folder: Path) -> dict[str, Any]:
    """Small models, by every way; called in one process it is what the others must equal."""
    several = dist.is_initialized()
    lean = {"fsdp_config": {"cpu_ram_efficient_loading": True}} if several else {}
    found: dict[str, Any] = {}
    for version in (2, 1):
        fsdp = {"fsdp": "full_shard auto_wrap", "fsdp_version": version} if several else {}
        found[f"init{version}"] = result(
            small(folder / f"init{version}", {"model_init": Initialised}, **fsdp, **lean)
        )
        files = {"plugins": {"fsdp": {"weights": str(folder / "weights")}}} if several else {}
        if several:
            with torch.device("meta"):
                given = Hard(frozen=False, scalar=False)
            given.mixing = torch.empty(5, 3, device="meta")
        else:
            from safetensors.torch import load_file

            given = Hard(frozen=False, scalar=False)
            given.load_state_dict(load_file(folder / "weights" / "model.safetensors"), strict=False)
        found[f"files{version}"] = result(
            small(folder / f"files{version}", {"model": given}, **fsdp, **files)
        )
    if several:
        with torch.device("meta"):
            given = Hard()
        for name, settings in {
            "nothing": {},
            "lacking": {"plugins": {"fsdp": {"weights": str(folder / "weights")}}},
        }.items():
            try:
                small(folder / name, {"model": given}, fsdp="full_shard auto_wrap", **settings).train()
            except DrivetrainError as error:
                found[name] = str(error)
    return found


def large(folder: Path, source: str) -> dict[str, Any]:
    """Evaluates a large model; what memory it took, and what came out."""
    settings: dict[str, Any] = {
        "fsdp": "full_shard auto_wrap",
        "fsdp_version": 2,
        "fsdp_config": {"cpu_ram_efficient_loading": True},
    }
    if source == "files":
        settings["plugins"] = {"fsdp": {"weights": str(folder / "large")}}
    # What is imported on the way is no part of a model.
    small(folder / "warm", {"model_init": Initialised}, **{**settings, "plugins": None}).evaluate()
    with Peak() as peak:
        made = trainer(
            folder / "out", data=rows(16), model_init=Large, per_device_eval_batch_size=8, **settings
        )
        evaluated = made.evaluate()["eval_loss"]
    with Peak() as later:
        again = made.evaluate()["eval_loss"]
    bytes_of_model = 4 * (DEPTH * WIDTH * WIDTH + 12 * WIDTH + 3)
    return {
        "share": peak.grown / bytes_of_model,
        "later": later.grown / bytes_of_model,
        "evaluated": evaluated,
        "again": again,
    }


def main(folder: Path, what: str) -> None:
    processes = current(TrainingArguments(str(folder), use_cpu=True, report_to="none"))
    found = scenarios(folder) if what == "small" else large(folder, what)
    everyone: list[Any] = [None] * processes.world_size
    dist.all_gather_object(everyone, found)
    if processes.rank == 0:
        (folder / f"{what}.json").write_text(json.dumps(everyone))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
