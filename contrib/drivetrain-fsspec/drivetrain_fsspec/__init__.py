"""A hub that is a folder or a bucket, by fsspec: what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from drivetrain import Claim, PluginInfo


@dataclass(frozen=True)
class FsspecOptions:
    """The options of the hub.

    Attributes:
        storage_options: for the file system, by its own names; secrets belong into the environment.
        block_size: bytes that are read and sent at a time.
    """

    storage_options: Mapping[str, Any] = field(default_factory=dict)
    block_size: int = 8 << 20

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {self.block_size}")


def _wanted(args: Any) -> Claim | None:
    if args.push_to_hub and "://" in (args.hub_model_id or ""):
        return Claim(f"hub_model_id={args.hub_model_id!r}")
    return None


def _problems(args: Any) -> Iterator[str]:
    import fsspec

    protocol = args.hub_model_id.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:  # it names the package that is missing
        yield f"hub_model_id={args.hub_model_id!r}: fsspec cannot reach {protocol}:// here ({error})."
    if args.hub_private_repo:
        yield "hub_private_repo=True: who may read a folder or a bucket is set there; leave it out."


FSSPEC = PluginInfo(
    name="fsspec",
    kind="hub",
    summary="Uploads models, cards and checkpoints to a folder or a bucket, by fsspec.",
    implementation="drivetrain_fsspec.hub:Fsspec",
    options=FsspecOptions,
    arguments=("push_to_hub", "hub_model_id", "hub_strategy", "hub_always_push", "hub_patience"),
    requires=("fsspec>=2023.6",),
    distribution="drivetrain-fsspec",
    chosen_by=_wanted,
    probe=_problems,
)
