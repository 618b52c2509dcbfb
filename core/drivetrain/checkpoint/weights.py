"""Weights in a folder, where `from_pretrained` looks for them, and from a folder into a module."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import stat
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch

from drivetrain.checkpoint import tensors as tensor_files
from drivetrain.checkpoint.fitting import check_names, check_shape
from drivetrain.checkpoint.manifest import MANIFEST, FileRecord, check, is_safe_name, read_manifest
from drivetrain.checkpoint.serialize import pack, unpack
from drivetrain.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXACT = "weights.safetensors"
"""The whole state_dict, where what the model's own `save_pretrained` writes is not all of it as it is."""
EXTRA_STATE = "model_extra"
_EXTRA_FILES = (EXTRA_STATE + ".json", EXTRA_STATE + ".safetensors")
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_size(size: str | int) -> int:
    """Bytes of a size such as "5GB" or "200MiB" (GB is 10^9, GiB is 2^30).

    Raises:
        CheckpointError: it is no such size.
    """
    if isinstance(size, int) and size > 0:
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    count = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if count <= 0:
        raise CheckpointError(f"max_shard_size={size!r} is not a size; write it as '5GB' or '500MB'.")
    return count


def write_model(
    model: torch.nn.Module,
    folder: str,
    *,
    weights: Mapping[str, Any] | None = None,
    max_shard_size: str | int = "5GB",
    processing_class: Any = None,
) -> dict[str, FileRecord]:
    """Saves a model, by its own `save_pretrained` where it has one, and its tokenizer.

    Weights of an earlier save in the folder that the new ones do not replace are taken away: one file where there are
    shards now would be read in their place.

    Args:
        model: the bare model.
        folder: made where it is not there.
        weights: the state_dict to write, where it is not `model.state_dict()` (a sharded model's, gathered).
        max_shard_size: weights above this are written as several files with an index.
        processing_class: a tokenizer or the like; saved where it has `save_pretrained`.

    Returns:
        Size and checksum of the files that were hashed on their way.
    """
    os.makedirs(folder, exist_ok=True)
    before = _weights_there(folder)
    save_pretrained = getattr(model, "save_pretrained", None)
    records: dict[str, FileRecord] = {}
    if callable(save_pretrained):
        options: dict[str, Any] = {"safe_serialization": True, "max_shard_size": max_shard_size}
        if weights is not None:
            options["state_dict"] = dict(weights)  # a copy of the dictionary: some versions take entries out
        save_pretrained(folder, **_accepted(save_pretrained, options))
    else:
        records = write_weights(folder, model.state_dict() if weights is None else weights, max_shard_size)
    if before:
        _remove_older(folder, before)
    save_processing = getattr(processing_class, "save_pretrained", None)
    if callable(save_processing):
        save_processing(folder)
    return records


def _weights_there(folder: str) -> dict[str, set[str]]:
    """The files of the weights in a folder, by that which leads to them: itself, or an index."""
    there: dict[str, set[str]] = {}
    if os.path.exists(os.path.join(folder, WEIGHTS)):
        there[WEIGHTS] = {WEIGHTS}
    if os.path.exists(index := os.path.join(folder, INDEX)):
        there[INDEX] = {INDEX}
        with contextlib.suppress(CheckpointError):  # a broken one leads to nothing
            there[INDEX].update(_names_of_index(index))
    return there


def _remove_older(folder: str, before: Mapping[str, set[str]]) -> None:
    """Removes what led to weights before a save and does not after it.

    A save writes one file or an index with its shards, or neither, as that of an adapter, whose base may lie beside it.
    """
    now = _weights_there(folder)
    current = set().union(*(now[name] for name in now.keys() - before.keys() or now))
    for name in set().union(*before.values()) - current:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))


