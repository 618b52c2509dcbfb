"""The checks of single values. Each settles a value's form, or raises `Wrong` with the sentence to show."""

import json
import math
import numbers
import operator
import os
import re
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from drivetrain.arguments.enums import (
    DebugOption,
    FSDPOption,
    OptimizerNames,
    SchedulerType,
    ShardedDDPOption,
)
from drivetrain.arguments.field import Wrong
from drivetrain.errors import did_you_mean
from drivetrain.secret import learn

EnumType = TypeVar("EnumType", bound=Enum)
# Those of the documents, and torch's own beside them.
_BACKENDS = ("nccl", "gloo", "mpi", "ccl", "hccl", "xccl", "ucc")


def settle(name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` in the form that argument `name` keeps.

    Args:
        hint: the argument's resolved annotation.
        metadata: what `drivetrain.arguments.field.argument` recorded.

    Raises:
        Wrong: the value cannot be.
    """
    if (check := metadata.get("check")) is not None:
        return check(name, value)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    enum = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)), None)
    if enum is not None:
        return member(name, value, enum)
    value = _SIMPLE[next(kind for kind in kinds if kind is not NoneType)](name, value)
    if (choices := metadata.get("choices")) is not None and value not in choices:
        raise Wrong(unknown(name, value, [str(choice) for choice in choices]))
    return within(name, value, metadata.get("least"), metadata.get("most"))


def unknown(name: str, value: Any, known: list[str]) -> str:
    """The sentence for a word that is not among `known`."""
    return f"Unknown {name} {str(value)!r}.{did_you_mean(str(value), known)} Choices: {', '.join(known)}."


def member(name: str, value: Any, enum: type[EnumType]) -> EnumType:
    """The member of `enum` that `value` spells; another library's enum counts by its value."""
    word = value.value if isinstance(value, Enum) else value
    try:
        return enum._value2member_map_[word]  # type: ignore[return-value]
    except (KeyError, TypeError):
        raise Wrong(unknown(name, word, [str(choice.value) for choice in enum])) from None


def boolean(name: str, value: Any) -> bool:
    """True or False; 0 and 1 count."""
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral) and value in (0, 1):
        return bool(value)
    raise Wrong(f"{name}={value!r} must be True or False.")


def integer(name: str, value: Any) -> int:
    """A whole number; a float without a fraction counts."""
    if not isinstance(value, bool):
        if isinstance(value, float) and value.is_integer():
            return int(value)
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise Wrong(f"{name}={value!r} must be a whole number{_unquoted(value)}.")


def number(name: str, value: Any) -> float:
    """An int stays an int, as scripts that print their arguments expect."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if math.isnan(value):
            raise Wrong(f"{name}=nan must be a number.")
        return value if isinstance(value, (int, float)) else float(value)
    raise Wrong(f"{name}={value!r} must be a number{_unquoted(value)}.")


def text(name: str, value: Any) -> str:
    """A string."""
    if isinstance(value, str):
        return value
    raise Wrong(f"{name}={value!r} must be a string.")


def _unquoted(value: Any) -> str:
    try:
        float(value)
    except (TypeError, ValueError):
        return ""
    return ", without quotes" if isinstance(value, str) else ""


_SIMPLE: dict[Any, Callable[[str, Any], Any]] = {bool: boolean, int: integer, float: number, str: text}


def within(name: str, value: Any, least: float | None, most: float | None) -> Any:
    """`value`, if it lies between the bounds."""
    if (least is None or value >= least) and (most is None or value <= most):
        return value
    bounds = [f"at least {least}"] * (least is not None) + [f"at most {most}"] * (most is not None)
    raise Wrong(f"{name}={value!r} must be {' and '.join(bounds)}.")


def backend(name: str, value: Any) -> str | None:
    """The name of a backend of torch's; one that somebody has registered with torch counts."""
    if value is None:
        return None
    word = text(name, value).lower()
    distributed = sys.modules.get("torch.distributed")
    registered = getattr(getattr(distributed, "Backend", None), "backend_list", [])
    if word not in (*_BACKENDS, *registered) or word == "undefined":  # torch's word for none
        raise Wrong(unknown(name, word, [*_BACKENDS]))
    return word


def folder(name: str, value: Any) -> str:
    """A folder's name, with the home folder spelled out."""
    if isinstance(value, (str, os.PathLike)) and (path := os.fspath(value)) and isinstance(path, str):
        return os.path.expanduser(path)
    raise Wrong(f"{name}={value!r} must be a folder's name.")


def token(name: str, value: Any) -> str | None:
    """A token. The mask that `to_dict` writes in its place is none."""
    if value is None or value == f"<{name.upper()}>":
        return None
    learn(str(value), name)
    return text(name, value)


def optional_folder(name: str, value: Any) -> str | None:
    """A folder's name, or none."""
    return None if value is None else folder(name, value)


def folder_or_true(name: str, value: Any) -> str | bool | None:
    """A folder, True, or nothing; a command line can only write True as a word."""
    if value in (None, False, True):
        return True if value else None
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return True if value.lower() == "true" else None
    return folder(name, value)


def _known_or_own(name: str, value: Any, enum: type[EnumType]) -> Any:
    """A documented name as its enum; any other name, and any class, as it is: the resolver knows them."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        if not value.strip():
            raise Wrong(f"{name}='' must be a name.")
        return enum._value2member_map_.get(value, value)
    if isinstance(value, type):
        return value
    raise Wrong(f"{name}={value!r} must be a name, a class, or 'module:Class'.")


def optimizer_name(name: str, value: Any) -> Any:
    """An optimizer: a name, a class, or `module:Class`."""
    return _known_or_own(name, value, OptimizerNames)


def scheduler_name(name: str, value: Any) -> Any:
    """A scheduler: a name, a class, or `module:Class`."""
    return _known_or_own(name, value, SchedulerType)


def report_names(name: str, value: Any) -> list[str]:
    """Names of loggers: `None` is `["all"]`, `"none"` is `[]`."""
    if value is None:
        return ["all"]
    names = optional_names(name, [value] if isinstance(value, (str, Enum)) else value) or []
    if "none" in names or "all" in names:
        if len(names) > 1:
            raise Wrong(f"{name}={names!r} must be 'all' or 'none' alone, or names of loggers without them.")
        return ["all"] if names == ["all"] else []
    return names


def optional_names(name: str, value: Any) -> list[str] | None:
    """A list of names, or none."""
    if value is None:
        return None
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        words = [word.value if isinstance(word, Enum) else word for word in value]
        if all(isinstance(word, str) for word in words):
            return [str(word) for word in words]
    raise Wrong(f"{name}={value!r} must be a list of names.")


def _words(name: str, value: Any, enum: type[EnumType], true: EnumType | None = None) -> list[EnumType]:
    """Members of `enum` from words in one string, from a list, or from True where `true` is its meaning."""
    if value is None or value is False:
        return []
    if value is True and true is not None:
        return [true]
    if isinstance(value, Enum):
        value = [value]
    elif isinstance(value, str):
        value = value.split()
    if not isinstance(value, (list, tuple)):
        raise Wrong(f"{name}={value!r} must be words, or a list of words.")
    parts = [part for word in value for part in (word.split() if type(word) is str else [word])]
    return [member(name, part, enum) for part in parts]


def debug_options(name: str, value: Any) -> list[DebugOption]:
    """What to watch for, as a list."""
    return _words(name, value, DebugOption)


def sharded_ddp_options(name: str, value: Any) -> list[ShardedDDPOption]:
    """FairScale's modes, as a list that makes sense together."""
    chosen = _words(name, value, ShardedDDPOption, true=ShardedDDPOption.SIMPLE)
    if chosen == [ShardedDDPOption.OFFLOAD]:
        raise Wrong(
            "sharded_ddp='offload' needs zero_dp_2 or zero_dp_3 beside it, as in 'zero_dp_2 offload'."
        )
    if ShardedDDPOption.SIMPLE in chosen and len(chosen) > 1:
        raise Wrong("sharded_ddp='simple' stands alone: leave out the other words, or leave out simple.")
    if ShardedDDPOption.ZERO_DP_2 in chosen and ShardedDDPOption.ZERO_DP_3 in chosen:
        raise Wrong("sharded_ddp has both zero_dp_2 and zero_dp_3: keep one of them.")
    return chosen


def fsdp_options(name: str, value: Any) -> list[FSDPOption]:
    """FSDP's modes, as a list that makes sense together."""
    chosen = _words(name, value, FSDPOption, true=FSDPOption.FULL_SHARD)
    modes = [word for word in chosen if word not in (FSDPOption.OFFLOAD, FSDPOption.AUTO_WRAP)]
    if len(set(modes)) > 1:
        raise Wrong(f"fsdp has both {modes[0]} and {modes[1]}: keep one of them.")
    if chosen == [FSDPOption.OFFLOAD]:
        raise Wrong("fsdp='offload' needs full_shard or shard_grad_op beside it, as in 'full_shard offload'.")
    return chosen


def fsdp_config(name: str, value: Any) -> dict[str, Any]:
    """FSDP's options as a dict, whatever form they came in; keys lose the prefix `fsdp_`."""
    given = value if isinstance(value, dict) else _json_file(name, value) if value is not None else {}
    config = {key.removeprefix("fsdp_"): entry for key, entry in given.items()}
    if isinstance(classes := config.get("transformer_layer_cls_to_wrap"), str):
        config["transformer_layer_cls_to_wrap"] = [classes]
    return {"min_num_params": 0, "xla": False, "xla_fsdp_grad_ckpt": False} | config


def deepspeed_config(name: str, value: Any) -> str | dict[str, Any] | None:
    """DeepSpeed's configuration is left as it is; its plugin reads it. A file must be there."""
    if not value:
        return None
    if isinstance(value, dict):
        return value
    if isinstance(value, (str, os.PathLike)) and isinstance(path := os.fspath(value), str):
        if path.lstrip().startswith("{"):
            return a_dict(name, path)
        if path.endswith(".json") and not os.path.isfile(path):
            raise Wrong(f"{name}={path!r} is no file here: give the path of a JSON file, or a dict.")
        return path
    raise Wrong(f"{name}={value!r} must be the name of a JSON file, or a dict.")


def _json_file(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return a_dict(name, value) or {}
    try:
        with open(value, encoding="utf-8") as file:
            content = json.load(file)
    except TypeError:
        raise Wrong(f"{name}={value!r} must be the name of a JSON file, or a dict.") from None
    except OSError:
        raise Wrong(
            f"{name}={str(value)!r} is no file here: give the path of a JSON file, or a dict."
        ) from None
    except ValueError as error:
        raise Wrong(f"{name}={str(value)!r} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise Wrong(f"{name}={str(value)!r} must hold a JSON object.")
    return content


def _from_json(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise Wrong(f"{name}={value!r} is not valid JSON: {error}.") from None


def a_dict(name: str, value: Any) -> dict[str, Any] | None:
    """A dict, or a JSON object in a string."""
    content = _from_json(name, value)
    if content is None or isinstance(content, dict):
        return content
    raise Wrong(f"{name}={value!r} must be a dict.")


def a_list(name: str, value: Any) -> list[Any] | None:
    """A list, or a JSON array in a string."""
    content = _from_json(name, value)
    if content is None:
        return None
    if isinstance(content, (list, tuple)):
        return list(content)
    raise Wrong(f"{name}={value!r} must be a list.")


def plugin_options(name: str, value: Any) -> dict[str, Any] | list[Any] | None:
    """Options by plugin name, each a dict, and under `enable` names to switch on; or a list of plugins."""
    content = _from_json(name, value)
    if isinstance(content, tuple):
        return list(content)
    if isinstance(content, dict):
        enabled = content.get("enable", [])
        if not isinstance(enabled, (list, tuple)) or not all(isinstance(word, str) for word in enabled):
            raise Wrong(f"{name}['enable'] must be a list of plugins' names, not {enabled!r}.")
        for plugin, options in content.items():
            if plugin != "enable" and not isinstance(options, dict):
                raise Wrong(f"{name}[{plugin!r}] must be a dict of that plugin's options, not {options!r}.")
        return content
    if content is None or isinstance(content, list):
        return content
    raise Wrong(f"{name}={value!r} must be a dict of options by plugin name, or a list of plugins.")


def size(name: str, value: Any) -> str:
    """A number of bytes with a unit, such as 5GB; a bare number is bytes."""
    word = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(word, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", word.strip(), re.IGNORECASE)
        if found and float(found[1]) * (1 if found[2] is None else 1000) >= 1:
            return word.strip()
    raise Wrong(f"{name}={value!r} must be a size such as '5GB' or '500MB'.")
