"""Checkpoints: whole or not there, exact, without pickle, keyed by parameter name."""

from drivetrain.checkpoint.canonical import (
    name_parameters,
    optimizer_state_in,
    optimizer_state_out,
    set_gradients,
)
from drivetrain.checkpoint.contents import CheckpointContents
from drivetrain.checkpoint.files import recover, replace_tree, sweep
from drivetrain.checkpoint.fitting import check_names, check_shape
from drivetrain.checkpoint.manifest import validate
from drivetrain.checkpoint.plain import plain
from drivetrain.checkpoint.randomness import RandomState
from drivetrain.checkpoint.reader import load_checkpoint, read_run
from drivetrain.checkpoint.rotation import checkpoints, last_checkpoint, rotate
from drivetrain.checkpoint.serialize import pack, unpack
from drivetrain.checkpoint.together import Exchange, alike, alone
from drivetrain.checkpoint.transformers_files import written_by_transformers
from drivetrain.checkpoint.weights import (
    load_weights,
    parse_size,
    read_checked_weights,
    read_weights,
    set_weights,
    write_model,
    write_weights,
)
from drivetrain.checkpoint.writer import save_checkpoint, save_spread

__all__ = [
    "CheckpointContents",
    "Exchange",
    "RandomState",
    "alike",
    "alone",
    "check_names",
    "check_shape",
    "checkpoints",
    "last_checkpoint",
    "load_checkpoint",
    "load_weights",
    "name_parameters",
    "optimizer_state_in",
    "optimizer_state_out",
    "pack",
    "parse_size",
    "plain",
    "read_checked_weights",
    "read_run",
    "read_weights",
    "recover",
    "replace_tree",
    "rotate",
    "save_checkpoint",
    "save_spread",
    "set_gradients",
    "set_weights",
    "sweep",
    "unpack",
    "validate",
    "write_model",
    "write_weights",
    "written_by_transformers",
]
