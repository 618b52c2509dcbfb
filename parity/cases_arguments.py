"""Cases that set arguments and compare the whole run: length, accumulation, schedule, optimizer, log, checkpoints."""

from __future__ import annotations

from fixtures import Net, SizedStream, Stream, accuracy, data, rows
from kit import Kit, case, settings

# How long a run is. 22 rows in batches of 4 are 6 batches an epoch, the last of 2 rows.

settings("epochs/one", num_train_epochs=1)
settings("epochs/three", num_train_epochs=3)
settings("epochs/one-and-a-half", num_train_epochs=1.5)
settings("epochs/a-third", num_train_epochs=0.3)
settings("epochs/a-hundredth", num_train_epochs=0.01)
settings("epochs/two-and-a-quarter-accumulated", num_train_epochs=2.25, gradient_accumulation_steps=2)
settings(
    "epochs/fraction-by-epoch", num_train_epochs=1.4, logging_strategy="epoch", evaluation_strategy="epoch"
)
settings("max-steps/in-the-first-epoch", max_steps=4)
settings("max-steps/whole-epochs", max_steps=12)
settings("max-steps/beyond-the-epochs", max_steps=15, num_train_epochs=1)
settings("max-steps/one", max_steps=1)
settings("max-steps/accumulated", max_steps=5, gradient_accumulation_steps=4)
settings(
    "max-steps/by-epoch",
    max_steps=8,
    logging_strategy="epoch",
    evaluation_strategy="epoch",
    save_strategy="epoch",
)
settings("batch/drop-last", dataloader_drop_last=True)
settings("batch/of-one", per_device_train_batch_size=1, num_train_epochs=1)
settings("batch/larger-than-the-data", per_device_train_batch_size=64)
settings("batch/of-seven", per_device_train_batch_size=7, num_train_epochs=3)

# Accumulation

settings("accumulation/even", gradient_accumulation_steps=3)
settings("accumulation/uneven", gradient_accumulation_steps=4, num_train_epochs=4)
settings("accumulation/uneven-five", gradient_accumulation_steps=5, num_train_epochs=5, logging_steps=2)
settings("accumulation/fewer-batches", gradient_accumulation_steps=8, num_train_epochs=4)
settings("accumulation/as-many-batches", gradient_accumulation_steps=6, num_train_epochs=3)
settings("accumulation/fewer-batches-max-steps", gradient_accumulation_steps=8, max_steps=7)
settings(
    "accumulation/drop-last", gradient_accumulation_steps=2, dataloader_drop_last=True, num_train_epochs=3
)
settings(
    "accumulation/uneven-everything",
    gradient_accumulation_steps=4,
    num_train_epochs=3,
    logging_strategy="epoch",
    evaluation_strategy="epoch",
    save_strategy="epoch",
)
settings(
    "accumulation/uneven-steps",
    gradient_accumulation_steps=4,
    num_train_epochs=4,
    logging_steps=2,
    evaluation_strategy="steps",
    eval_steps=2,
    save_steps=2,
    warmup_steps=1,
)

# Learning rate

for _name in [
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]:
    settings(f"scheduler/{_name}", lr_scheduler_type=_name, warmup_steps=3)
    if _name != "inverse_sqrt":
        settings(f"scheduler/{_name}-cold", lr_scheduler_type=_name)
settings("scheduler/inverse-sqrt-cold", lr_scheduler_type="inverse_sqrt")
settings("scheduler/warmup-ratio", warmup_ratio=0.3)
settings("scheduler/warmup-ratio-cosine", warmup_ratio=0.15, lr_scheduler_type="cosine", num_train_epochs=3)
settings("scheduler/steps-over-ratio", warmup_ratio=0.5, warmup_steps=2)
settings("scheduler/warmup-longer-than-the-run", warmup_steps=50)
settings("scheduler/accumulated", gradient_accumulation_steps=2, warmup_steps=2, lr_scheduler_type="cosine")
settings("scheduler/rate-zero", learning_rate=0.0)
settings(
    "scheduler/reduce-lr-on-plateau",
    lr_scheduler_type="reduce_lr_on_plateau",
    evaluation_strategy="steps",
    eval_steps=1,
    learning_rate=0.5,
    num_train_epochs=6,
)
settings(
    "scheduler/reduce-lr-on-plateau-epochs",
    lr_scheduler_type="reduce_lr_on_plateau",
    evaluation_strategy="epoch",
    save_strategy="epoch",
    learning_rate=0.1,
    num_train_epochs=16,
    logging_strategy="epoch",
    save_total_limit=2,
)


