"""Configuration as plain JSON for people to read, without secrets."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
from collections.abc import Mapping
from typing import Any

from drivetrain.secret import is_secret_name, struck


def plain(value: Any, name: str = "") -> Any:
    """`value` lowered to JSON.

    Enums become their values, dataclasses objects, paths, classes, NaN and infinities strings. What is named
    like a secret (`hub_token`, `api_key`, ...) becomes null, and a secret inside of a string is struck out
    (`drivetrain.secret`).
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if is_secret_name(name) and not isinstance(value, (bool, int, float)):
        return None
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, str):
        return struck(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {struck(str(key)): plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return plain(os.fspath(value))
    if callable(value):
        return (
            f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', type(value).__qualname__)}"
        )
    item = getattr(value, "item", None)  # numpy's numbers
    if item is not None and getattr(value, "ndim", 1) == 0:
        return plain(value.item())
    return struck(str(value))
