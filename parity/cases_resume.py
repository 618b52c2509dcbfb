"""A resumed run against an uninterrupted one: the reference trains in one go, drivetrain is interrupted and goes on.

4.34.0 itself does not resume exactly in the middle of an epoch, so what it does in one go is what is to be reached.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from fixtures import (
    Net,
    Rows,
    SizedStream,
    Stream,
    accuracy,
    bert,
    data,
    gpt2,
    noisy,
    rows,
    text_rows,
    tokenizer,
)
from kit import Kit, case, without_speed


class Interruption(Exception):
    """What ends the first run of a case that is not told to stop."""


def interruption(k: Kit, step: int, crash: bool) -> Any:
    """A callback that stops the run after update ``step``, or lets it crash once that checkpoint is written."""

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not crash and state.global_step >= step:
            control.should_training_stop = True

    def on_save(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        if crash and state.global_step >= step:
            raise Interruption

    return type("Interrupting", (k.hf.TrainerCallback,), {"on_step_end": on_step_end, "on_save": on_save})()


def interrupted(
    name: str,
    stop: int,
    model: Any = Net,
    train: Any = data,
    eval: Any = None,
    crash: bool = False,
    last: bool = False,
    callbacks: Any = None,
    collator: Any = None,
    **arguments: Any,
) -> None:
    """Register a case that is interrupted after update ``stop``.

    ``crash``: by an error, else by the flag. ``last``: resume from the last checkpoint rather than from a named one.
    """

    def function(k: Kit) -> None:
        given = {"save_steps": 1, "num_train_epochs": 2, **arguments}

        def build(*more: Any) -> Any:
            own = callbacks(k) if callbacks else []
            held_out = data(10, seed=2) if eval is None else eval()
            words = tokenizer() if given.get("group_by_length") else None
            return k.trainer(
                model(),
                train=train(),
                eval=held_out,
                data_collator=collator,
                tokenizer=words,
                watch=False,
                callbacks=[*own, *more],
                compute_metrics=accuracy if given.get("evaluation_strategy") else None,
                **given,
            )

        if k.ours:
            with contextlib.suppress(Interruption):
                build(interruption(k, stop, crash)).train()
            k.trainers.clear()
            torch.rand(7)  # the generators stand elsewhere when another process goes on
        trainer = build()
        checkpoint = last or str(k.folder / "out" / f"checkpoint-{stop}")
        output = trainer.train(resume_from_checkpoint=checkpoint) if k.ours else trainer.train()
        k.trainers.clear()
        k.note("global_step", output.global_step)
        k.note("training_loss", output.training_loss)
        k.note("log_history", [without_speed(row) for row in trainer.state.log_history])
        k.note("epoch", trainer.state.epoch)
        k.note("best", trainer.state.best_metric)
        k.note("folders", k.checkpoints())
        k.note("rate", trainer.optimizer.param_groups[0]["lr"])
        k.weights("final", trainer.model)

    case(f"resume/{name}")(function)


def dropout() -> Any:
    return Net(dropout=0.3)


interrupted("in-the-first-epoch", 2)
interrupted("after-a-crash", 2, dropout, crash=True)
interrupted("from-the-last", 5, dropout, crash=True, last=True)
interrupted("at-the-end-of-an-epoch", 6)
interrupted("in-the-second-epoch", 9)
interrupted("at-the-end", 12)
interrupted("with-dropout", 3, dropout)
interrupted("with-a-random-collator", 3, dropout, collator=noisy)
interrupted(
    "with-a-random-collator-and-evaluation",
    4,
    dropout,
    collator=noisy,
    evaluation_strategy="steps",
    eval_steps=2,
)
interrupted("in-mid-accumulation", 1, gradient_accumulation_steps=4)
interrupted("after-an-uneven-epoch", 2, gradient_accumulation_steps=4, num_train_epochs=4)
interrupted(
    "after-three-uneven-epochs", 4, dropout, gradient_accumulation_steps=4, num_train_epochs=5, crash=True
)
interrupted("fewer-batches-than-accumulation", 2, dropout, gradient_accumulation_steps=8, num_train_epochs=5)
interrupted("with-evaluation", 4, dropout, evaluation_strategy="steps", eval_steps=3)
interrupted(
    "by-epoch", 6, dropout, evaluation_strategy="epoch", save_strategy="epoch", logging_strategy="epoch"
)
interrupted("by-epoch-crashed", 6, dropout, evaluation_strategy="epoch", save_strategy="epoch", crash=True)
interrupted("beyond-the-epochs", 8, dropout, max_steps=15)
interrupted("drop-last", 3, dropout, dataloader_drop_last=True)
interrupted("worker", 3, dropout, dataloader_num_workers=1)
interrupted("worker-random-collator", 6, dropout, collator=noisy, dataloader_num_workers=1)
interrupted("logging-window", 4, logging_steps=3)
interrupted(
    "logging-window-accumulated",
    2,
    dropout,
    logging_steps=3,
    gradient_accumulation_steps=4,
    num_train_epochs=5,
)
interrupted("rotation", 5, dropout, save_total_limit=2, crash=True)
interrupted("bf16", 4, dropout, bf16=True)
interrupted(
    "clipping-decay-smoothing", 4, dropout, max_grad_norm=0.2, weight_decay=0.1, label_smoothing_factor=0.1
)
interrupted("first-step-logged", 1, logging_first_step=True, logging_steps=5)

for _optim in ("adamw_torch", "adamw_hf", "adafactor", "sgd", "adagrad", "rmsprop"):
    interrupted(f"optimizer-{_optim}", 4, dropout, optim=_optim, weight_decay=0.1, warmup_steps=3)
for _scheduler in (
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
):
    interrupted(f"scheduler-{_scheduler}", 4, lr_scheduler_type=_scheduler, warmup_steps=6)
interrupted(
    "scheduler-plateau",
    9,
    lr_scheduler_type="reduce_lr_on_plateau",
    evaluation_strategy="steps",
    eval_steps=1,
    num_train_epochs=4,
    learning_rate=0.1,
)

_BEST = {"load_best_model_at_end": True, "evaluation_strategy": "steps", "eval_steps": 2, "save_steps": 2}
interrupted("best", 6, dropout, **_BEST, learning_rate=0.3, num_train_epochs=3, crash=True)
interrupted("best-limit-one", 6, dropout, **_BEST, learning_rate=0.3, save_total_limit=1, crash=True)
interrupted(
    "best-accuracy",
    8,
    dropout,
    **_BEST,
    learning_rate=0.3,
    metric_for_best_model="accuracy",
    save_total_limit=2,
    crash=True,
)


class Sometimes(Rows):
    """Draws for one row in six."""

    def __getitem__(self, index: int) -> Any:
        row = super().__getitem__(index)
        return row if index % 6 else {**row, "x": row["x"] + torch.randn(6)}


class Noise(Stream):
    """A stream whose rows are noisy."""

    def __iter__(self) -> Any:
        for row in self.rows:
            yield {**row, "x": row["x"] + 0.1 * torch.randn(6)}


for _step in (2, 3, 7):
    interrupted(f"rows-random-now-and-then-{_step}", _step, dropout, lambda: Sometimes(rows(22)), crash=True)
    interrupted(f"stream-{_step}", _step, dropout, lambda: Stream(rows(22)), max_steps=9, crash=True)
    interrupted(f"noisy-stream-{_step}", _step, dropout, lambda: Noise(rows(22)), max_steps=9, crash=True)
interrupted("sized-stream", 8, dropout, lambda: SizedStream(rows(22)))
interrupted(
    "stream-accumulated", 3, dropout, lambda: Stream(rows(22)), max_steps=7, gradient_accumulation_steps=4
)

interrupted("bert", 3, lambda: bert(dropout=0.1), lambda: Rows(text_rows(18)), adam_epsilon=1e-4)
interrupted(
    "group-by-length",
    4,
    lambda: bert(dropout=0.1),
    lambda: Rows(text_rows(26, lengths=(1, 12))),
    group_by_length=True,
    adam_epsilon=1e-4,
)
interrupted(
    "gpt2-tied",
    3,
    lambda: gpt2(dropout=0.1),
    lambda: Rows(text_rows(18, labels="causal")),
    adam_epsilon=1e-4,
    gradient_checkpointing=True,
)


@case("resume/early-stopping-goes-on", ours="a run that was stopped goes on when it is resumed")
def _(k: Kit) -> None:
    trainer = k.trainer(save_steps=1, watch=False, callbacks=[interruption(k, 3, crash=False)])
    trainer.train()
    assert trainer.state.global_step == 3
    again = k.trainer(save_steps=1, watch=False)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 12
