"""What a checkpoint holds, and how each part is laid out in files.

    checkpoint-STEP/
        model.safetensors, config.json, ...   what `Trainer.save_model` writes
        weights.safetensors                   only where that is not the whole state_dict as it is
        optimizer.json, optimizer.safetensors by parameter name; the loss scaler's state
        gradients.safetensors                 of an unfinished accumulation
        scheduler.json, scheduler.safetensors
        random-RANK.json, random-RANK.safetensors
        model-NUMBER-of-..., optimizer-RANK.*, gradients-RANK.safetensors   of a state that is spread over the ranks
        trainer_state.json                    the documented file
        training_args.json                    without tokens
        run.json, run.safetensors             plugins, versions, configuration, position in the data, loss
                                              window, world size, states of plugins and callbacks
        manifest.json                         size and checksum of every file; written last

A `.safetensors` file is there only where there are tensors to put in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from drivetrain.checkpoint.manifest import FileRecord
from drivetrain.checkpoint.randomness import RandomState
from drivetrain.checkpoint.serialize import pack
from drivetrain.checkpoint.tensors import write_tensors
from drivetrain.secret import has_secret, without_secrets
from drivetrain.slots import TrainState

OPTIMIZER = "optimizer"
GRADIENTS = "gradients.safetensors"
SCHEDULER = "scheduler"
RANDOM = "random-{rank}"
FORMAT = 1
TRAINER_STATE = "trainer_state.json"
TRAINING_ARGS = "training_args.json"
RUN = "run"


@dataclass(slots=True)
class CheckpointContents:
    """What is saved and read back.

    Attributes:
        train_state: weights, optimizer, gradients, loss scale; when saving, on the ranks that write.
        scheduler: the scheduler's `state_dict()`.
        random: the random generators of this rank; captured at the save where it is None.
        others: saving: the random generators of the other ranks, in their order.
        trainer_state: the documented `TrainerState`, as a dictionary or as its JSON. Read as a dictionary.
        args: the arguments, as a dictionary. Read back as plain JSON, tokens struck out.
        plugins: `kind:name` -> version and what else is known of it.
        configuration: all else that the run was configured with.
        position: where the run is in the data.
        loss: the window of losses since the last row of the log.
        plugin_states: plugin -> its own state.
        callback_states: callback -> its own state.
        extra: whatever else a caller wants back.
        step: the number of updates done; taken from `trainer_state` where it is None.
        world_size: read back: the number of processes that saved.
        versions: read back: drivetrain, torch, python.
    """

    train_state: TrainState | None = None
    scheduler: dict[str, Any] | None = None
    random: RandomState | None = None
    others: list[RandomState] = field(default_factory=list)
    trainer_state: dict[str, Any] | str = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    plugins: dict[str, Any] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    position: dict[str, Any] | None = None
    loss: dict[str, Any] = field(default_factory=dict)
    plugin_states: dict[str, Any] = field(default_factory=dict)
    callback_states: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    world_size: int = 1
    versions: dict[str, str] = field(default_factory=dict)

    def steps_done(self) -> int:
        """The number of updates done."""
        if self.step is not None:
            return self.step
        state = json.loads(self.trainer_state) if isinstance(self.trainer_state, str) else self.trainer_state
        return int(state.get("global_step", 0))


def write_packed(folder: str, stem: str, parts: Mapping[str, tuple[Any, str, str]]) -> dict[str, FileRecord]:
    """Writes `STEM.json`, and `STEM.safetensors` where there are tensors.

    Args:
        folder: where.
        stem: the files' name.
        parts: key in the JSON -> (value, prefix of its tensors' names, what it is called in errors).
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = {
        key: pack(value, tensors, prefix=prefix, what=what) for key, (value, prefix, what) in parts.items()
    }
    write_json(folder, stem + ".json", tree)
    if not tensors:
        return {}
    name = stem + ".safetensors"
    return {name: write_tensors(os.path.join(folder, name), tensors)}


def write_json(folder: str, name: str, tree: Any, indent: int | None = None) -> None:
    """Writes a JSON file that ends with a newline."""
    text = json.dumps(tree, allow_nan=False, indent=indent)
    if has_secret(text):
        text = json.dumps(without_secrets(tree), allow_nan=False, indent=indent)
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text + "\n")
