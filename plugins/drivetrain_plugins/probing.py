"""A probe for plugins whose options stand in an argument of their own. Light, as the infos are that use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivetrain.errors import ConfigurationError
from drivetrain.plugin import import_string


def options_probe(name: str, options: str, reader: str) -> Callable[[Any], tuple[str, ...]]:
    """A probe that reads the argument as the plugin will, and says what is wrong with it.

    Args:
        name: the plugin's name.
        options: import string of its options' dataclass.
        reader: import string of `(default options, args, name) -> options`, which raises ConfigurationError.
    """

    def probe(args: Any) -> tuple[str, ...]:
        try:
            import_string(reader)(import_string(options)(), args, name)
        except ConfigurationError as error:
            return error.problems
        return ()

    return probe
