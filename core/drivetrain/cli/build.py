"""Builds the model and the data that a config names.

Vendors (transformers, datasets) are imported by the name that the config gives, and only then.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivetrain.cli.config import SPLITS, Config, check_arguments, config_name
from drivetrain.errors import ConfigurationError, did_you_mean

PARTS = {
    "train": "train_dataset",
    "eval": "eval_dataset",
    "test": None,
    "collate": "data_collator",
    "compute_metrics": "compute_metrics",
    "tokenizer": "tokenizer",
    "preprocess_logits_for_metrics": "preprocess_logits_for_metrics",
    "callbacks": "callbacks",
}
"""What a data factory may return, and the parameter of `Trainer` that takes it."""

# The reader of `datasets.Dataset` for each ending.
READERS = {
    ".jsonl": "from_json",
    ".json": "from_json",
    ".csv": "from_csv",
    ".parquet": "from_parquet",
    ".txt": "from_text",
    ".text": "from_text",
}


@dataclass(slots=True)
class Callables:
    """What a config names, found and checked but not yet called."""

    model: Callable[[], Any]
    data: Callable[[], Mapping[str, Any]]
    after: Callable[[Any], Any] | None = None


@dataclass(slots=True)
class Data:
    """The data of a run: keyword arguments of `Trainer`, and the rows to predict."""

    test: Any = None
    parameters: dict[str, Any] = field(default_factory=dict)


def find(config: Config) -> Callables:
    """Imports what the config names. The config's folder comes first on the path.

    Raises:
        ConfigurationError: every name that is not there and every argument that does not fit.
    """
    folder = str(config.folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    problems: list[str] = []
    model = (
        _transformers(config, problems)
        if "transformers" in config.model
        else _call(config, "model", problems)
    )
    data = _call(config, "data", problems) if "factory" in config.data else _files(config, problems)
    after = None
    if config.after:
        called = _named(config, ("after", "call"), problems)
        arguments = {key: value for key, value in config.after.items() if key != "call"}
        if called is not None:

            def after(trainer: Any) -> Any:
                return called(trainer, **arguments)

    if problems:
        raise ConfigurationError(problems)
    assert model is not None
    assert data is not None
    return Callables(model, data, after)


def sort_data(config: Config, parts: Any) -> Data:
    """Tells apart what a data factory returned.

    Raises:
        ConfigurationError: it returned something else than a dict of known keys.
    """
    where = config.where("data", "factory")
    if not isinstance(parts, Mapping):
        raise ConfigurationError(
            f"{where}: '{config.data.get('factory')}' returned {type(parts).__name__}, not a dict with the keys "
            f"{', '.join(PARTS)}."
        )
    unknown = [key for key in parts if key not in PARTS]
    if unknown:
        raise ConfigurationError(
            [
                f"{where}: '{config.data.get('factory')}' returned the unknown key '{key}'."
                f"{did_you_mean(str(key), PARTS)} Known: {', '.join(PARTS)}."
                for key in unknown
            ]
        )
    named = {
        parameter: parts[key]
        for key, parameter in PARTS.items()
        if parameter is not None and parts.get(key) is not None
    }
    return Data(parts.get("test"), named)


def _call(config: Config, section: str, problems: list[str]) -> Callable[[], Any] | None:
    keys = (section, "factory")
    function = _named(config, keys, problems)
    if function is None:
        return None
    arguments = {key: value for key, value in getattr(config, section).items() if key != "factory"}
    wrong = check_arguments(config, keys, function, arguments)
    problems += wrong
    return None if wrong else lambda: function(**arguments)


def _named(config: Config, keys: tuple[str, str], problems: list[str]) -> Callable[..., Any] | None:
    """The callable that an import string names, or None after a word in `problems`."""
    name = config_name(config, keys)
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        problems.append(config.problem(keys, f"'{name}' is no import string; write \"module:callable\"."))
        return None
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            beside = [path.stem for path in config.folder.glob("*.py")]
            sentence = (
                f"there is no module '{module_name}', neither beside the config nor installed."
                f"{did_you_mean(module_name, beside)}"
            )
        else:
            sentence = (
                f"'{module_name}' imports '{missing}', which is not installed. Run: pip install {missing}"
            )
        problems.append(config.problem(keys, sentence))
        return None
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [
                key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
            ]
            problems.append(
                config.problem(
                    keys, f"'{module_name}' has no '{attribute}'.{did_you_mean(attribute, public)}"
                )
            )
            return None
        found = getattr(found, part)
    if not callable(found):
        problems.append(
            config.problem(keys, f"'{name}' is a {type(found).__name__}, which cannot be called.")
        )
        return None
    return found  # type: ignore[no-any-return]  # callable() narrows it to a callable of anything


def _vendor(config: Config, keys: tuple[str, str], name: str, extra: str, problems: list[str]) -> Any:
    if importlib.util.find_spec(name) is None:
        problems.append(
            config.problem(
                keys, f"this needs {name}, which is not installed. Run: pip install 'drivetrain[{extra}]'"
            )
        )
        return None
    return importlib.import_module(name)


def _path(config: Config, keys: tuple[str, str], problems: list[str], folder: bool = False) -> Path | None:
    """The file or folder that a key names, relative to the config's folder."""
    given = getattr(config, keys[0])[keys[1]]
    if not isinstance(given, str):
        problems.append(config.problem(keys, f"this must be the path of a {'folder' if folder else 'file'}."))
        return None
    path = config.folder / given
    if path.is_dir() if folder else path.is_file():
        return path
    siblings = [found.name for found in path.parent.iterdir()] if path.parent.is_dir() else []
    problems.append(
        config.problem(
            keys,
            f"there is no {'folder' if folder else 'file'} {given} (paths are relative to the config's folder)."
            f"{did_you_mean(path.name, siblings)}",
        )
    )
    return None


