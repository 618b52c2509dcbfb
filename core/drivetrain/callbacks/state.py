"""The documented state of a run, and its file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivetrain.secret import has_secret, without_secrets


@dataclass
class TrainerState:
    """Where the run stands. Saved with every checkpoint as `trainer_state.json`.

    Attributes:
        epoch: epochs done, a fraction within an epoch; None before training.
        global_step: updates done.
        max_steps: updates of the whole run.
        logging_steps, eval_steps, save_steps: how often, in updates; shares are resolved.
        num_train_epochs: epochs of the whole run, rounded up.
        total_flos: floating-point operations so far, where the model can tell.
        log_history: every row of the log.
        best_metric: the best value of `metric_for_best_model` so far.
        best_model_checkpoint: the checkpoint that had it.
        is_local_process_zero, is_world_process_zero: whether this process is its node's, or the run's, first.
        is_hyper_param_search, trial_name, trial_params: set within a search.
    """

    epoch: float | None = None
    global_step: int = 0
    max_steps: int = 0
    logging_steps: int = 500
    eval_steps: int = 500
    save_steps: int = 500
    num_train_epochs: int = 0
    total_flos: float = 0
    log_history: list[dict[str, Any]] = field(default_factory=list)
    best_metric: float | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    def save_to_json(self, json_path: str) -> None:
        """Writes the file, without secrets."""
        text = self.to_json()
        if has_secret(text):
            text = json.dumps(without_secrets(json.loads(text)), indent=2, sort_keys=True) + "\n"
        Path(json_path).write_text(text, encoding="utf-8")

    @classmethod
    def from_json(cls, text: str) -> TrainerState:
        """The state of a file's text; keys of later versions are passed over."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainerState:
        """The state of a file's content; keys of later versions are passed over."""
        known = {found.name for found in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    @classmethod
    def load_from_json(cls, json_path: str) -> TrainerState:
        """Reads the file."""
        return cls.from_json(Path(json_path).read_text(encoding="utf-8"))
