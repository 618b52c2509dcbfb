"""DeepSpeed's configuration as a nested dict: reading it, and reaching into it by dotted names."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from drivetrain.errors import ConfigurationError

AUTO = "auto"
DEFAULT: dict[str, Any] = {"zero_optimization": {"stage": 2}}
"""What `strategy="deepspeed"` means without a configuration."""


class Configuration:
    """A configuration that may be filled in; what it was read from does not change.

    Args:
        content: DeepSpeed's options.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = copy.deepcopy(content)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of "block.key", or the default where it is not there."""
        found: Any = self.content
        for part in name.split("."):
            if not isinstance(found, dict) or part not in found:
                return default
            found = found[part]
        return found

    def set(self, name: str, value: Any) -> None:
        """Writes "block.key", making the block."""
        *blocks, key = name.split(".")
        found = self.content
        for block in blocks:
            found = found.setdefault(block, {})
        found[key] = value

    def remove(self, name: str) -> Any:
        """Takes "block.key" out, and returns it."""
        block, _, key = name.rpartition(".")
        found = self.get(block) if block else self.content
        return found.pop(key, None) if isinstance(found, dict) else None

    def on(self, block: str) -> bool:
        """Whether `block.enabled` is true, and not merely "auto"."""
        return self.get(f"{block}.enabled") is True

    @property
    def stage(self) -> int:
        """The stage of ZeRO."""
        return int(self.get("zero_optimization.stage", 0) or 0)

    @property
    def half(self) -> str | None:
        """The engine's own half precision where the configuration asks for it: "bf16" or "fp16"."""
        return next((word for word in ("bf16", "fp16") if self.on(word)), None)

    def offloads(self, what: str) -> bool:
        """Whether "optimizer" or "param" is kept in host memory."""
        return self.get(f"zero_optimization.offload_{what}.device", "none") not in (None, "none")

    def autos(self) -> Iterator[str]:
        """Dotted names of what is "auto" still."""
        yield from _autos(self.content, "")


def _autos(content: Any, prefix: str) -> Iterator[str]:
    for key, value in content.items():
        if value == AUTO:
            yield f"{prefix}{key}"
        elif isinstance(value, dict):
            yield from _autos(value, f"{prefix}{key}.")


def read(given: Any) -> Configuration:
    """The configuration that `args.deepspeed` gives.

    Args:
        given: a file's name, a dict, or nothing for the default.

    Raises:
        ConfigurationError: the file cannot be read, or holds something else.
    """
    if not given:
        return Configuration(DEFAULT)
    content = given if isinstance(given, dict) else _from_file(given)
    if not isinstance(content, dict):
        raise ConfigurationError(f"deepspeed={given!r} must hold a JSON object.")
    content = copy.deepcopy(content)
    if "bfloat16" in content:  # an older name
        content.setdefault("bf16", content["bfloat16"])
        del content["bfloat16"]
    problems = [
        f"deepspeed: {key!r} must be a dict, not {content[key]!r}."
        for key in ("zero_optimization", "optimizer", "scheduler", "bf16", "fp16")
        if not isinstance(content.get(key, {}), dict)
    ]
    problems += [
        f"deepspeed: {key!r} must name its 'type'."
        for key in ("optimizer", "scheduler")
        if isinstance(content.get(key), dict) and not isinstance(content[key].get("type"), str)
    ]
    stage = content.get("zero_optimization", {}).get("stage", 0) if not problems else 0
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        problems.append(f"deepspeed: zero_optimization.stage must be 0, 1, 2 or 3, not {stage!r}.")
    if problems:
        raise ConfigurationError(problems)
    return Configuration(content)


def _from_file(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError:
        raise ConfigurationError(
            f"deepspeed={path!r} is no file here: give the path of a JSON file, or a dict."
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"deepspeed={path!r} is not valid JSON: {error}.") from None
