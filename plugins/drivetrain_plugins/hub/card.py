"""A first draft of a model card, from what a run knows of itself."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

import drivetrain
from drivetrain.run import Run

# The arguments that say how the model came about, in this order.
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
            if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
        }
        if metrics:
            rows.append({"step": entry["step"], "epoch": entry.get("epoch", ""), "loss": loss, **metrics})
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))
    return ["## Evaluation", "", *_table(names, [[row.get(name, "") for name in names] for row in rows]), ""]


def model_card(
    run: Run,
    *,
    model_name: str,
    language: str | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
    finetuned_from: str | None = None,
    tasks: str | Sequence[str] | None = None,
    dataset_tags: str | Sequence[str] | None = None,
    dataset: str | Sequence[str] | None = None,
    dataset_args: str | Sequence[str] | None = None,
) -> ModelCard:
    """The draft of a card: what the model is, how it was trained, how it did.

    Args:
        run: its arguments, model and log are told of; nothing that is a secret.
        model_name: the title.
        language, license, tags, finetuned_from, tasks, dataset_tags, dataset, dataset_args: as
            `Trainer.create_model_card` takes them.
    """
    config = getattr(run.model, "config", None)
    if finetuned_from is None:
        finetuned_from = getattr(config, "_name_or_path", None) or None
    library = "transformers" if hasattr(run.model, "save_pretrained") else "drivetrain"
    data = ModelCardData(
        language=language,
        license=license,
        library_name=library,
        tags=list(dict.fromkeys([*_many(tags), "generated_from_trainer"])),
        base_model=finetuned_from,
        datasets=_many(dataset_tags) or None,
        pipeline_tag=_many(tasks)[0] if tasks else None,
    )
    sets = ", ".join(_many(dataset) or _many(dataset_tags))
    how = " ".join(_many(dataset_args))
    body = [f"# {model_name}", ""]
    origin = f"fine-tuned from {finetuned_from}" if finetuned_from else "trained from scratch"
    source = f", on {sets}" if sets else ""
    body += [f"A {type(run.model).__name__}, {origin}{source}{f' ({how})' if how else ''}.", ""]
    body += [
        "This card is a draft that the trainer wrote: say what it is for, and where it fails.",
        "",
    ]
    body += _evaluations(run.state.log_history)
    told = [(name, getattr(run.args, name, None)) for name in _TOLD]
    rows = [(name, getattr(value, "value", value)) for name, value in told if value is not None]
    body += ["## Training", "", *_table(["argument", "value"], rows), ""]
    body += [f"{run.state.global_step} updates, {run.state.epoch or 0:.2f} epochs.", "", "## Versions", ""]
    versions = {"drivetrain": drivetrain.__version__}
    for name in ("torch", "transformers", "datasets", "tokenizers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    body += [f"- {name} {version}" for name, version in versions.items()]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(body) + "\n")
