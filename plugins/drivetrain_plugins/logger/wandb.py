"""Rows of the log in a run of Weights & Biases."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

import torch

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row, flag
from drivetrain_plugins.logger.options import SharedOptions

logger = logging.getLogger("drivetrain")

# The run that a logger here has opened in this process. It outlives the logger, of which each training has one.
_ours: Any = None

_BINS = 64


class WandbLogger(Logger):
    """Logs to the run that is open in this process, or opens one and keeps it for later evaluations.

    wandb reads its own environment (`WANDB_MODE`, `WANDB_DIR`, `WANDB_ENTITY`, ...). Here are read
    `WANDB_PROJECT` (default "huggingface", as documented), `WANDB_DISABLED`, `WANDB_WATCH` ("gradients",
    "parameters", "all") and `WANDB_LOG_MODEL` ("end", "checkpoint"). A resume goes on in the run that the
    checkpoint names.
    """

    name = "wandb"
    _wandb: Any
    _run: Any

    def load(self) -> None:
        """Imports wandb."""
        self._wandb = importlib.import_module("wandb")

    def open(self, facts: Facts) -> None:
        """Opens a run, or joins the open one, and writes configuration and axes."""
        global _ours
        # A run of ours stays open after training, for evaluations. A new training has its own, unless
        # it is a resume, whose checkpoint has named this one. A run that the script opened is joined.
        current = self._wandb.run
        goes_on = current is not None and facts.resumed.get("run_id") == current.id
        if facts.is_training and current is not None and current is _ours and not goes_on:
            current.finish()
        if self._wandb.run is None:
            _ours = self._wandb.init(**self._settings(facts))
        self._run = run = self._wandb.run
        self.state = {"run_id": run.id}
        self._named = facts.run_name is not None
        run.config.update(facts.configuration, allow_val_change=True)
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric="train/global_step", step_sync=True)

    def _settings(self, facts: Facts) -> dict[str, Any]:
        settings: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", "huggingface")}
        if facts.trial_name is not None:
            settings.update(name=facts.trial_name, group=facts.run_name or facts.output_dir)
        elif facts.run_name is not None:
            settings["name"] = facts.run_name
        if "run_id" in facts.joins:
            settings.update(id=facts.joins["run_id"], resume="allow")
        if flag("WANDB_DISABLED"):
            settings["mode"] = "disabled"
        elif "WANDB_MODE" not in os.environ and not self._wandb.api.api_key:  # read, never asked for
            settings["mode"] = "offline"
            logger.warning(
                "Nobody is logged in to wandb, so the run is written offline. Run 'wandb login' before it, "
                "or 'wandb sync' on its folder afterwards."
            )
        return settings

    def write(self, row: Row) -> None:
        """Logs the row against `train/global_step`."""
        self._run.log({**row.grouped, "train/global_step": row.step})

    def keeps_checkpoints(self) -> bool:
        """Under `WANDB_LOG_MODEL=checkpoint`."""
        return os.environ.get("WANDB_LOG_MODEL", "").lower() == "checkpoint"

    def keeps_model(self) -> bool:
        """Under `WANDB_LOG_MODEL=end` too, of which "true" is an older spelling."""
        return (
            self.keeps_checkpoints() or flag("WANDB_LOG_MODEL") or os.environ.get("WANDB_LOG_MODEL") == "end"
        )

    def save(self, checkpoint: str, step: int) -> None:
        """Uploads a checkpoint as an artifact."""
        self._upload("checkpoint", checkpoint, [f"checkpoint-{step}"])

    def save_model(self, folder: str) -> None:
        """Uploads the trained model as an artifact."""
        self._upload("model", folder, None)

    def _upload(self, what: str, folder: str, aliases: list[str] | None) -> None:
        artifact = self._wandb.Artifact(
            name=f"{what}-{self._run.name if self._named and self._run.name else self._run.id}", type="model"
        )
        artifact.add_dir(folder)
        self._run.log_artifact(artifact, aliases=aliases)
        if self._run.settings.mode == "online":
            artifact.wait()  # the folder may be gone after this

    def close(self) -> None:
        """The run stays open for evaluations that follow; wandb ends it with the process."""


class WatchingWandbLogger(WandbLogger):
    """Histograms of gradients or parameters as well, every 100 updates or as seldom as rows are logged.

    They are made here and not by `wandb.watch`, whose hooks run within the backward, where an error ends the run.
    """

    @hookimpl
    def on_gradients_ready(self, run: Run) -> None:
        """Hands over the histograms."""
        step = run.state.global_step
        if not run.is_main_process or step % max(100, run.state.logging_steps) or not self._begin(run):
            return
        try:
            made = _histograms(run.model, os.environ.get("WANDB_WATCH", "").lower())
        except Exception as error:
            self._say(error)
        else:
            self._do(lambda: self._write_histograms(made, step))

    def _write_histograms(self, made: dict[str, Any], step: int) -> None:
        row = {name: self._wandb.Histogram(np_histogram=counted) for name, counted in made.items()}
        self._run.log({**row, "train/global_step": step})


def _histograms(model: torch.nn.Module, watched: str) -> dict[str, Any]:
    """Counts and edges of each parameter and its gradient, on this rank; what is not finite is left out."""
    made = {}
    for name, parameter in model.named_parameters():
        found = {"parameters": parameter.detach(), "gradients": parameter.grad}
        for kind, tensor in found.items():
            if tensor is None or watched not in ("all", kind):
                continue
            values = getattr(tensor, "to_local", lambda tensor=tensor: tensor)().float()
            values = values[values.isfinite()]
            if values.numel():
                low, high = values.min().item(), values.max().item()
                counts = torch.histc(values, _BINS, low, high)
                edges = torch.linspace(low, high if high > low else low + 1.0, _BINS + 1)
                made[f"{kind}/{name}"] = counts.cpu().numpy(), edges.numpy()
    return made


def make(options: SharedOptions) -> WandbLogger:
    """The logger, as the environment asks for it."""
    watches = os.environ.get("WANDB_WATCH", "").lower() in ("all", "parameters", "gradients")
    return (WatchingWandbLogger if watches else WandbLogger)(options)