@case("scheduler/reduce-lr-on-plateau-metric")
def _(k: Kit) -> None:
    k.train(
        k.trainer(
            compute_metrics=accuracy,
            lr_scheduler_type="reduce_lr_on_plateau",
            metric_for_best_model="accuracy",
            evaluation_strategy="steps",
            eval_steps=1,
            num_train_epochs=3,
        )
    )


# Optimizers

for _name in ["adamw_torch", "adamw_torch_fused", "adamw_hf", "adafactor", "sgd", "adagrad", "rmsprop"]:
    settings(f"optimizer/{_name}", optim=_name)
    settings(f"optimizer/{_name}-decay", optim=_name, weight_decay=0.1, num_train_epochs=3)
settings("optimizer/adafactor-flag", adafactor=True)
settings("optimizer/betas", adam_beta1=0.7, adam_beta2=0.9, adam_epsilon=1e-4)
settings(
    "optimizer/betas-hf",
    optim="adamw_hf",
    adam_beta1=0.7,
    adam_beta2=0.9,
    adam_epsilon=1e-4,
    weight_decay=0.2,
)
settings("optimizer/decay-large", weight_decay=2.0)
settings("optimizer/sgd-accumulated", optim="sgd", gradient_accumulation_steps=4, num_train_epochs=4)
settings("clip/off", max_grad_norm=0.0)
settings("clip/small", max_grad_norm=0.01)
settings("clip/small-sgd", max_grad_norm=0.05, optim="sgd", learning_rate=0.5)
settings("clip/accumulated", max_grad_norm=0.1, optim="sgd", learning_rate=0.5, gradient_accumulation_steps=4)
settings("clip/negative", max_grad_norm=-1.0, optim="sgd", learning_rate=0.5)

# Seeds

settings("seed/zero", seed=0)
settings("seed/seven", seed=7)
settings("seed/large", seed=2**31)


@case("seed/dropout")
def _(k: Kit) -> None:
    k.train(k.trainer(Net(dropout=0.3), seed=5, evaluation_strategy="steps", eval_steps=3))


@case("seed/full-determinism")
def _(k: Kit) -> None:
    k.train(k.trainer(Net(dropout=0.3), full_determinism=True))


# The log

settings("logging/every-third", logging_steps=3)
settings("logging/by-epoch", logging_strategy="epoch")
settings("logging/no", logging_strategy="no")
settings("logging/first-step", logging_steps=5, logging_first_step=True)
settings("logging/first-step-no", logging_strategy="no", logging_first_step=True)
settings("logging/share", logging_steps=0.25)
settings("logging/never-reached", logging_steps=500)
settings("logging/share-tiny", logging_steps=0.001)
settings(
    "logging/first-step-twice",
    logging_strategy="epoch",
    logging_first_step=True,
    per_device_train_batch_size=32,
)
settings("logging/printed", disable_tqdm=False, logging_steps=4)
settings("logging/level", log_level="info", logging_steps=4)

for _bad in ("nan", "inf"):
    for _steps in (1, 3):
        for _filter in (True, False):
            _name = f"logging/{_bad}-every-{_steps}-{'filtered' if _filter else 'shown'}"

            @case(_name)
            def _(k: Kit, bad: str = _bad, steps: int = _steps, keep: bool = _filter) -> None:
                model = Net(nan_at=5, bad=float(bad))
                k.train(k.trainer(model, logging_steps=steps, logging_nan_inf_filter=keep, max_grad_norm=0.5))


@case("logging/nan-first")
def _(k: Kit) -> None:
    k.train(k.trainer(Net(nan_at=1), logging_steps=4))


@case("logging/nan-accumulated")
def _(k: Kit) -> None:
    k.train(k.trainer(Net(nan_at=4), logging_steps=2, gradient_accumulation_steps=2, num_train_epochs=3))


# Iterable data


@case("iterable/without-length")
def _(k: Kit) -> None:
    k.train(k.trainer(train=Stream(rows(22)), max_steps=5))


