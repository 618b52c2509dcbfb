"""The runs in which the effect of an argument is looked for, and the objects that a table cannot write down."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from drivetrain import Trainer, TrainerCallback, TrainingArguments, hookimpl
from support.observing import Seen
from support.toy import Toy, accuracy, rows, trainer

DATA, OTHER = rows(44), rows(23, seed=1)  # 44: a short last batch
SHORT: dict[str, Any] = {"data": DATA, "num_train_epochs": 1, "logging_steps": 2, "save_strategy": "no"}


def made(seen: Seen, folder: Path, **settings: Any) -> Trainer:
    """The scene's trainer, in `output_dir` below the folder."""
    output_dir = folder / settings.pop("output_dir", "out")
    if callable(make := settings.get("optimizers")):
        settings |= {"model": (model := Toy()), "optimizers": make(model)}
    seen.trainer = trainer(output_dir, **{**SHORT, **settings})
    return seen.trainer  # type: ignore[no-any-return]


def train(seen: Seen, folder: Path, **settings: Any) -> None:
    """Trains for an epoch, and evaluates."""
    one = made(seen, folder, **settings)
    seen.results += [one.train(), one.evaluate()]


def save(seen: Seen, folder: Path, **settings: Any) -> None:
    """The same with a checkpoint every other update."""
    train(seen, folder, **{"save_strategy": "steps", "save_steps": 2, "dropout": 0.2, **settings})