def write_weights(
    folder: str,
    weights: Mapping[str, Any],
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype | None = None,
) -> dict[str, FileRecord]:
    """Writes a state_dict as `model.safetensors`, or in shards with the index that transformers reads.

    Of tensors that are the same memory the first is written, and the header names the others. What is not a
    tensor (`get_extra_state`) goes to `model_extra.json`.

    Args:
        folder: where.
        weights: by name.
        max_shard_size: weights above this are written as several files.
        dtype: what floating-point weights are converted to, one at a time; None leaves them.

    Raises:
        CheckpointError: something in it cannot be stored.
    """
    whole, tied, other = split(weights)
    limit = parse_size(max_shard_size)
    records = write_other(folder, other)
    shards = _shards(whole, limit, dtype)
    metadata = metadata_of(tied)
    if len(shards) == 1:
        path = os.path.join(folder, WEIGHTS)
        records[WEIGHTS] = tensor_files.write_tensors(path, shards[0], metadata, dtype)
        return records
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        records[name] = tensor_files.write_tensors(os.path.join(folder, name), shard, metadata, dtype)
        weight_map.update(dict.fromkeys(shard, name))
    index = {"metadata": {"total_size": tensor_files.nbytes(whole, dtype)}, "weight_map": weight_map}
    Path(folder, INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return records


def metadata_of(tied: Mapping[str, str]) -> dict[str, str]:
    """What a file's header says beside its tensors: for transformers that they are torch's, for us what is tied."""
    return {"format": "pt", "tied": json.dumps(tied)} if tied else {"format": "pt"}


def write_exact(folder: str, weights: Mapping[str, Any]) -> dict[str, FileRecord]:
    """Writes the whole state_dict to `weights.safetensors`, beside what somebody else wrote."""
    whole, tied, other = split(weights)
    records = write_other(folder, other)
    records[EXACT] = tensor_files.write_tensors(os.path.join(folder, EXACT), whole, metadata_of(tied))
    return records


def holds(folder: str, weights: Mapping[str, Any]) -> bool:
    """Whether the weights' files in a folder have every name of a state_dict, with its dtype and shape.

    Reads headers alone. A tied name counts as there where one of its kin is.
    """
    whole, tied, other = split(weights)
    if other and not os.path.exists(os.path.join(folder, EXTRA_STATE + ".json")):
        return False
    try:
        written: dict[str, tuple[str, tuple[int, ...]]] = {}
        for path in weight_files(folder):
            if not path.endswith(".safetensors"):
                return False
            written.update(tensor_files.read_header(path))
    except CheckpointError:
        return False
    kin: dict[str, set[str]] = {name: {name} for name in whole}
    for name, kept in tied.items():
        kin[kept].add(name)
    for name, tensor in whole.items():
        expected = (
            (tensor_files.DTYPES[tensor.dtype][0], tuple(tensor.shape))
            if tensor.dtype in tensor_files.DTYPES
            else None
        )
        if not any(written.get(other_name) == expected for other_name in kin[name]):
            return False
    return True


def split(weights: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, Any]]:
    """A state_dict as (tensors of which no two are the same memory, tied name -> kept name, the rest)."""
    whole: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    other: dict[str, Any] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor) or value.dtype not in tensor_files.DTYPES:
            other[name] = value  # complex128, for one: kept as bytes
            continue
        key = _identity(value)
        kept = seen.get(key) if value.numel() else None
        if kept is None:
            seen[key] = name
            whole[name] = value
        else:
            tied[name] = kept
    return whole, tied, other


def weight_files(folder: str, sealed: Container[str] | None = None, *, as_saved: bool = False) -> list[str]:
    """The files that hold a folder's weights: safetensors before pickles.

    Args:
        folder: a checkpoint, or any folder with weights.
        sealed: the files that count, where there is a manifest; others are not looked at.
        as_saved: those that `save_model` wrote, also where the whole state_dict lies beside them.

    Raises:
        CheckpointError: there are none, or one of them lies elsewhere.
    """
    for single, index in ((EXACT, None), (WEIGHTS, INDEX), (PICKLED, PICKLED_INDEX))[as_saved:]:
        if _there(folder, single, sealed):
            return [path_inside(folder, single)]
        if index is not None and _there(folder, index, sealed):
            names = _names_of_index(path_inside(folder, index))
            missing = [name for name in names if not _there(folder, name, sealed)]
            if missing:
                raise CheckpointError(
                    f"The file {os.path.join(folder, missing[0])}, which {index} names, is missing."
                )
            return [path_inside(folder, name) for name in names]
    raise CheckpointError(f"{folder} holds no weights ({WEIGHTS}, {INDEX} or {PICKLED}).")


