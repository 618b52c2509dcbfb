"""What goes to the hub and when: `hub_strategy`, as a listener of the core's. The hub is a plugin's."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.checkpoint.contents import TRAINER_STATE
from drivetrain.checkpoint.rotation import checkpoints
from drivetrain.errors import CheckpointError, ConfigurationError, HubError
from drivetrain.gathering import gather_objects
from drivetrain.hub.parcel import CARD, WEIGHTS, as_upload_files, is_model, of_checkpoint, of_output
from drivetrain.hub.uploads import Job, Uploads, reason_of
from drivetrain.plugin import hookimpl
from drivetrain.secret import struck
from drivetrain.slots import Upload

if TYPE_CHECKING:
    from drivetrain.output import Output
    from drivetrain.run import Run
    from drivetrain.slots import Hub

logger = logging.getLogger("drivetrain")

MODEL = "model"
"""The place of the model: the root of the repository."""
LAST = "last-checkpoint"
"""The folder of the repository that `hub_strategy="checkpoint"` keeps."""
DRAFT = "generated_from_trainer"
"""The tag of a card that was written here. A card without it is somebody's own, and stays."""
_TURN = 5.0  # seconds after which the ranks that wait for rank 0 hear of it


class Pushing:
    """Sends what `hub_strategy` asks for, on the main process, and never lets a failure of the hub end the run.

    Args:
        trainer: whose model and checkpoints are sent.

    Attributes:
        repository: its full name; None until the hub has been asked.
        uploads: what is under way, waits or is owed.
    """

    def __init__(self, trainer: Output) -> None:
        self.trainer = trainer
        self.repository: str | None = None
        self.uploads = Uploads(self._send, lambda: trainer.args.hub_patience, self.tell)
        self._hub: Hub = trainer._hub()
        self._card: dict[str, Any] = {}
        self._skipped: dict[
            str, str
        ] = {}  # checkpoints that came while another was under way, and their messages

    # -- before the run -----------------------------------------------------------------------------------

    def open(self) -> str | None:
        """Makes the repository, if it is not there.

        Raises:
            ConfigurationError: the hub refuses it. That it does not answer is a warning to a run that goes on.
        """
        run, args = self.trainer.run, self.trainer.args
        self._hub = self.trainer._hub()  # of the arguments as they are now
        try:
            self.repository = self._hub.create(run)
        except HubError as error:
            if not error.temporary or not checkpoints(args.output_dir):
                raise ConfigurationError(f"push_to_hub=True: {error}") from error
            logger.warning("%s The run goes on, and asks again when it has something to send.", error)
        return self.repository

    # -- heard of the run -----------------------------------------------------------------------------------

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Makes the repository of the arguments as they are now."""
        if run.is_main_process:
            self.uploads.waits_at_exit = True
            self.open()

    @hookimpl
    def on_save(self, run: Run, checkpoint: str) -> None:
        """Sends what a checkpoint gives."""
        self.trainer._push_from_checkpoint(checkpoint)

    @hookimpl(trylast=True)
    def on_train_end(self, run: Run) -> None:
        """Sends the final model, and what is owed; waits for it. A collective."""
        if self._strategy() == "end":
            return
        try:
            self.trainer.save_model(_internal_call=True)
        except (CheckpointError, OSError) as error:
            logger.warning("The final model is not sent, since it could not be written: %s", reason_of(error))
        else:
            if run.is_main_process:
                self._try("The final model", lambda: self._put_output("End of training"))
        if run.is_main_process:
            self._try("What was left out", self._put_skipped)
        while True:
            settled = self.uploads.settle(_TURN) if run.is_main_process else True
            if all(gather_objects(settled, run.processes)):  # so that the others do not run out of patience
                break
        self.tell()

    @hookimpl(trylast=True)
    def on_exception(self, run: Run, error: BaseException) -> None:
        """Says what is not at the hub. An error is no time to wait."""
        self.uploads.waits_at_exit = False
        self.tell()

    # -- what is sent -------------------------------------------------------------------------------------------

    def checkpoint(self, checkpoint: str) -> None:
        """Sends what `hub_strategy` wants of a checkpoint, unless another is under way."""
        run, args, strategy = self.trainer.run, self.trainer.args, self._strategy()
        if not run.is_main_process or strategy == "end":
            return
        step = _step_of(checkpoint)
        by_epochs = args.save_strategy == "epoch"
        message = f"Training in progress, {f'epoch {_epoch_of(checkpoint)}' if by_epochs else f'step {step}'}"
        if not args.hub_always_push and not self.uploads.is_done():
            self._skipped[checkpoint] = message
            logger.info("%s is not sent now, since another is under way.", os.path.basename(checkpoint))
            return
        if strategy == "checkpoint":
            self._skipped.clear()  # of those only the last counts
        name = os.path.basename(checkpoint)
        self._try(f"The model of {name}", lambda: self._put_model(checkpoint, message))
        if strategy != "every_save":
            self._try(name, lambda: self._put_checkpoint(checkpoint, f"{message}, checkpoint"))

    def _try(self, what: str, work: Callable[[], object]) -> None:
        """Whatever goes wrong with making an upload ready (the disk, a hub's card) is a warning."""
        try:
            work()
        except Exception as error:
            logger.warning("%s is not sent to the hub: %s", what, reason_of(error))

    def output(self, message: str, blocking: bool, card: dict[str, Any]) -> Any:
        """Sends the output folder, with a card.

        Args:
            message: of the upload.
            blocking: wait for it, and for what is owed.
            card: fields of the card.

        Returns:
            What the hub calls the upload, or a future of it.

        Raises:
            HubError: it is not at the hub.
        """
        job = self._put_output(message, copied=not blocking, card=card)
        if not blocking:
            return job.future
        self.uploads.wait_until_done()
        error = job.error
        if error is not None:
            self.uploads.forget([job.place])
            self.tell()
            raise HubError(
                f"The model is not at the hub: {reason_of(error)}. {self._cure([job])}",
                temporary=job.may_go_well,
            ) from error
        self.tell()
        return job.future.result()

    def saved(self, message: str) -> None:
        """Sends the output folder and waits for it; that it does not get there is a warning.

        Not to a hub that stands still: that has been waited for, and said.
        """
        if self.trainer.run.is_main_process and not self.uploads.gave_up:
            self._put_output(message)
            self.uploads.wait_until_done()
            self.tell()

    def write_card(self, folder: str, **fields: Any) -> str:
        """Writes the card into a folder; what was said of it once is said again."""
        self._card |= {key: value for key, value in fields.items() if value is not None}
        return self._hub.write_card(self.trainer.run, folder, **self._card)

    def _put_output(self, message: str, copied: bool = False, card: dict[str, Any] | None = None) -> Job:
        folder = self.trainer.args.output_dir
        if card or not _is_own(Path(folder, CARD)):
            self.write_card(folder, **(card or {}))
        parcel = of_output(folder, copied)
        job = Job("the model", MODEL, message, parcel, "", replaces=WEIGHTS)
        self.uploads.put(job)
        return job

    def _put_model(self, checkpoint: str, message: str) -> None:
        parcel = of_checkpoint(checkpoint, is_model)
        assert parcel.folder is not None
        own = Path(self.trainer.args.output_dir, CARD)
        if CARD not in parcel.files:
            parcel.add(str(own) if _is_own(own) else self.write_card(parcel.folder))
        step = _step_of(checkpoint)
        self.uploads.put(
            Job(
                f"the model of step {step}",
                MODEL,
                message,
                parcel,
                f"--checkpoint {step}",
                replaces=WEIGHTS,
                source=checkpoint,
            )
        )

    def _put_checkpoint(self, checkpoint: str, message: str) -> None:
        name = os.path.basename(checkpoint)
        path = LAST if self._strategy() == "checkpoint" else name
        command = f"--checkpoint {_step_of(checkpoint)} --with-state"
        self.uploads.put(
            Job(name, path, message, of_checkpoint(checkpoint), command, path, ("*",), checkpoint)
        )

    def _put_skipped(self) -> None:
        """The checkpoints that were left out because another was under way, if they are there still."""
        skipped, self._skipped = self._skipped, {}
        strategy = self._strategy()
        if strategy == "checkpoint":
            skipped = dict(list(skipped.items())[-1:])
        for checkpoint, message in skipped.items() if strategy != "every_save" else ():
            if os.path.isdir(checkpoint):
                self._put_checkpoint(checkpoint, f"{message}, checkpoint")

    def _send(self, job: Job) -> Any:
        """In the thread: one upload."""
        job.parcel.check()
        if self.repository is None:
            self.repository = self._hub.create(self.trainer.run)
        files = as_upload_files(job.parcel, job.path)
        replaces = tuple(f"{job.path}/{pattern}" if job.path else pattern for pattern in job.replaces)
        return self._hub.upload(Upload(self.repository, files, job.message, replaces))

    # -- what is said ----------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Says what is not at the hub, and how it gets there; once."""
        missing = self.uploads.pending()
        if not missing:
            return
        self.uploads.forget()
        said = "; ".join(
            f"{job.what} ({'it was still on its way' if job.error is None else reason_of(job.error)})"
            for job in missing
        )
        logger.warning("Not at the hub: %s. %s", struck(said), self._cure(missing))

    def _cure(self, jobs: list[Job]) -> str:
        """The commands that send what is missing, as far as it is still there."""
        commands, gone = [], []
        for job in jobs:
            source = job.source or self.trainer.args.output_dir
            folder = os.path.dirname(source) if job.source else source
            if os.path.isdir(source):
                commands.append(f"drivetrain push {shlex.quote(_shortest(folder))} {job.command}".rstrip())
            else:
                gone.append(f"{os.path.basename(source)} has been deleted since")
        by = [f"Send it by: {'; '.join(dict.fromkeys(commands))}"] if commands else []
        return ". ".join([*dict.fromkeys(gone), *by])

    def _strategy(self) -> str:
        return str(getattr(self.trainer.args.hub_strategy, "value", self.trainer.args.hub_strategy))


def _step_of(checkpoint: str) -> str:
    """What a checkpoint's name ends with: a script may have one that is no number."""
    return os.path.basename(checkpoint).rpartition("-")[2]


def _epoch_of(checkpoint: str) -> int:
    """The epoch of a checkpoint, of which training may be ahead."""
    with contextlib.suppress(OSError, ValueError):
        return int(json.loads(Path(checkpoint, TRAINER_STATE).read_text(encoding="utf-8")).get("epoch") or 0)
    return 0


def _is_own(path: Path) -> bool:
    """Whether there is a card that somebody has written, and not a draft of ours."""
    return path.exists() and DRAFT not in path.read_text(encoding="utf-8", errors="replace")


def _shortest(folder: str) -> str:
    """A folder as it is typed."""
    return min(os.path.relpath(folder), os.path.abspath(folder), key=len)
