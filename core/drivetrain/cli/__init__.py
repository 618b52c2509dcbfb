"""The command line. `main` is the console script; nothing here imports torch before a run begins."""

from __future__ import annotations


def main() -> None:
    """Runs `drivetrain` with the arguments of the process."""
    from drivetrain.cli.app import app

    app()