def _transformers(config: Config, problems: list[str]) -> Callable[[], Any] | None:
    keys = ("model", "transformers")
    folder = _path(config, keys, problems, folder=True)
    transformers = _vendor(config, keys, "transformers", "transformers", problems)
    if transformers is None:
        return None
    name = config.model.get("auto", "AutoModel")
    auto = getattr(transformers, name, None) if isinstance(name, str) else None
    if auto is None or not hasattr(auto, "from_pretrained"):
        autos = [found for found in dir(transformers) if found.startswith("AutoModel")]
        problems.append(
            config.problem(
                ("model", "auto"), f"transformers has no class '{name}'.{did_you_mean(str(name), autos)}"
            )
        )
        return None
    options = {key: value for key, value in config.model.items() if key not in ("transformers", "auto")}
    return lambda: auto.from_pretrained(folder, **options)


def _files(config: Config, problems: list[str]) -> Callable[[], Mapping[str, Any]] | None:
    before = len(problems)
    splits = [split for split in SPLITS if split in config.data]
    datasets = _vendor(config, ("data", splits[0]), "datasets", "data", problems)
    paths = {split: _path(config, ("data", split), problems) for split in splits}
    for split, path in paths.items():
        if path is not None and path.suffix not in READERS:
            problems.append(
                config.problem(
                    ("data", split),
                    f"files that end in '{path.suffix}' cannot be read; these can: {', '.join(READERS)}.",
                )
            )
    tokenizer = None
    if "tokenizer" in config.data or "text_column" in config.data:
        tokenizer = _tokenizer(config, problems)
    elif "max_length" in config.data:
        problems.append(
            config.problem(
                ("data", "max_length"), "this is the length of tokenized rows; set 'text_column' too."
            )
        )
    if len(problems) > before:
        return None

    def read() -> dict[str, Any]:
        read_by = {
            split: getattr(datasets.Dataset, READERS[path.suffix])(str(path))
            for split, path in paths.items()
            if path is not None
        }
        if tokenizer is None:
            return read_by
        return {**_tokenized(config, read_by, tokenizer), "tokenizer": tokenizer}

    return read


def _tokenizer(config: Config, problems: list[str]) -> Any:
    keys = ("data", "tokenizer") if "tokenizer" in config.data else ("model", "transformers")
    if keys[1] not in getattr(config, keys[0]):
        problems.append(
            config.problem(
                ("data", "text_column"), "rows of text need a tokenizer; set 'tokenizer' to its folder."
            )
        )
        return None
    folder = _path(config, keys, problems, folder=True)
    transformers = _vendor(config, keys, "transformers", "transformers", problems)
    if folder is None or transformers is None:
        return None
    return transformers.AutoTokenizer.from_pretrained(folder)


def _tokenized(config: Config, read: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    column = config.data.get("text_column", "text")
    length = config.data.get("max_length")
    made: dict[str, Any] = {}
    for split, rows in read.items():
        if column not in rows.column_names:
            raise ConfigurationError(
                f"{config.where('data', split)}: {config.data[split]} has no column '{column}'."
                f"{did_you_mean(column, rows.column_names)} It has: {', '.join(rows.column_names)}. Set text_column."
            )
        made[split] = rows.map(
            lambda batch: tokenizer(batch[column], truncation=True, max_length=length),
            batched=True,
            remove_columns=[column],
        )
    return made