@case("iterable/started-again")
def _(k: Kit) -> None:
    k.train(k.trainer(train=Stream(rows(14)), max_steps=9, logging_strategy="steps", logging_steps=2))


@case("iterable/by-epoch")
def _(k: Kit) -> None:
    k.train(
        k.trainer(train=Stream(rows(14)), max_steps=9, logging_strategy="epoch", evaluation_strategy="epoch")
    )


@case("iterable/accumulated")
def _(k: Kit) -> None:
    k.train(k.trainer(train=Stream(rows(22)), max_steps=6, gradient_accumulation_steps=4))


@case("iterable/with-length")
def _(k: Kit) -> None:
    k.train(k.trainer(train=SizedStream(rows(22)), num_train_epochs=1.5))


@case("iterable/with-length-max-steps")
def _(k: Kit) -> None:
    k.train(k.trainer(train=SizedStream(rows(22)), max_steps=8, dataloader_drop_last=True))


@case("iterable/one-step-accumulated")
def _(k: Kit) -> None:
    k.train(k.trainer(train=Stream(rows(10)), max_steps=1, gradient_accumulation_steps=4))


@case("iterable/no-steps-is-an-error")
def _(k: Kit) -> None:
    k.train(k.trainer(train=Stream(rows(22))))


@case("iterable/evaluated")
def _(k: Kit) -> None:
    trainer = k.trainer(
        eval=Stream(rows(10, seed=2)),
        compute_metrics=accuracy,
        evaluation_strategy="epoch",
        num_train_epochs=1,
    )
    k.train(trainer)
    k.predict(trainer, Stream(rows(7, seed=4)))
    k.predict(trainer, SizedStream(rows(7, seed=4)), name="sized")


# Saving

settings("saving/steps", save_steps=3)
settings("saving/epoch", save_strategy="epoch", num_train_epochs=3)
settings("saving/no", save_strategy="no")
settings("saving/share", save_steps=0.3)
settings("saving/limit-one", save_steps=2, save_total_limit=1)
settings("saving/limit-two", save_steps=2, save_total_limit=2)
settings("saving/limit-zero", save_steps=4, save_total_limit=0)
settings("saving/safetensors", save_steps=4, save_safetensors=True)

_BEST = {
    "load_best_model_at_end": True,
    "evaluation_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "num_train_epochs": 3,
}


def best(name: str, **arguments: object) -> None:
    """Train at a rate that makes the best checkpoint not the last, and compare what is kept and loaded."""

    def function(k: Kit) -> None:
        trainer = k.trainer(
            train=data(14), eval=data(14, seed=9), compute_metrics=accuracy, **{**_BEST, **arguments}
        )
        k.train(trainer)
        k.evaluate(trainer)

    case(name)(function)


best("best/loss", learning_rate=0.3)
best("best/loss-limit-one", learning_rate=0.3, save_total_limit=1)
best("best/loss-limit-two", learning_rate=0.3, save_total_limit=2)
best("best/loss-limit-three", learning_rate=0.3, save_total_limit=3)
best("best/accuracy", learning_rate=0.3, metric_for_best_model="accuracy")
best("best/accuracy-prefixed", learning_rate=0.3, metric_for_best_model="eval_accuracy", save_total_limit=2)
best("best/worst-accuracy", learning_rate=0.3, metric_for_best_model="accuracy", greater_is_better=False)
best("best/greatest-loss", learning_rate=0.3, metric_for_best_model="eval_loss", greater_is_better=True)
best("best/by-epoch", learning_rate=0.3, evaluation_strategy="epoch", save_strategy="epoch")
best("best/saved-less-often", learning_rate=0.3, save_steps=4)
best(
    "best/not-loaded",
    learning_rate=0.3,
    load_best_model_at_end=False,
    metric_for_best_model="loss",
    save_total_limit=2,
)
best(
    "best/not-loaded-limit-one",
    learning_rate=0.3,
    load_best_model_at_end=False,
    metric_for_best_model="loss",
    save_total_limit=1,
)
best("best/is-the-last", learning_rate=0.001, save_total_limit=1)
best("best/unknown-metric", metric_for_best_model="f1")
best("best/strategies-differ", save_strategy="epoch")
best("best/steps-differ", save_steps=3)
