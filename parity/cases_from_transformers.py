"""A checkpoint that transformers 4.34.0 wrote: it goes on from it itself, and drivetrain goes on from it.

Both begin from the very same folder. What is compared is the run that goes on: rows in their order, losses, weights,
the log, the generators at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fixtures import Net, Rows, Stream, accuracy, bert, data, gpt2, rows, text_rows, tokenizer
from kit import Kit, case
from run import fresh_process_state, load_engine


def by_transformers(k: Kit, build: Callable[[Kit], Any]) -> None:
    """Trains to the end with transformers, whichever engine is under test; its checkpoints stand in `out`."""
    writer = Kit("transformers", load_engine("transformers"), k.folder)
    build(writer).train()
    fresh_process_state("transformers")  # what accelerate keeps for the process
    fresh_process_state(k.engine)


def goes_on(
    name: str,
    step: int,
    model: Any = Net,
    train: Any = data,
    last: bool = False,
    ours: str = "",
    then: Callable[[Kit, Any], None] | None = None,
    change: dict[str, Any] | None = None,
    whole: bool = False,
    **arguments: Any,
) -> None:
    """Register a case.

    Args:
        name: of the case.
        step: the update after which the run goes on.
        model, train: make them.
        last: go on by `resume_from_checkpoint=True`, with the later checkpoints taken away.
        ours: why it is run on drivetrain alone.
        then: looks at the trainer afterwards.
        change: arguments of the run that goes on that are others.
        whole: drivetrain's run is compared with the one of transformers that never stopped.
    """

    def function(k: Kit) -> None:
        given = {"save_steps": 1, "num_train_epochs": 2, **arguments}

        def build(kit: Kit, **more: Any) -> Any:
            return kit.trainer(
                model(),
                train=train(),
                tokenizer=tokenizer() if given.get("group_by_length") else None,
                compute_metrics=accuracy if given.get("evaluation_strategy") else None,
                **{**given, **more},
            )

        by_transformers(k, build)
        checkpoint = k.folder / "out" / f"checkpoint-{step}"
        for folder in checkpoint.parent.glob("checkpoint-*"):
            if int(folder.name.rsplit("-", 1)[1]) > step:
                shutil.rmtree(folder)
        trainer = build(k, **(change or {}))
        resume = None if whole and not k.ours else last or str(checkpoint)
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # so that 4.34.0 reads its own random states
        try:
            output = trainer.train(resume_from_checkpoint=resume)
        finally:
            del os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]
        k.note("train.global_step", output.global_step)
        if k.ours and ours:
            k.note("train.training_loss", output.training_loss)
        trainer.state.log_history = [without_mean(row) for row in trainer.state.log_history]
        k.trainers = [(kind, found, [], [] if whole else losses) for kind, found, _, losses in k.trainers]
        if then is not None:
            then(k, trainer)

    case(f"from-transformers/{name}", ours)(function)


def without_mean(row: dict[str, Any]) -> dict[str, Any]:
    """4.34.0 divides the loss of the updates since the resume by all updates; see docs/differences.md."""
    return {key: value for key, value in row.items() if key != "train_loss"}


def dropout() -> Any:
    return Net(dropout=0.3)


def sharded(model: Any) -> Any:
    """The model, saved in several files."""
    save = model.save_pretrained
    model.save_pretrained = lambda folder, **options: save(folder, **{**options, "max_shard_size": "8KB"})
    return model


def shards(k: Kit, trainer: Any) -> None:
    assert len(list(Path(trainer.args.output_dir).glob("checkpoint-3/*model-*"))) > 1


def nothing_left(k: Kit, trainer: Any) -> None:
    assert trainer.state.global_step == 12
    assert len(trainer.state.log_history) == 13


def mean_of_the_run(k: Kit, trainer: Any) -> None:
    """The mean loss is that of all updates, those before the resume by their rows."""
    rows = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 12
    assert abs(k.record["train.training_loss"] - sum(rows) / 12) < 1e-4


goes_on("in-the-first-epoch", 2)
goes_on("with-dropout", 3, dropout)
goes_on("at-the-end-of-an-epoch", 6, dropout)
goes_on("in-the-second-epoch-with-dropout", 9, dropout)
goes_on("in-the-third-epoch-with-dropout", 14, dropout, num_train_epochs=4)
goes_on("the-last", 7, dropout, last=True)
goes_on("safetensors", 4, dropout, save_safetensors=True)
goes_on("accumulation", 4, dropout, gradient_accumulation_steps=2, num_train_epochs=4)
goes_on("accumulation-at-the-end-of-an-epoch", 3, dropout, gradient_accumulation_steps=2, num_train_epochs=4)
goes_on("uneven-accumulation", 2, dropout, gradient_accumulation_steps=4, num_train_epochs=5)
goes_on("fewer-batches-than-accumulation", 2, dropout, gradient_accumulation_steps=8, num_train_epochs=5)
goes_on("ignore-data-skip", 8, dropout, ignore_data_skip=True)
goes_on("drop-last", 7, dropout, dataloader_drop_last=True)
goes_on("beyond-the-epochs", 8, dropout, max_steps=15)
goes_on("with-evaluation", 8, dropout, evaluation_strategy="steps", eval_steps=3)
goes_on("by-epoch", 6, dropout, evaluation_strategy="epoch", save_strategy="epoch", logging_strategy="epoch")
goes_on("logging-window", 4, dropout, logging_steps=3)
goes_on("bf16", 4, dropout, bf16=True)
goes_on(
    "clipping-decay-smoothing", 8, dropout, max_grad_norm=0.2, weight_decay=0.1, label_smoothing_factor=0.1
)
goes_on("rotation", 5, dropout, change={"save_total_limit": 2})
goes_on("other-learning-rate", 5, dropout, change={"learning_rate": 0.5})

for _optim in ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adafactor", "sgd", "adagrad", "rmsprop"):
    goes_on(f"optimizer-{_optim}", 8, dropout, optim=_optim, weight_decay=0.1, warmup_steps=3)
for _scheduler in (
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
):
    goes_on(f"scheduler-{_scheduler}", 4, lr_scheduler_type=_scheduler, warmup_steps=6)
goes_on(
    "scheduler-plateau",
    9,
    dropout,
    lr_scheduler_type="reduce_lr_on_plateau",
    evaluation_strategy="steps",
    eval_steps=1,
    num_train_epochs=4,
    learning_rate=0.1,
)

_BEST = {"load_best_model_at_end": True, "evaluation_strategy": "steps", "eval_steps": 2, "save_steps": 2}
goes_on("best", 8, dropout, **_BEST, learning_rate=0.3, num_train_epochs=3)
goes_on("best-accuracy", 8, dropout, **_BEST, learning_rate=0.3, metric_for_best_model="accuracy")

goes_on("stream", 3, dropout, lambda: Stream(rows(22)), max_steps=9)
goes_on("stream-in-the-second-pass", 8, dropout, lambda: Stream(rows(22)), max_steps=11, whole=True)
goes_on("bert", 8, lambda: bert(dropout=0.1), lambda: Rows(text_rows(18)), adam_epsilon=1e-4)
goes_on(
    "bert-sharded",
    3,
    lambda: sharded(bert(dropout=0.1)),
    lambda: Rows(text_rows(18)),
    adam_epsilon=1e-4,
    save_safetensors=True,
    then=shards,
)
for _step in (4, 9):
    goes_on(
        f"group-by-length-{_step}",
        _step,
        lambda: bert(dropout=0.1),
        lambda: Rows(text_rows(26, lengths=(1, 12))),
        group_by_length=True,
        adam_epsilon=1e-4,
    )
goes_on(
    "gpt2-tied",
    3,
    lambda: gpt2(dropout=0.1),
    lambda: Rows(text_rows(18, labels="causal")),
    adam_epsilon=1e-4,
)
goes_on(
    "gpt2-tied-safetensors",
    8,
    lambda: gpt2(dropout=0.1),
    lambda: Rows(text_rows(18, labels="causal")),
    adam_epsilon=1e-4,
    save_safetensors=True,
)

# Without dropout on the CPU the loaders' draws are the only ones, as they are with it on a GPU.
for _step in (9, 14, 18):
    goes_on(f"as-it-was-begun-{_step}", _step, num_train_epochs=4, whole=True)
goes_on(
    "as-it-was-begun-with-evaluations",
    15,
    num_train_epochs=4,
    evaluation_strategy="steps",
    eval_steps=2,
    whole=True,
)
goes_on("as-it-was-begun-by-epoch", 15, num_train_epochs=4, evaluation_strategy="epoch", whole=True)
goes_on(
    "as-it-was-begun-by-length",
    11,
    bert,
    lambda: Rows(text_rows(26, lengths=(1, 12))),
    group_by_length=True,
    adam_epsilon=1e-4,
    whole=True,
)

goes_on("at-the-end", 12, dropout, ours="the generators take the states that were saved", then=nothing_left)
goes_on("mean-loss", 7, dropout, ours="the mean loss is that of all updates", then=mean_of_the_run)
