"""Rows of the log in a run of Weights & Biases."""

from __future__ import annotations

import logging
import os
from typing import Any

import wandb

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain_plugins.logger.base import Logger, model_config

logger = logging.getLogger("drivetrain")

# The run that a logger here has opened in this process. It outlives the logger, of which each training has one.
_ours: Any = None

_TRUE = ("1", "true", "yes", "on")


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in _TRUE


def _logged_in() -> bool:
    """Whether wandb has a key. Read only, never asked for: a run must not stop at a question."""
    return bool(wandb.api.api_key)


class WandbLogger(Logger):
    """Logs to the run that is open in this process, or opens one and keeps it for later evaluations.

    wandb reads its own environment (`WANDB_MODE`, `WANDB_DIR`, `WANDB_ENTITY`, ...). Here are read
    `WANDB_PROJECT` (default "huggingface", as documented), `WANDB_DISABLED`, `WANDB_WATCH` ("gradients",
    "parameters", "all") and `WANDB_LOG_MODEL` ("checkpoint"). A resume goes on in the run that the
    checkpoint names.
    """

    name = "wandb"

    def __init__(self) -> None:
        super().__init__()
        self._id: str | None = None  # of the run that a checkpoint names

    @hookimpl
    def load_state(self, run: Run, state: dict[str, Any]) -> None:
        """Takes the run's id from the checkpoint."""
        self._id = state.get("run_id")

    @hookimpl
    def save_state(self, run: Run) -> dict[str, Any] | None:
        """The run's id."""
        return {"run_id": wandb.run.id} if wandb.run is not None else None

    def open(self, run: Run) -> None:
        """Opens a run, or joins the open one, and writes configuration and axes."""
        global _ours
        # A run of ours stays open after training, for evaluations. A new training has its own, unless
        # it is a resume, whose checkpoint has named this one. A run that the script opened is joined.
        current: Any = wandb.run
        if run.is_training and current is not None and current is _ours and self._id != current.id:
            current.finish()
        if wandb.run is None:
            _ours = wandb.init(**self._settings(run))
        config = model_config(run)
        told: Any = wandb.config
        told.update(
            {**(config.to_dict() if config is not None else {}), **run.args.to_dict()}, allow_val_change=True
        )
        wandb.define_metric("train/global_step")
        wandb.define_metric("*", step_metric="train/global_step", step_sync=True)
        watched = os.environ.get("WANDB_WATCH", "false").lower()
        if watched in ("all", "parameters", "gradients"):
            watch: Any = wandb.watch
            watch(run.model, log=watched, log_freq=max(100, run.state.logging_steps))
        if os.environ.get("WANDB_LOG_MODEL", "").lower() in ("end", *_TRUE):
            logger.warning(
                "WANDB_LOG_MODEL=end is not there yet: no model is uploaded. Use WANDB_LOG_MODEL=checkpoint."
            )

    def _settings(self, run: Run) -> dict[str, Any]:
        args, state = run.args, run.state
        settings: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", "huggingface")}
        if state.trial_name is not None:
            settings.update(name=state.trial_name, group=args.run_name)
        elif args.run_name is not None and args.run_name != args.output_dir:
            settings["name"] = args.run_name
        if self._id is not None:
            settings.update(id=self._id, resume="allow")
        if _flag("WANDB_DISABLED"):
            settings["mode"] = "disabled"
        elif "WANDB_MODE" not in os.environ and not _logged_in():
            settings["mode"] = "offline"
            logger.warning(
                "Nobody is logged in to wandb, so the run is written offline. Run 'wandb login' before it, "
                "or 'wandb sync' on its folder afterwards."
            )
        return settings

    def write(self, run: Run, row: dict[str, Any]) -> None:
        """Logs the row against `train/global_step`."""
        wandb.log({**row, "train/global_step": run.state.global_step})

    @hookimpl
    def on_save(self, run: Run, checkpoint: str) -> None:
        """Uploads the checkpoint as an artifact under `WANDB_LOG_MODEL=checkpoint`."""
        if os.environ.get("WANDB_LOG_MODEL", "").lower() == "checkpoint":
            self._guarded(run, self._upload, checkpoint)

    def _upload(self, run: Run, checkpoint: str) -> None:
        tracked: Any = wandb.run
        artifact = wandb.Artifact(name=f"checkpoint-{tracked.id}", type="model")
        artifact.add_dir(checkpoint)
        wandb.log_artifact(artifact, aliases=["latest", f"step_{run.state.global_step}"])

    def close(self, run: Run) -> None:
        """The run stays open for evaluations that follow; wandb ends it with the process."""
        self._id = None
