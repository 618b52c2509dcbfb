"""Data: collating rows, their order, loading them, and the position in them."""

from drivetrain.data.carrying import carry_over
from drivetrain.data.collate import DataCollatorWithPadding, RemoveColumnsCollator, default_data_collator
from drivetrain.data.columns import is_table, signature_columns
from drivetrain.data.dealing import Split
from drivetrain.data.device import find_batch_size, to_device
from drivetrain.data.epoch import EpochIterator, EvaluationIterator
from drivetrain.data.loader import make_dataloader, seed_worker, stand_apart
from drivetrain.data.position import Position
from drivetrain.data.samplers import (
    LengthGroupedSampler,
    SeededRandomSampler,
    eval_sampler,
    has_length,
    train_sampler,
)
from drivetrain.data.source import batches_of, unit_of
from drivetrain.data.workers import end_workers

__all__ = [
    "DataCollatorWithPadding",
    "EpochIterator",
    "EvaluationIterator",
    "LengthGroupedSampler",
    "Position",
    "RemoveColumnsCollator",
    "SeededRandomSampler",
    "Split",
    "batches_of",
    "carry_over",
    "default_data_collator",
    "end_workers",
    "eval_sampler",
    "find_batch_size",
    "has_length",
    "is_table",
    "make_dataloader",
    "seed_worker",
    "signature_columns",
    "stand_apart",
    "to_device",
    "train_sampler",
    "unit_of",
]
