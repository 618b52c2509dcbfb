"""What the strategy `xla` says about itself; light."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from drivetrain.plugin import Claim, PluginInfo


def _requirement() -> str:
    """torch_xla goes with the torch of its own version alone, and has not had a release for every torch."""
    try:
        major, minor = version("torch").split(".")[:2]
    except (PackageNotFoundError, ValueError):
        return "torch_xla"
    return f"torch_xla=={major}.{minor}.*"


def _chosen(args: Any) -> Claim | None:
    return Claim(f"tpu_num_cores={args.tpu_num_cores}") if args.tpu_num_cores is not None else None


def _probe(args: Any) -> Iterator[str]:
    reason = "tpu_num_cores" if args.tpu_num_cores is not None else "strategy='xla'"
    try:
        from torch_xla.core import xla_model

        devices = xla_model.get_xla_supported_devices()
    except Exception as error:  # torch_xla fails in many ways where there is no device
        yield (
            "Strategy 'xla' finds no XLA device on this machine "
            f"({type(error).__name__}: {' '.join(str(error).split())}): leave {reason} out to train on what there is."
        )
        return
    if not devices:
        yield (
            "Strategy 'xla' needs an XLA device, and torch_xla finds none on this machine: "
            f"leave {reason} out to train on what there is."
        )
        return
    yield (
        f"Strategy 'xla' cannot train yet, since it has never been run on an XLA device, though torch_xla finds "
        f"{len(devices)} here: leave {reason} out, or bring a strategy for them as a plugin of your own."
    )


XLA = PluginInfo(
    name="xla",
    kind="strategy",
    summary="XLA devices (TPU): not there yet; says what is missing.",
    implementation="drivetrain_plugins.strategy.xla.plugin:XLAPlugin",
    arguments=("tpu_num_cores",),
    requires=(_requirement(),),
    chosen_by=_chosen,
    probe=_probe,
)
