"""What a user names by class, by function, or by "module:Class"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivetrain.errors import ConfigurationError
from drivetrain.plugin import import_string


def callable_of(given: Any, argument: str) -> tuple[Callable[..., Any], str]:
    """What was named, and its name for messages.

    Args:
        given: a class or function, or its import string.
        argument: the argument that named it, for messages.

    Raises:
        ConfigurationError: it cannot be imported, or cannot be called.
    """
    if not isinstance(given, str):
        if not callable(given):
            raise ConfigurationError(
                f"{argument} must be a name, a class, or an import string 'module:Class', not {given!r}."
            )
        return given, getattr(given, "__name__", repr(given))
    try:
        found = import_string(given)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{argument}={given!r} cannot be imported: {error}.") from error
    if not callable(found):
        raise ConfigurationError(f"{argument}={given!r} names {found!r}, which cannot be called.")
    return found, given
