"""Sending what a run has left on the disk, without the run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from drivetrain import discover, settings
from drivetrain.arguments import TrainingArguments
from drivetrain.arguments.training_arguments import declared
from drivetrain.callbacks import TrainerControl, TrainerState
from drivetrain.checkpoint import last_checkpoint
from drivetrain.checkpoint.contents import RUN, TRAINER_STATE, TRAINING_ARGS
from drivetrain.checkpoint.listing import list_checkpoints
from drivetrain.checkpoint.rotation import NAME, checkpoints
from drivetrain.checkpoint.weights import INDEX, PICKLED, PICKLED_INDEX, WEIGHTS
from drivetrain.errors import CheckpointError, ConfigurationError, HubError, did_you_mean
from drivetrain.hub.parcel import CARD, Parcel, as_upload_files, is_model, of_checkpoint, of_output
from drivetrain.hub.parcel import WEIGHTS as OLDER_WEIGHTS
from drivetrain.hub.pushing import LAST
from drivetrain.processes import current
from drivetrain.resolve import Active, resolve
from drivetrain.run import Run
from drivetrain.secret import is_secret_name
from drivetrain.slots import Hub, Upload


@dataclass(frozen=True, slots=True)
class Chosen:
    """What of a run is sent.

    Attributes:
        folder: the run's.
        checkpoint: whose model it is; None for the final model, which lies in the run's folder itself.
        facts: a checkpoint that says how the model came about; None where there is none.
    """

    folder: str
    checkpoint: str | None
    facts: str | None

    @property
    def what(self) -> str:
        """In words."""
        return f"the model of {os.path.basename(self.checkpoint)}" if self.checkpoint else "the final model"


def choose(folder: str, wanted: str | None) -> Chosen:
    """Finds what is to be sent.

    Args:
        folder: a run's output folder, or a checkpoint of it.
        wanted: "last", "best", or a checkpoint by its step or name; by default the final model, else the last.

    Raises:
        CheckpointError: it is not there; the sentence says what is.
    """
    folder = os.path.normpath(folder)
    if NAME.fullmatch(os.path.basename(folder)) and wanted is None:
        wanted, folder = os.path.basename(folder), os.path.dirname(folder) or os.curdir
    last = last_checkpoint(folder)
    if wanted is None and any(
        os.path.exists(os.path.join(folder, name)) for name in (WEIGHTS, INDEX, PICKLED, PICKLED_INDEX)
    ):
        return Chosen(folder, None, last)
    there = {os.path.basename(path): path for _, path in checkpoints(folder)}
    if wanted in (None, "last"):
        if last is None:
            raise CheckpointError(
                f"{folder} has neither a final model nor a whole checkpoint, so there is nothing to push."
            )
        return Chosen(folder, last, last)
    if wanted == "best":
        best = next((entry.path for entry in list_checkpoints(folder).checkpoints if entry.best), None)
        if best is None:
            raise CheckpointError(
                f"{folder} knows no best checkpoint, or has it no more: it is kept track of by metric_for_best_model. "
                f"There are: {', '.join(there) or 'none'}."
            )
        return Chosen(folder, best, best)
    name = f"checkpoint-{wanted}" if str(wanted).isdigit() else str(wanted)
    if name not in there:
        raise CheckpointError(
            f"{folder} has no {name}.{did_you_mean(name, there)} There are: {', '.join(there) or 'none'}."
        )
    return Chosen(folder, there[name], there[name])


class Stored:
    """A run as its checkpoint remembers it, and the hub that its arguments choose.

    Args:
        chosen: what is sent.
        to: the repository; by default that of the run.
        private: make it private if it is new.

    Attributes:
        hub: the hub; `hub_name`: its plugin.

    Raises:
        ConfigurationError: the hub is not installed, or cannot work here.
    """

    def __init__(self, chosen: Chosen, to: str | None, private: bool) -> None:
        self.chosen = chosen
        told = _read(chosen.facts, TRAINING_ARGS)
        self.strategy = str(told.get("hub_strategy") or "every_save")
        recorded = {
            str(key): str(value)
            for key, value in (_read(chosen.facts, f"{RUN}.json").get("plugins") or {}).items()
        }
        options = told.get("plugins")
        hubs = discover.names("hub")
        args = TrainingArguments(
            output_dir=chosen.folder,
            push_to_hub=True,
            hub_model_id=to or told.get("hub_model_id"),
            hub_private_repo=private or bool(told.get("hub_private_repo")),
            report_to="none",
            plugins={name: value for name, value in options.items() if name in hubs}
            if isinstance(options, dict)
            else None,
        )
        plan = resolve(args, kinds=("hub",), settings=settings.load())
        active = plan.slot("hub")
        if active is None:
            raise ConfigurationError("No hub plugin is installed. Run: pip install 'drivetrain[huggingface]'")
        self.hub_name = active.name
        before = next((key.partition(":")[2] for key in recorded if key.startswith("hub:")), active.name)
        if to is None and before != active.name:
            raise ConfigurationError(
                f"{chosen.folder} pushed to the hub {before!r}, and what is found here is {active.name!r}: install the "
                "former, or say where to by --to."
            )
        self.run = Run(args, _state_of(chosen.facts), TrainerControl(), plan, current(args), None)  # type: ignore[arg-type]  # no model
        self.hub: Hub = plan.manager.hook.make_hub(run=self.run)
        plan.active = [
            Active(kind, name, "", version=version)  # type: ignore[arg-type]  # as the run wrote it
            for (kind, _, name), version in ((key.partition(":"), value) for key, value in recorded.items())
        ] or plan.active
        _remember(args, told)

    def create(self) -> str:
        """Makes the repository if it is not there, and returns its name.

        Raises:
            HubError: the hub refuses it.
        """
        with self._said():
            return self.hub.create(self.run)

    def model(self) -> Parcel:
        """The files of the model, with its card."""
        chosen = self.chosen
        if chosen.checkpoint is None:
            parcel = of_output(chosen.folder, copied=False)
            if CARD not in parcel.files:
                parcel.add(self.hub.write_card(self.run, chosen.folder))
            return parcel
        parcel = of_checkpoint(chosen.checkpoint, is_model)
        assert parcel.folder is not None
        own = os.path.join(chosen.folder, CARD)
        if CARD not in parcel.files:
            parcel.add(own if os.path.exists(own) else self.hub.write_card(self.run, parcel.folder))
        return parcel

    def send(self, parcel: Parcel, repository: str, message: str, path: str = "") -> Any:
        """Sends a parcel, and returns what the hub calls the upload.

        Args:
            parcel: the files; they are let go.
            repository: its full name.
            message: of the upload.
            path: the folder in the repository, which then holds nothing else.

        Raises:
            HubError: it is not at the hub.
        """
        replaces = (f"{path}/*",) if path else OLDER_WEIGHTS
        try:
            with self._said():
                parcel.check()
                return self.hub.upload(Upload(repository, as_upload_files(parcel, path), message, replaces))
        finally:
            parcel.close()

    def place_of_state(self) -> str:
        """The folder of the repository for a whole checkpoint, as the run's hub_strategy has it."""
        assert self.chosen.checkpoint is not None
        return os.path.basename(self.chosen.checkpoint) if self.strategy == "all_checkpoints" else LAST

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except HubError as error:
            raise HubError(
                f"{self.chosen.folder} is not pushed: {str(error).rstrip('.')}.", temporary=error.temporary
            ) from error


def _read(folder: str | None, name: str) -> dict[str, Any]:
    """A JSON object of a checkpoint; empty where there is none, as in one of transformers."""
    if folder is None:
        return {}
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _state_of(folder: str | None) -> TrainerState:
    if folder is not None and os.path.exists(os.path.join(folder, TRAINER_STATE)):
        return TrainerState.load_from_json(os.path.join(folder, TRAINER_STATE))
    return TrainerState(epoch=0)


def _remember(args: TrainingArguments, told: dict[str, Any]) -> None:
    """Gives the arguments the values that the run had, for the card."""
    for name, value in told.items():
        chosen_here = name in ("output_dir", "plugins", "report_to") or name.startswith(
            ("hub_", "push_to_hub")
        )
        if name in declared() and not chosen_here and not is_secret_name(name):
            setattr(args, name, value)
