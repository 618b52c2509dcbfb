"""`drivetrain checkpoints`: the commands. What they do lies in `drivetrain.checkpoint`, imported when it is needed."""

from __future__ import annotations

from typing import Annotated

import typer

from drivetrain.cli.console import clean_errors
from drivetrain.cli.quick import Command, Group

# Unknown options are ours to read: every training argument is one.
_OPEN = {"ignore_unknown_options": True}

Json = Annotated[bool, typer.Option("--json", help="As JSON.")]

checkpoints = typer.Typer(
    cls=Group, help="Which checkpoints a run has, whether they are whole, and in what they differ.",
    no_args_is_help=True,
)  # fmt: skip


@checkpoints.command("list", cls=Command)
@clean_errors
def list_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's output folder.", show_default=False)],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte, and not only the sizes of files.")
    ] = False,
    json: Json = False,
) -> None:
    """List the checkpoints of a run: step, size, metric, whether each is valid, and which one is resumed."""
    from drivetrain.cli.checkpoints_shown import show_list

    show_list(run, verify, json)


@checkpoints.command("verify", cls=Command)
@clean_errors
def verify_command(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="Checkpoints, or run folders: then all of theirs.", show_default=False
        ),
    ],
    json: Json = False,
) -> None:
    """Read every byte of checkpoints against their manifests, and open every file. Ends with 1 where one is damaged."""
    from drivetrain.cli.checkpoints_shown import show_verification

    raise typer.Exit(show_verification(paths, json))


@checkpoints.command("diff", cls=Command)
@clean_errors
def diff_command(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A checkpoint, or a folder of weights.", show_default=False)
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.", show_default=False)],
    json: Json = False,
) -> None:
    """Show in what two checkpoints differ. Ends with 0 where they are equal bit for bit, and else with 1."""
    from drivetrain.cli.checkpoints_shown import show_difference

    raise typer.Exit(show_difference(a, b, json))


@checkpoints.command("export", cls=Command)
@clean_errors
def export_command(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint.", show_default=False)
    ],
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="Where, or a file that ends in .safetensors.", show_default=False
        ),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="bf16|fp16|fp32",
            help="Of floating-point weights; others keep theirs.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="safetensors|huggingface",
            help="The weights alone, or all that from_pretrained reads: the default where there is a config.json.",
            show_default=False,
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Weights above this are written as several files; by default 5GB.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
) -> None:
    """Write a checkpoint's weights to a bare safetensors file or folder, or to one for from_pretrained."""
    from drivetrain.cli.checkpoints_shown import show_export

    show_export(
        checkpoint, folder, dtype=dtype, form=form, max_shard_size=max_shard_size, overwrite=overwrite
    )


@checkpoints.command("verify-resume", cls=Command, context_settings=_OPEN)
@clean_errors
def verify_resume_command(
    config: Annotated[str, typer.Argument(metavar="CONFIG.toml", help="The run's file.", show_default=False)],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="--ARGUMENT VALUE", help="What overrides it, as for train.", show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Updates of the run; an even number.")] = 20,
    nproc: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Processes of each run.", show_default=False)
    ] = None,
    keep: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Leave the runs there.", show_default=False)
    ] = None,
) -> None:
    """Prove that a resume is exact: N steps in one go against N/2 and a resume. Ends with 1 where it is not."""
    from drivetrain.cli.verify_resume import verify_resume

    raise typer.Exit(verify_resume([config, *(words or [])], steps, nproc, keep))


@checkpoints.command("verify-resume-part", cls=Command, context_settings=_OPEN, hidden=True)
@clean_errors
def verify_resume_part_command(
    folder: str, steps: str, words: list[str], nproc: Annotated[str | None, typer.Option()] = None
) -> None:
    """One of the runs of verify-resume."""
    if nproc is not None:
        from drivetrain.cli.launch import Launch, launch

        part = ["checkpoints", "verify-resume-part", folder, steps, *words]
        raise typer.Exit(launch(part, Launch(nproc)))
    from drivetrain.cli.verify_resume_part import run_part

    run_part(folder, [int(step) for step in steps.split(",")], words)