def rise(seen: Seen, folder: Path, **settings: Any) -> None:
    """Trains with a rate that spoils the model after the first update, and saves what it evaluates."""
    beside = {"evaluation_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    more: dict[str, Any] = {"max_steps": 3, "compute_metrics": falling, "learning_rate": 5.0}
    train(seen, folder, **{**beside, **more, **settings})


def falling(prediction: Any) -> dict[str, float]:
    """Two metrics that disagree about which of two predictions is better."""
    right = accuracy(prediction)["accuracy"]
    return {"accuracy": right, "wrong": 1 - right}


def predict(seen: Seen, folder: Path, **settings: Any) -> None:
    """Predicts."""
    seen.results.append(made(seen, folder, **settings).predict(DATA))


def again(seen: Seen, folder: Path, **settings: Any) -> None:
    """Trains where another run has left a checkpoint."""
    trainer(folder / "out", **SHORT | {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}).train()
    made(seen, folder, save_steps=2, **{"save_strategy": "steps", **settings}).train()


def resume(seen: Seen, folder: Path, **settings: Any) -> None:
    """Trains in the folder of a run of another seed that was stopped in the midst of its epoch."""

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= state.global_step == 3

    begun = SHORT | {"save_strategy": "steps", "save_steps": 3, "seed": 5, "dropout": 0.2}
    trainer(folder / "out", callbacks=[Stop()], **begun).train()
    one = made(seen, folder, **{**begun, "save_strategy": "no", "seed": 42, **settings})
    seen.results.append(one.train())


def fail(seen: Seen, folder: Path, **settings: Any) -> None:
    """An error of the user's in the fourth update."""

    class Fail(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise RuntimeError("an error of the user's")

    save(seen, folder, callbacks=[Fail()], **settings)


def block(seen: Seen, folder: Path, **settings: Any) -> None:
    """A file stands where the second checkpoint is to be."""

    class Block(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                shutil.rmtree(folder / "out")
                (folder / "out").write_text("in the way")

    save(seen, folder, callbacks=[Block()], **settings)


class Stream(torch.utils.data.IterableDataset[Any]):
    """Rows in their order, of which the first of the second batch is not a number."""

    def __iter__(self) -> Any:
        for index, row in enumerate(DATA):
            yield row | {"x": torch.full((8,), float("nan"))} if index == 8 else row


def nan(seen: Seen, folder: Path, **settings: Any) -> None:
    """The second update's loss is not a number."""
    train(seen, folder, data=Stream(), max_steps=4, eval_dataset=DATA, **{"logging_steps": 1, **settings})


class Greedy(Toy):
    """Asks torch's allocator for more than any machine has, for more than four rows in training."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if self.training and len(x) > 4:
            torch.empty(2**46)
        return super().forward(x, labels)


def greedy(seen: Seen, folder: Path, **settings: Any) -> None:
    """A batch of eight does not fit."""
    train(seen, folder, model=Greedy(), **settings)


class Rested(torch.nn.Module):
    """Adds what it has seen, which it is given as `mems`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, labels: Any = None, mems: Any = None) -> Any:
        total = x.mean() + (0.0 if mems is None else mems)
        logits = self.layer(x) * total
        return torch.nn.functional.cross_entropy(logits, labels), logits, total.detach()


def past(seen: Seen, folder: Path, **settings: Any) -> None:
    """A model with a memory."""
    train(seen, folder, model=Rested(), **settings)


class Deep(torch.nn.Module):
    """Repeated blocks, and an output that is not for the log."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Residual() for _ in range(3))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        for part in self.blocks:
            x = part(x)
        return {"loss": torch.nn.functional.cross_entropy(x, labels), "logits": x}


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.inner(x))


def deep(seen: Seen, folder: Path, **settings: Any) -> None:
    """A model of repeated blocks."""
    train(seen, folder, model=Deep(), **settings)


class Words(torch.nn.Module):
    """Reads sequences, and names its main input."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 3)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.table(input_ids)
        return {
            "loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()),
            "logits": logits,
        }


def sentence(index: int) -> dict[str, Any]:
    length = 1 + index * 7 % 5
    padded = [1] * length + [0] * (5 - length)
    labels = [index % 3] * length + [-100] * (5 - length)
    return {"input_ids": [index * i % 50 for i in range(5)], "mask": padded, "labels": labels, "size": length}


def by_input(prediction: Any) -> dict[str, float]:
    """A metric of the inputs where there are any."""
    return {"inputs": float(len(prediction.inputs)) if prediction.inputs is not None else 0.0}


def words(seen: Seen, folder: Path, **settings: Any) -> None:
    """Sequences of several lengths, padded, and labels of which some count for nothing."""
    data = [sentence(index) for index in range(44)]
    more = {"model": Words(), "data": data, "compute_metrics": by_input}
    train(seen, folder, **{**more, "per_device_train_batch_size": 4, **settings})


class TwoTargets(torch.nn.Module):
    """Its loss is of whichever target it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, labels: Any = None, target: Any = None) -> Any:
        logits = self.layer(x)
        wanted = labels if target is None else target
        return {"loss": torch.nn.functional.cross_entropy(logits, wanted), "logits": logits}


def targets(seen: Seen, folder: Path, **settings: Any) -> None:
    """Rows with two columns that could be labels."""
    data = [{**row, "target": 2 - row["labels"]} for row in DATA]
    seen.results.append(made(seen, folder, model=TwoTargets(), **settings).predict(data))


def columns(seen: Seen, folder: Path, **settings: Any) -> None:
    """Rows with a column that the model does not take."""
    train(seen, folder, **{**settings, "data": [{**row, "weight": 1.0} for row in DATA]})


class ByWorker(torch.utils.data.Dataset[Any]):
    """Rows that show which process has read them."""

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> Any:
        info = torch.utils.data.get_worker_info()
        return DATA[index] | {"x": DATA[index]["x"] * (1 if info is None else -1)}


def workers(seen: Seen, folder: Path, **settings: Any) -> None:
    """Rows that are others in a worker."""
    train(seen, folder, data=ByWorker(), max_steps=2, **settings)


MODULE = """
from support.argument_scenes import DATA, Toy, accuracy

def model():
    return Toy()

def data():
    return {"train": DATA[:16], "eval": DATA, "test": DATA, "compute_metrics": accuracy}
"""


def command(seen: Seen, folder: Path, **settings: Any) -> None:
    """`drivetrain train`, in this process."""
    from typer.testing import CliRunner

    from drivetrain.cli.app import app

    first = {"output_dir": str(folder / "out"), "report_to": "none", "use_cpu": True, "num_train_epochs": 1}
    table = {**first, "disable_tqdm": True, "save_strategy": "epoch", **settings}
    values = "\n".join(
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
        for key, value in table.items()
    )
    (folder / "scene_of_a_command.py").write_text(MODULE)
    part = '[{0}]\nfactory = "scene_of_a_command:{0}"\n'
    (folder / "run.toml").write_text(part.format("model") + part.format("data") + f"[training]\n{values}\n")
    sys.path.insert(0, str(folder))
    try:
        with contextlib.chdir(folder):
            done = CliRunner().invoke(app, ["train", "run.toml"])
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("scene_of_a_command", None)
    seen.results.append(done.exit_code)
    print(done.output)
    for name in ("scene_of_a_command.py", "run.toml"):  # what was asked for is no effect
        (folder / name).unlink()


def command_again(seen: Seen, folder: Path, **settings: Any) -> None:
    """`drivetrain train`, where another run has left a checkpoint."""
    trainer(folder / "out", **SHORT | {"save_strategy": "epoch"}).train()
    command(seen, folder, **settings)


def bare(seen: Seen, folder: Path, **settings: Any) -> None:
    """A trainer of a model and nothing else, or with arguments."""
    torch.manual_seed(0)
    with contextlib.chdir(folder):
        args = TrainingArguments("out", **settings) if settings else None
        seen.trainer = Trainer(Toy(), args)
        seen.results.append(seen.trainer.predict(DATA))


SCENES: dict[str, Callable[..., None]] = {
    scene.__name__: scene
    for scene in (
        train, save, rise, predict, again, resume, fail, block, nan, greedy, past, deep, words, targets, columns,
        workers, bare, command, command_again,
    )
}  # fmt: skip


# -- objects that a table names by @NAME -----------------------------------------------------------------


class Negated(Toy):
    """Another model."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return super().forward(-x, labels)


def other_model() -> Toy:
    """Another model, made anew."""
    torch.manual_seed(9)
    return Toy()


def halved(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collates, and halves the inputs."""
    labels = torch.tensor([row["labels"] for row in features])
    return {"x": torch.stack([row["x"] for row in features]) / 2, "labels": labels}


class Tokenizer:
    """Pads, and is saved with the model."""

    model_input_names = ("x", "labels")

    def pad(self, features: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return halved(features)

    def save_pretrained(self, folder: Any) -> None:
        (Path(folder) / "tokenizer.txt").write_text("here")


class Stopper(TrainerCallback):
    """Stops after two updates."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == 2


def sgd_of(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, None]:
    """A finished optimizer."""
    return torch.optim.SGD(model.parameters(), lr=0.5), None


def first_class(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Keeps one column of the logits."""
    return logits[:, :1]


def fed(prediction: Any, compute_result: bool = False) -> dict[str, float]:
    """A metric that is fed batch by batch: how many rows it was given last."""
    return {"rows": float(len(prediction.label_ids))}


class Short:
    """A plugin as an object, which ends the run after its first update."""

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        run.request_stop("it was asked for")


OBJECTS: dict[str, Callable[[], Any]] = {
    "model": Negated,
    "model_init": lambda: other_model,
    "collator": lambda: halved,
    "rows": lambda: OTHER,
    "tokenizer": Tokenizer,
    "metrics": lambda: accuracy,
    "fed": lambda: fed,
    "callbacks": lambda: [Stopper],
    "optimizer": lambda: sgd_of,
    "first": lambda: first_class,
    "plugins": lambda: [Short()],
}
"""What a table names by `@NAME`, made anew for each run."""
