"""A draft of a model card, from what a run knows of itself."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import drivetrain
from drivetrain.run import Run
from drivetrain.secret import is_secret_name

# The arguments that say how the model came about, in this order; after them come all others that are set.
_TOLD = (
    "learning_rate",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "optim",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "max_grad_norm",
    "label_smoothing_factor",
    "precision",
    "bf16",
    "fp16",
    "seed",
)
# What is about this machine, or about what is seen of the run, and not about the model.
_NOT_TOLD = (
    "output_dir",
    "overwrite_output_dir",
    "logging_dir",
    "disable_tqdm",
    "run_name",
    "report_to",
    "resume_from_checkpoint",
    "local_rank",
    "log_level",
    "log_level_replica",
    "mp_parameters",
    "plugins",
)
_NOT_A_METRIC = ("_runtime", "_per_second", "_delta", "_alloc", "_peaked")


def _many(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def _evaluations(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row an evaluation, with the last training loss before it."""
    rows: list[dict[str, Any]] = []
    loss: Any = ""
    for entry in history:
        loss = entry.get("loss", loss)
        metrics = {
            name: f"{value:.4f}" if isinstance(value, float) else value
            for name, value in entry.items()
            if name.startswith("eval_") and not name.endswith(_NOT_A_METRIC)
        }
        if metrics:
            rows.append({"step": entry["step"], "epoch": entry.get("epoch", ""), "loss": loss, **metrics})
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))
    return ["## Evaluation", "", *_table(names, [[row.get(name, "") for name in names] for row in rows]), ""]


def _results(
    history: Sequence[Mapping[str, Any]], tasks: Sequence[str], names: Sequence[str], kinds: Sequence[str]
) -> list[EvalResult] | None:
    """The last evaluation in the form that the hub shows beside a model, where task and data are known."""
    last = next((row for row in reversed(history) if any(key.startswith("eval_") for key in row)), None)
    if last is None or not tasks or not (names or kinds):
        return None
    return [
        EvalResult(
            task_type=tasks[0],
            dataset_type=(kinds or names)[0],
            dataset_name=(names or kinds)[0],
            metric_type=key.removeprefix("eval_"),
            metric_name=key.removeprefix("eval_").replace("_", " "),
            metric_value=round(value, 6),
        )
        for key, value in last.items()
        if key.startswith("eval_") and not key.endswith(_NOT_A_METRIC) and isinstance(value, (int, float))
    ] or None


def _arguments(args: Any) -> list[tuple[str, Any]]:
    rows = {name: getattr(args, name, None) for name in _TOLD}
    for name, value in args.given().items():
        if (
            name not in _NOT_TOLD
            and not name.startswith(("hub_", "push_to_hub"))
            and not is_secret_name(name)
        ):
            rows.setdefault(name, value)
    return [(name, getattr(value, "value", value)) for name, value in rows.items() if value is not None]


def _kind_of_model(run: Run, config: Mapping[str, Any]) -> str | None:
    if run.model is not None:
        return type(run.model).__name__
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else None


def model_card(
    run: Run,
    *,
    model_name: str,
    language: str | Sequence[str] | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
    finetuned_from: str | None = None,
    tasks: str | Sequence[str] | None = None,
    dataset_tags: str | Sequence[str] | None = None,
    dataset: str | Sequence[str] | None = None,
    dataset_args: str | Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> ModelCard:
    """The draft of a card: what the model is, how it was trained, how it did.

    Args:
        run: its arguments, plugins, model and log are told of; nothing that is a secret.
        model_name: the title.
        language, license, tags, finetuned_from, tasks, dataset_tags, dataset, dataset_args: as
            `Trainer.create_model_card` takes them.
        config: what is in the model's `config.json`, where there is no model at hand.
    """
    config = config or {}
    if finetuned_from is None:
        finetuned_from = getattr(getattr(run.model, "config", None), "_name_or_path", None)
    finetuned_from = finetuned_from or config.get("_name_or_path") or None
    if finetuned_from is not None and os.path.isdir(finetuned_from):
        finetuned_from = None  # a folder of this machine says nothing to anybody else
    from_transformers = hasattr(run.model, "save_pretrained") or "transformers_version" in config
    names, kinds = _many(dataset), _many(dataset_tags)
    data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers" if from_transformers else "drivetrain",
        tags=list(dict.fromkeys([*_many(tags), "generated_from_trainer"])),
        base_model=finetuned_from,
        datasets=kinds or None,
        pipeline_tag=_many(tasks)[0] if tasks else None,
        model_name=model_name,
        eval_results=_results(run.state.log_history, _many(tasks), names, kinds),
    )
    origin = f"fine-tuned from {finetuned_from}" if finetuned_from else "trained from scratch"
    source = f", on {', '.join(names or kinds)}" if names or kinds else ""
    how = f" ({' '.join(_many(dataset_args))})" if dataset_args else ""
    kind = _kind_of_model(run, config)
    what = f"A {kind}, {origin}{source}{how}." if kind else f"Trained with drivetrain{source}{how}."
    body = [f"# {model_name}", "", what, ""]
    body += ["This card is a draft that the trainer wrote: say what it is for, and where it fails.", ""]
    body += _evaluations(run.state.log_history)
    body += ["## Training", "", *_table(["argument", "value"], _arguments(run.args)), ""]
    body += [f"{run.state.global_step} updates, {run.state.epoch or 0:.2f} epochs.", ""]
    plugins = [found[:3] for found in run.plan.describe() if found[1] not in ("progress", "printer")]
    if plugins:
        body += ["## Plugins", "", *_table(["kind", "plugin", "version"], plugins), ""]
    versions = {"drivetrain": drivetrain.__version__}
    # Without a model at hand the run was another process's, perhaps on another machine.
    for name in ("torch", "transformers", "datasets", "tokenizers") if run.model is not None else ():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    body += ["## Versions", "", *[f"- {name} {version}" for name, version in versions.items()]]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(body) + "\n")
