"""`drivetrain train`, `evaluate` and `predict`: from a config to a run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain import settings
from drivetrain.arguments.parsing import field_table, from_mapping
from drivetrain.cli import build, report
from drivetrain.cli.again import COMMAND, again
from drivetrain.cli.config import Config, read
from drivetrain.cli.overrides import split_words, typed
from drivetrain.errors import ConfigurationError

if TYPE_CHECKING:
    from drivetrain.arguments import TrainingArguments


@dataclass(slots=True)
class Job:
    """What is to be done, from the command's name and `do_train`, `do_eval`, `do_predict`."""

    train: bool
    evaluate: bool
    predict: bool

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.train or self.evaluate or self.predict)


@dataclass(slots=True)
class Outcome:
    """What a run gave."""

    metrics: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)


def run(command: str, words: Sequence[str], *, checkpoint: Path | None, trace_hooks: bool) -> None:
    """Runs a command of the command line.

    Args:
        command: "train", "evaluate" or "predict".
        words: CONFIG.toml, and what overrides it.
        checkpoint: for the last two: the folder whose weights are used.
        trace_hooks: print every hook call.

    Raises:
        ConfigurationError: every mistake that could be found before the run began.
    """
    config, args = prepare(words)
    job = what_to_do(command, config, args)
    if job.empty:
        raise ConfigurationError(
            f"{config.path} sets do_train, do_eval and do_predict to false, so there is nothing to do."
        )
    from drivetrain.resolve import resolve

    plan = resolve(args, settings=settings.load())  # every problem, before anything is built
    if job.train:
        refuse_overwriting(args)
    elif checkpoint is None:
        checkpoint = trained_folder(args)
    elif not checkpoint.is_dir():
        raise ConfigurationError(
            f"There is no folder {checkpoint}; --checkpoint names one that holds weights."
        )
    made = assemble(config, args, job, trace_hooks=trace_hooks)
    named, data, trainer = made.named, made.data, made.trainer
    if not report.is_quiet_process():
        title = {"train": "Training", "evaluate": "Evaluation", "predict": "Prediction"}[command]
        report.sections(f"{title}: {config.path}", report.plan_rows(config, trainer, plan, data.test))
    from drivetrain.preemption import resumed_by

    with already_said(plan.inert), resumed_by(command_to_go_on(words) if job.train else None):
        outcome = carry_out(job, trainer, data, checkpoint)
    if named.after is not None and job.train:
        named.after(trainer)
    if not report.is_quiet_process():
        report.sections("Done", [*report.metric_rows(outcome.metrics), *outcome.rows])


@dataclass(slots=True)
class Assembled:
    """What a config names, and the trainer made of it."""

    named: build.Callables
    data: build.Data
    trainer: Any


def assemble(
    config: Config,
    args: TrainingArguments,
    job: Job,
    *,
    trace_hooks: bool = False,
    plugins: Sequence[Any] = (),
) -> Assembled:
    """Builds the data, the model and the trainer of a config.

    Raises:
        ConfigurationError: what the config names is not there, or the job needs data that it does not give.
    """
    named = build.find(config)
    from drivetrain.seeding import set_seed

    set_seed(args.seed)
    data = build.sort_data(config, named.data())
    check_data(config, job, data)
    model = named.model()
    from drivetrain.trainer import Trainer

    trainer = Trainer(model=model, args=args, trace_hooks=trace_hooks, plugins=plugins, **data.parameters)
    return Assembled(named, data, trainer)


def command_to_go_on(words: Sequence[str]) -> str:
    """The command by which a run that was told to leave goes on."""
    from drivetrain.processes import asked_for

    launcher = " (and the launcher as before)" if asked_for() > 1 else ""
    return os.environ.get(COMMAND) or again(["train", *words]) + launcher