def read_weights(
    folder: str, sealed: Container[str] | None = None, *, as_saved: bool = False
) -> dict[str, Any]:
    """The weights of a checkpoint or of a plain Hugging Face folder, by name, on the CPU.

    Pickled weights (`pytorch_model.bin`) are read by torch's restricted reader, which makes tensors and
    nothing else.

    Args:
        folder: a checkpoint, or any folder with weights.
        sealed: the files that count, where there is a manifest; others are not looked at.
        as_saved: as for `weight_files`.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    weights: dict[str, Any] = {}
    for path in weight_files(folder, sealed, as_saved=as_saved):
        if path.endswith(".safetensors"):
            found, metadata = tensor_files.read_tensors_and_metadata(path)
            weights.update(found)
            for name, kept in _tied_of(metadata, path).items():
                if kept in weights:
                    weights[name] = weights[kept]
        else:
            weights.update(_unpickled(path))
    if _there(folder, EXTRA_STATE + ".json", sealed):
        extra = path_inside(folder, EXTRA_STATE + ".json")
        found = {}
        if _there(folder, EXTRA_STATE + ".safetensors", sealed):
            found = tensor_files.read_tensors(path_inside(folder, EXTRA_STATE + ".safetensors"))
        try:
            tree = json.loads(Path(extra).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(tensor_files.unreadable(extra, error)) from error
        values = unpack(tree, found, what="extra state of the model")
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise CheckpointError(
                tensor_files.unreadable(extra, ValueError("it does not hold values by name"))
            )
        weights.update(values)
    return weights


def load_weights(model: torch.nn.Module, folder: str, strict: bool = True) -> None:
    """Loads the weights of a folder into a module, in place.

    Args:
        model: a bare module.
        folder: a checkpoint, or any folder with `model.safetensors`, its shards, or `pytorch_model.bin`.
        strict: refuse missing and unexpected names.

    Raises:
        CheckpointError: the weights are not there, cannot be read, or do not fit; one sentence.
    """
    set_weights(model, read_checked_weights(folder), strict=strict, source=folder)


def read_checked_weights(folder: str, *, as_saved: bool = False) -> dict[str, Any]:
    """The weights of a folder, as `read_weights`; of a checkpoint, after a look at the checksums of their files.

    Raises:
        CheckpointError: there are none, they cannot be read, or are not those that were sealed.
    """
    sealed = None
    if os.path.lexists(os.path.join(folder, MANIFEST)):
        try:
            sealed = read_manifest(folder)
            paths = weight_files(folder, sealed, as_saved=as_saved)
            names = [os.path.relpath(path, folder).replace(os.sep, "/") for path in paths]
            for name in (*names, *(name for name in _EXTRA_FILES if name in sealed)):
                reason = check(folder, name, sealed[name])
                if reason is not None:
                    raise CheckpointError(reason)
        except (CheckpointError, OSError) as error:
            raise CheckpointError(f"{folder} is not a valid checkpoint: {error}.") from error
    return read_weights(folder, sealed, as_saved=as_saved)


def set_weights(
    model: torch.nn.Module, weights: Mapping[str, Any], *, strict: bool = True, source: str = "the checkpoint"
) -> None:
    """Copies weights into a module.

    Floating-point weights take the module's dtype; of tied names one is enough.

    Raises:
        CheckpointError: names, shapes or dtypes do not fit.
    """
    own = model.state_dict()
    weights = with_tied(own, weights)
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    if strict:
        check_names(type(model).__name__, missing, unexpected, source)
    for name, value in own.items():
        given = weights.get(name)
        if not isinstance(value, torch.Tensor) or given is None:
            continue
        check_shape(name, given, value.shape, type(model).__name__, source)
        if given.is_floating_point() != value.is_floating_point() or given.is_complex() != value.is_complex():
            raise CheckpointError(
                f"The weight {name!r} is {given.dtype} in {source} and {value.dtype} in this "
                f"{type(model).__name__}."
            )
    try:
        model.load_state_dict({name: weights[name] for name in weights if name in own}, strict=False)
    except Exception as error:  # also what a module's own set_extra_state makes of a strange value
        raise CheckpointError(
            f"The weights in {source} do not fit this {type(model).__name__} ({tensor_files.reason_of(error)}); build "
            "the model as it was when it was saved."
        ) from error


def with_tied(own: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """`weights`, and under each missing name of `own` the weight that is the same memory in `own`."""
    complete = dict(weights)
    present: dict[tuple[Any, ...], str] = {}
    for name, value in own.items():
        if isinstance(value, torch.Tensor) and value.numel() and name in weights:
            present.setdefault(_identity(value), name)
    for name, value in own.items():
        if name not in complete and isinstance(value, torch.Tensor) and _identity(value) in present:
            complete[name] = weights[present[_identity(value)]]
    return complete


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    if tensor.device.type == "meta" or tensor.layout != torch.strided:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _shards(
    whole: Mapping[str, torch.Tensor], limit: int, dtype: torch.dtype | None
) -> list[dict[str, torch.Tensor]]:
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in whole.items():
        size = tensor_files.nbytes({name: tensor}, dtype)
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    return shards


def write_other(folder: str, other: Mapping[str, Any]) -> dict[str, FileRecord]:
    """Writes what of a state_dict is not a tensor (`get_extra_state`) to `model_extra.json`; an earlier one goes."""
    for name in _EXTRA_FILES:
        if os.path.exists(path := os.path.join(folder, name)):
            os.remove(path)
    if not other:
        return {}
    found: dict[str, torch.Tensor] = {}
    tree = pack(dict(other), found, what="extra state of the model")
    Path(folder, EXTRA_STATE + ".json").write_text(json.dumps(tree) + "\n", encoding="utf-8")
    if not found:
        return {}
    name = EXTRA_STATE + ".safetensors"
    return {name: tensor_files.write_tensors(os.path.join(folder, name), found)}


def _accepted(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that a `save_pretrained` takes; some libraries' models have shorter signatures."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return options
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        # transformers 5 always writes safetensors, and passes what it does not know on to the Hub's client.
        if "safe_serialization" not in parameters and "save_original_format" in parameters:
            return {key: value for key, value in options.items() if key != "safe_serialization"}
        return options
    return {key: value for key, value in options.items() if key in parameters}


def _there(folder: str, name: str, sealed: Container[str] | None) -> bool:
    return name in sealed if sealed is not None else os.path.lexists(os.path.join(folder, name))


def _names_of_index(path: str) -> list[str]:
    try:
        names = sorted(set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(tensor_files.unreadable(path, error)) from error
    for name in names:
        if not isinstance(name, str) or not is_safe_name(name):
            raise CheckpointError(f"The index {path} names {name!r}, which does not lie in its folder.")
    return names


def path_inside(folder: str, name: str) -> str:
    """The path of a file of a folder, which may be a link only within it, or within its Hub cache."""
    path = os.path.join(folder, *name.split("/"))
    real = os.path.realpath(path)
    root = os.path.realpath(folder)
    roots = [root]
    above = os.path.dirname(root)
    if os.path.basename(above) == "snapshots":  # of the Hub's cache, whose snapshots are links to its blobs
        roots.append(os.path.join(os.path.dirname(above), "blobs"))
    if not any(real.startswith(allowed + os.sep) for allowed in roots):
        raise CheckpointError(
            f"The file {path} is a link to {real}, outside its folder, and is not followed."
        )
    try:
        plain = stat.S_ISREG(os.stat(real).st_mode)
    except OSError as error:
        raise CheckpointError(tensor_files.unreadable(path, error)) from error
    if not plain:  # opening a pipe waits for whoever writes into it
        raise CheckpointError(f"The file {path} is no plain file, and is not opened.")
    return path


def _tied_of(metadata: Mapping[str, str], path: str) -> dict[str, str]:
    if "tied" not in metadata:
        return {}
    try:
        return {str(name): str(kept) for name, kept in json.loads(metadata["tied"]).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(tensor_files.unreadable(path, error)) from error


def _unpickled(path: str) -> dict[str, torch.Tensor]:
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"The file {path} cannot be read without running code from it ({type(error).__name__}); "
            "convert it to safetensors where you trust it."
        ) from error
    whole = isinstance(content, dict) and all(
        isinstance(name, str) and _is_plain(value) for name, value in content.items()
    )
    if not whole:
        raise CheckpointError(f"The file {path} does not hold weights by name.")
    held = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in content.values()
    }
    claimed = max((value.numel() * value.element_size() for value in content.values()), default=0)
    if max(sum(held.values()), claimed) > os.path.getsize(path):
        raise CheckpointError(f"The file {path} claims more numbers than it holds, and is not read.")
    return dict(content)


def check_archive(path: str) -> None:
    """Refuses an archive of torch's that grows when it is read: torch writes its tensors as they are, each once.

    Raises:
        CheckpointError: it is one, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\3\4":
                return  # the form before torch 1.6
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(tensor_files.unreadable(path, error)) from error
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > os.path.getsize(path):
        raise CheckpointError(
            f"The file {path} holds compressed or overlapping data, which torch does not write, and is not read."
        )


def _is_plain(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    return value.device.type == "cpu" and not value.is_nested
