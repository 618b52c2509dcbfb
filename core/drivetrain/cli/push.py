"""`drivetrain push`: sends a run's model, or a checkpoint of it, to the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from drivetrain.cli.console import clean_errors


@clean_errors
def push_command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's output folder, or a checkpoint.", show_default=False)
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="last|best|STEP",
            help="Send the model of this checkpoint; by default the final model, or that of the last checkpoint where "
            "there is none.",
            show_default=False,
        ),
    ] = None,
    with_state: Annotated[
        bool,
        typer.Option(
            "--with-state",
            help="Send the checkpoint too, in a folder beside the model, to go on training from.",
        ),
    ] = False,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="The repository, as hub_model_id has it; by default that of the run, else the folder's name.",
            show_default=False,
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private, if it is new.")
    ] = False,
    message: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Of the upload.", show_default=False)
    ] = None,
) -> None:
    """Push a run's model, with its card, to the hub.

    The token is the one that the hub's own client finds (HF_TOKEN, or a login).
    """
    from drivetrain.checkpoint.files import size
    from drivetrain.cli.checkpoints_shown import check_there
    from drivetrain.cli.report import sections
    from drivetrain.errors import CheckpointError, ConfigurationError
    from drivetrain.hub.parcel import of_checkpoint
    from drivetrain.hub.stored import Stored, choose

    check_there(run)
    chosen = choose(run, checkpoint)
    if with_state and chosen.checkpoint is None:
        raise ConfigurationError(
            "--with-state sends a checkpoint, and the final model is none: add --checkpoint last, best or a step."
        )
    stored = Stored(chosen, to, private)
    repository = stored.create()
    try:
        parcels = [(chosen.what, stored.model(), "")]
        if with_state:
            assert chosen.checkpoint is not None
            name = os.path.basename(chosen.checkpoint)
            parcels.append((name, of_checkpoint(chosen.checkpoint), stored.place_of_state()))
    except OSError as error:
        raise CheckpointError(f"{chosen.folder} cannot be read: {error.strerror or error}.") from error
    rows = [("to", f"{repository}  ({stored.hub_name})")]
    try:
        for what, parcel, path in parcels:
            count = len(parcel.files)
            amount = f"{count} file{'s' * (count != 1)}, {size(parcel.size)}"
            with _working(f"Sending {what}: {amount}"):
                said = message or f"Push {what}"
                address = stored.send(parcel, repository, said, path)
            rows.append((what, f"{amount}{f', as {path}' if path else ''}\n{address}"))
    finally:
        for _, parcel, _ in parcels:
            parcel.close()
    sections(f"Pushed: {chosen.folder}", rows)


@contextmanager
def _working(text: str) -> Iterator[None]:
    """A line that moves, on a terminal, while something takes its time."""
    from drivetrain.cli.console import console, is_terminal

    if not is_terminal():
        yield
        return
    with console().status(text, spinner="dots"):
        yield