def prepare(words: Sequence[str]) -> tuple[Config, TrainingArguments]:
    """The config and the arguments that the words of a command line mean.

    Raises:
        ConfigurationError: every mistake in either.
    """
    shapes: dict[str, str] = {row.name: row.shape for row in field_table()}
    shapes["resume_from_checkpoint"] = "optional"
    positional, values = split_words(words, shapes)
    if len(positional) != 1:
        more = f"not {len(positional)} words: {' '.join(positional)}" if positional else "and none was given"
        raise ConfigurationError(f"One CONFIG.toml is needed, {more}.")
    overrides = {key: value if key.startswith("training.") else typed(value) for key, value in values.items()}
    config = read(Path(positional[0]), overrides)
    table = without_other_spellings(config)
    table.setdefault("output_dir", f"runs/{config.path.stem}")
    resume = table.get("resume_from_checkpoint")
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        table["resume_from_checkpoint"] = resume.lower() == "true"
    options: dict[str, Any] = {name: {} for name in config.enabled}
    options.update(config.plugins)
    if options:
        if "plugins" in table:
            raise ConfigurationError(
                config.problem(("training", "plugins"), "write the options of plugins under [plugins.NAME].")
            )
        problems = settings.not_enabled(config.enabled, config.where("plugins", settings.ENABLE))
        problems += wrong_options(config)
        if problems:
            raise ConfigurationError(problems)
        table["plugins"] = options
    return config, from_mapping(table, lambda name: config.where("training", name))


@contextmanager
def already_said(sentences: Sequence[str]) -> Iterator[None]:
    """Keeps out of the log, while the run lasts, what its plan has shown."""

    def new(record: logging.LogRecord) -> bool:
        return record.getMessage() not in sentences

    logger = logging.getLogger("drivetrain")
    logger.addFilter(new)
    try:
        yield
    finally:
        logger.removeFilter(new)


def without_other_spellings(config: Config) -> dict[str, Any]:
    """`[training]`, less what the command line set under another spelling (`--eval-strategy`)."""
    from drivetrain.arguments.aliases import RENAMED

    def argument(spelling: str) -> str:
        return RENAMED.get(spelling, spelling)

    on_top = {argument(key.partition(".")[2]) for key in config.overridden if key.startswith("training.")}
    return {
        key: value
        for key, value in config.training.items()
        if f"training.{key}" in config.overridden or argument(key.replace("-", "_")) not in on_top
    }


def wrong_options(config: Config) -> list[str]:
    """Plugins and options under `[plugins]` that are not there, each with its line."""
    from dataclasses import fields

    from drivetrain.discover import entries, load_info
    from drivetrain.errors import did_you_mean

    problems = []
    for name, options in config.plugins.items():
        found = [entry for entry in entries() if entry.name == name]
        if not found:
            sentence = settings.unknown_plugin(name, (entry.name for entry in entries()))
            problems.append(config.problem(("plugins", name), sentence))
            continue
        declared = load_info(found[0].kind, name).options_class()
        known = [option.name for option in fields(declared)] if declared is not None else []
        problems += [
            config.problem(
                ("plugins", name, key),
                f"the {found[0].kind} '{name}' has no option '{key}'.{did_you_mean(key, known)} "
                f"It has: {', '.join(known) or 'none'}.",
            )
            for key in options
            if key not in known
        ]
    return problems


def what_to_do(command: str, config: Config, args: TrainingArguments) -> Job:
    """`train` trains unless `do_train = false` is written, and evaluates and predicts where they are asked for."""
    if command == "evaluate":
        return Job(False, True, False)
    if command == "predict":
        return Job(False, False, True)
    return Job(config.training.get("do_train", True) is not False, bool(args.do_eval), bool(args.do_predict))


def check_data(config: Config, job: Job, data: build.Data) -> None:
    """Raises ConfigurationError where the job needs data that the config does not give."""
    problems = [
        f"{config.path}: {purpose} needs '{split}' data; add {split} under [data], or to what its factory returns."
        for wanted, purpose, split, given in (
            (job.train, "training", "train", data.parameters.get("train_dataset")),
            (job.evaluate, "evaluation", "eval", data.parameters.get("eval_dataset")),
            (job.predict, "prediction", "test", data.test),
        )
        if wanted and given is None
    ]
    if problems:
        raise ConfigurationError(problems)


def refuse_overwriting(args: TrainingArguments) -> None:
    """Refuses where `output_dir` holds another run, and nobody said what to do with it.

    Raises:
        ConfigurationError: it does.
        CheckpointError: the run is to go on from a checkpoint that is not there.
    """
    from drivetrain.checkpoint import last_checkpoint
    from drivetrain.processes import current
    from drivetrain.resuming import checkpoint_at, none_to_resume

    processes, resume = current(args), args.resume_from_checkpoint
    if processes.attempt > 0:
        return  # started anew: what stands there is this launch's own, or was judged at its first start
    if resume and processes.world_size != (processes.local_world_size or 1):
        return  # each node may have a folder of its own, and all find out together
    if isinstance(resume, str):
        checkpoint_at(resume)
    if args.overwrite_output_dir or isinstance(resume, str):
        return
    found = last_checkpoint(args.output_dir)
    if resume:
        if found is None:
            raise none_to_resume(args.output_dir)
        return
    if found is not None:
        raise ConfigurationError(
            f"{report.short(found)} stands there from another run. Go on with it by --resume-from-checkpoint, write "
            "over it by --overwrite-output-dir, or choose another --output-dir."
        )


