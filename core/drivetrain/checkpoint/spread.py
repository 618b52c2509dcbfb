"""Checkpoints that every rank writes a part of: whole tensors, but each by one rank, so that no rank holds them all.

    model-00001-of-0000W.safetensors    weights of rank 0's parameters; then those of the other ranks, and
    model.safetensors.index.json        the index that transformers reads
    optimizer-R.json, .safetensors      optimizer state of rank R's parameters, R > 0; rank 0's is in optimizer.json
    gradients-R.safetensors             likewise

Whoever reads the checkpoint finds the same names and tensors as in one that rank 0 wrote alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container
from typing import Any

from drivetrain.checkpoint import tensors as tensor_files
from drivetrain.checkpoint.contents import GRADIENTS, OPTIMIZER, write_json, write_packed
from drivetrain.checkpoint.manifest import FileRecord, sync_file
from drivetrain.checkpoint.weights import INDEX, metadata_of, split, write_other
from drivetrain.slots import TrainState

_RECORDS = "part-{rank}.json"


def weights_name(rank: int, world_size: int) -> str:
    """The file of a rank's weights."""
    return f"model-{rank + 1:05d}-of-{world_size:05d}.safetensors"


def optimizer_stem(rank: int) -> str:
    """The files of a rank's optimizer state, without their endings."""
    return OPTIMIZER if rank == 0 else f"{OPTIMIZER}-{rank}"


def gradients_name(rank: int) -> str:
    """The file of a rank's gradients."""
    return GRADIENTS if rank == 0 else GRADIENTS.replace(".", f"-{rank}.", 1)


def write_weights_part(folder: str, state: TrainState, rank: int, world_size: int) -> dict[str, FileRecord]:
    """Writes the weights that this rank holds. Extra state that is no tensor is rank 0's to write."""
    whole, tied, other = split(state.weights)
    name = weights_name(rank, world_size)
    records = write_other(folder, other) if rank == 0 else {}
    records[name] = tensor_files.write_tensors(os.path.join(folder, name), whole, metadata_of(tied))
    return records


def write_part(folder: str, state: TrainState, rank: int, world_size: int) -> None:
    """Writes all that a rank other than 0 holds, and what rank 0 must know of it for the manifest."""
    records = write_weights_part(folder, state, rank, world_size)
    records |= write_packed(
        folder, optimizer_stem(rank), {"state": (state.optimizer, "", "the optimizer's state")}
    )
    if state.gradients:
        name = gradients_name(rank)
        records[name] = tensor_files.write_tensors(os.path.join(folder, name), state.gradients)
    for name in (*records, optimizer_stem(rank) + ".json"):
        # By the host that wrote it: what it still holds of a file on a network, rank 0 cannot sync.
        sync_file(os.path.join(folder, name))
    told = {name: [record.size, record.digest] for name, record in records.items()}
    write_json(folder, _RECORDS.format(rank=rank), told)


def join_parts(folder: str, world_size: int) -> dict[str, FileRecord]:
    """Rank 0, when all parts are written: the index of the weights, and what the manifest needs."""
    records: dict[str, FileRecord] = {}
    for rank in range(1, world_size):
        path = os.path.join(folder, _RECORDS.format(rank=rank))
        with open(path, encoding="utf-8") as file:
            told: dict[str, Any] = json.load(file)
        records |= {name: FileRecord(size, digest) for name, (size, digest) in told.items()}
        os.unlink(path)
    weight_map: dict[str, str] = {}
    total = 0
    for rank in range(world_size):
        name = weights_name(rank, world_size)
        path = os.path.join(folder, name)
        weight_map.update(dict.fromkeys(tensor_files.read_header(path), name))
        total += tensor_files.data_bytes(path)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    with open(os.path.join(folder, INDEX), "w", encoding="utf-8") as file:
        file.write(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return records


def ranks_of(files: Container[str]) -> list[int]:
    """The ranks other than 0 that wrote a part of a checkpoint."""
    found: list[int] = []
    while optimizer_stem(len(found) + 1) + ".json" in files:
        found.append(len(found) + 1)
    return found
