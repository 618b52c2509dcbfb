"""The typer application. A command imports what it needs when it is called, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from drivetrain.cli.checkpoints import checkpoints
from drivetrain.cli.console import STATE, clean_errors
from drivetrain.cli.push import push_command
from drivetrain.cli.quick import Command, Group
from drivetrain.errors import ConfigurationError

# Unknown options are ours to read: every training argument is one.
_OPEN = {"ignore_unknown_options": True}
_CONFIG = typer.Argument(metavar="CONFIG.toml", help="The run's file.", show_default=False)
_WORDS = typer.Argument(
    metavar="--ARGUMENT VALUE",
    help="Any training argument (`drivetrain args` lists them), or a key of the file as --model.KEY, "
    "--data.KEY, --plugins.NAME.KEY.",
    show_default=False,
)
_TRACEBACK = typer.Option("--traceback", help="Show the traceback of an error.")


def _several(flag: str, form: str, help: str) -> Any:
    """An option that starts the command in several processes."""
    return typer.Option(
        flag, metavar=form, help=help, rich_help_panel="Several processes", show_default=False
    )


_NPROC = _several("--nproc", "N|auto", "Run in N processes on this machine; auto: one a CUDA device.")
_NNODES = _several("--nnodes", "N|MIN:MAX", "Machines, each of which runs this command.")
_RESTARTS = _several(
    "--max-restarts",
    "N",
    "How often all processes are started anew, from the last checkpoint, after one has failed.",
)
_ENDPOINT = _several(
    "--rdzv-endpoint", "HOST:PORT", "Where several machines meet: one of them, and a free port."
)
_RDZV_ID = _several("--rdzv-id", "NAME", "Names the run there; the same on all machines.")

Config = Annotated[str, _CONFIG]
Words = Annotated[list[str] | None, _WORDS]
Traceback = Annotated[bool, _TRACEBACK]
Nproc = Annotated[str | None, _NPROC]
Nnodes = Annotated[str | None, _NNODES]
Restarts = Annotated[str | None, _RESTARTS]
Endpoint = Annotated[str | None, _ENDPOINT]
RdzvId = Annotated[str | None, _RDZV_ID]


app = typer.Typer(
    name="drivetrain",
    cls=Group,
    help="Trains PyTorch models; everything but the loop is a plugin.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
plugins = typer.Typer(
    cls=Group, help="What is installed, what it needs, and what is switched on.", no_args_is_help=True
)
app.add_typer(plugins, name="plugins")
app.add_typer(checkpoints, name="checkpoints")
app.command("push", cls=Command)(push_command)


def _version(wanted: bool) -> None:
    if wanted:
        from drivetrain import __version__

        typer.echo(f"drivetrain {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
    traceback: Traceback = False,
) -> None:
    """Trains PyTorch models; everything but the loop is a plugin."""
    STATE.traceback = traceback


@app.command(cls=Command, context_settings=_OPEN)
@clean_errors
def train(
    config: Config,
    words: Words = None,
    trace_hooks: Annotated[
        bool, typer.Option("--trace-hooks", help="Call every hook through pluggy, and print the calls.")
    ] = False,
    nproc: Nproc = None,
    nnodes: Nnodes = None,
    max_restarts: Restarts = None,
    rdzv_endpoint: Endpoint = None,
    rdzv_id: RdzvId = None,
    traceback: Traceback = False,
) -> None:
    """Train the model that CONFIG.toml describes."""
    several = (nproc, nnodes, max_restarts, rdzv_endpoint, rdzv_id)
    _start("train", [config, *(words or [])], traceback, several, trace_hooks=trace_hooks)


@app.command(cls=Command, context_settings=_OPEN)
@clean_errors
def evaluate(
    config: Config,
    words: Words = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Whose weights; by default those that training left in output_dir.")
    ] = None,
    nproc: Nproc = None,
    nnodes: Nnodes = None,
    max_restarts: Restarts = None,
    rdzv_endpoint: Endpoint = None,
    rdzv_id: RdzvId = None,
    traceback: Traceback = False,
) -> None:
    """Evaluate a trained model on the evaluation data."""
    several = (nproc, nnodes, max_restarts, rdzv_endpoint, rdzv_id)
    _start("evaluate", [config, *(words or [])], traceback, several, checkpoint=checkpoint)


@app.command(cls=Command, context_settings=_OPEN)
@clean_errors
def predict(
    config: Config,
    words: Words = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Whose weights; by default those that training left in output_dir.")
    ] = None,
    nproc: Nproc = None,
    nnodes: Nnodes = None,
    max_restarts: Restarts = None,
    rdzv_endpoint: Endpoint = None,
    rdzv_id: RdzvId = None,
    traceback: Traceback = False,
) -> None:
    """Predict on the test data, and write what comes out into output_dir."""
    several = (nproc, nnodes, max_restarts, rdzv_endpoint, rdzv_id)
    _start("predict", [config, *(words or [])], traceback, several, checkpoint=checkpoint)


def _start(
    job: str,
    words: list[str],
    traceback: bool,
    several: tuple[str | None, ...],
    *,
    checkpoint: Path | None = None,
    trace_hooks: bool = False,
) -> None:
    STATE.traceback = STATE.traceback or traceback
    if any(word is not None for word in several):
        from drivetrain.cli.launch import Launch, launch

        command = [job, *words]
        if checkpoint is not None:
            command += ["--checkpoint", str(checkpoint)]
        command += ["--trace-hooks"] * trace_hooks + ["--traceback"] * STATE.traceback
        raise typer.Exit(launch(command, Launch(*several)))
    from drivetrain.cli.jobs import run

    run(job, words, checkpoint=checkpoint, trace_hooks=trace_hooks)


@app.command(cls=Command, context_settings=_OPEN)
@clean_errors
def args(
    word: Annotated[str | None, typer.Argument(help="Part of a name or of what it does.")] = None,
) -> None:
    """Search the training arguments: type, default, owner, what each does."""
    from drivetrain.cli.args import show

    show(word)


@app.command(cls=Command)
@clean_errors
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders of runs, of drivetrain or of transformers.", show_default=False
        ),
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the report goes; its ending says the form. By default report.html.",
            show_default=False,
        ),
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="Write report.png, a picture of the plots.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Write report.csv, all rows of the log.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show the page in a browser on this machine, and follow the runs.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0 for any that is free.")] = 6070,
    traceback: Traceback = False,
) -> None:
    """Make a page of one run or several: how each went, and in what they differ."""
    STATE.traceback = STATE.traceback or traceback
    from drivetrain.cli import pages

    if serve:
        if output or png or csv:
            raise ConfigurationError(
                "--serve shows the page and writes no file: leave -o, --png and --csv out."
            )
        pages.serve(runs, port)
        return
    named = [Path("report.png")] * png + [Path("report.csv")] * csv
    pages.write(runs, [*(output or ()), *named] or [Path("report.html")])


@plugins.command("list", cls=Command)
@clean_errors
def list_plugins(
    probe: Annotated[
        bool, typer.Option("--probe", help="Import each plugin and ask whether it can work on this machine.")
    ] = False,
) -> None:
    """List the plugins that are installed."""
    from drivetrain.cli.plugins import show_list

    show_list(probe)


@plugins.command("show", cls=Command)
@clean_errors
def show_plugin(name: Annotated[str, typer.Argument(help="A plugin, as NAME or KIND:NAME.")]) -> None:
    """Show a plugin: options, arguments, hooks, order, conflicts."""
    from drivetrain.cli.plugins import show

    show(name)


@plugins.command("enable", cls=Command)
@clean_errors
def enable_plugin(name: Annotated[str, typer.Argument(help="A plugin that no argument chooses.")]) -> None:
    """Switch a plugin on for this project."""
    from drivetrain.cli.plugins import enable

    enable(name)


@plugins.command("disable", cls=Command)
@clean_errors
def disable_plugin(name: Annotated[str, typer.Argument(help="A plugin that is switched on.")]) -> None:
    """Switch a plugin off for this project."""
    from drivetrain.cli.plugins import disable

    disable(name)