def trained_folder(args: TrainingArguments) -> Path:
    """Where the weights of a run are: in `output_dir` itself, else in its last checkpoint.

    Raises:
        ConfigurationError: there are none.
    """
    from drivetrain.checkpoint import last_checkpoint

    folder = Path(args.output_dir)
    if any(folder.glob("model*.safetensors")):
        return folder
    found = last_checkpoint(args.output_dir)
    if found is None:
        raise ConfigurationError(
            f"There are no weights in {folder}: train first, or name a folder that has them by --checkpoint."
        )
    return Path(found)


def carry_out(job: Job, trainer: Any, data: build.Data, checkpoint: Path | None) -> Outcome:
    """Trains, evaluates and predicts, and writes what each gave into `output_dir`."""
    outcome = Outcome()
    args = trainer.args
    began = time.perf_counter()
    if job.train:
        metrics = trainer.train().metrics
        outcome.metrics.append(("train", metrics))
        trainer.save_metrics("train", metrics)
        trainer.save_state()
        if (
            str(args.save_strategy.value if hasattr(args.save_strategy, "value") else args.save_strategy)
            != "no"
        ):
            trainer.save_model()
        outcome.rows += _time_row(metrics, "train")
    elif checkpoint is not None:
        load_weights(trainer, checkpoint)
        outcome.rows.append(("weights", report.short(checkpoint)))
    if job.evaluate:
        metrics = trainer.evaluate()
        outcome.metrics.append(("eval", metrics))
        trainer.save_metrics("eval", metrics)
        if not job.train:
            outcome.rows += _time_row(metrics, "eval")
    if job.predict:
        output = trainer.predict(data.test)
        outcome.metrics.append(("test", output.metrics))
        trainer.save_metrics("test", output.metrics)
        written = write_predictions(trainer, output)
        outcome.rows.append(("predictions", report.short(written)))
    if job.train:
        outcome.rows += _where(trainer)
    outcome.rows.append(("in all", report.duration(time.perf_counter() - began)))
    return outcome


def _time_row(metrics: dict[str, Any], split: str) -> list[tuple[str, str]]:
    text = report.speed(metrics, split)
    return [("training" if split == "train" else "evaluation", text)] if text else []


def _where(trainer: Any) -> list[tuple[str, str]]:
    from drivetrain.checkpoint import last_checkpoint

    args, state = trainer.args, trainer.state
    rows = []
    if any(Path(args.output_dir).glob("model*.safetensors")) and trainer.args.should_save:
        rows.append(("model", report.short(args.output_dir)))
    best = state.best_model_checkpoint
    if best is not None:
        name = args.metric_for_best_model
        rows.append(("best", f"{report.short(best)}  ({name} {report.figure(state.best_metric)})"))
    last = last_checkpoint(args.output_dir)
    if last is not None and str(last) != str(best):
        rows.append(("checkpoint", report.short(last)))
    return rows or [("model", 'not saved (save_strategy = "no")')]


def load_weights(trainer: Any, folder: Path) -> None:
    """Loads the weights of a folder into the trainer's model.

    Raises:
        CheckpointError: it has none, or they are another model's.
    """
    from drivetrain import checkpoint

    checkpoint.load_weights(trainer.model, str(folder))


def write_predictions(trainer: Any, output: Any) -> Path:
    """Writes arrays as `predictions.npz`: `predictions`, `label_ids`; a tuple's parts get a number."""
    import numpy as np

    arrays: dict[str, Any] = {}
    for name, value in (("predictions", output.predictions), ("label_ids", output.label_ids)):
        if isinstance(value, (tuple, list)):
            arrays.update({f"{name}_{index}": part for index, part in enumerate(value)})
        elif isinstance(value, dict):
            arrays.update({f"{name}_{key}": part for key, part in value.items()})
        elif value is not None:
            arrays[name] = value
    path = Path(trainer.args.output_dir) / "predictions.npz"
    if trainer.is_world_process_zero():
        os.makedirs(path.parent, exist_ok=True)
        np.savez(path, **arrays)
    return path
