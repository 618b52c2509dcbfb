"""Commands and groups whose `--help`, when it is not given, costs nothing.

Typer reads the value of every option through pydantic, which takes as long to import as typer itself; flags
that are booleans already are spared, and the built-in `--help` is None until it is given.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


def _false_until_given(option: Any) -> Any:
    if option is not None:
        option.default = False
    return option


class Command(TyperCommand):
    """A command."""

    def get_help_option(self, ctx: Any) -> Any:
        """The built-in option, False until it is given."""
        return _false_until_given(super().get_help_option(ctx))


class Group(TyperGroup):
    """A group of commands."""

    def get_help_option(self, ctx: Any) -> Any:
        """The built-in option, False until it is given."""
        return _false_until_given(super().get_help_option(ctx))
