"""Hubs that come with drivetrain: what they say of themselves."""

from __future__ import annotations

from typing import Any

from drivetrain.plugin import Claim, PluginInfo, Weight


def _wanted(args: Any) -> Claim | None:
    # A hub that is asked for by its own kind of address, or its options, comes before.
    return Claim("push_to_hub=True", Weight.DEFAULT) if args.push_to_hub else None


def _check(args: Any) -> str | None:
    name = args.hub_model_id
    if isinstance(name, str) and "://" in name:
        return (
            f"hub_model_id={name!r} is an address, which no installed hub takes: install one that does, or write "
            "OWNER/NAME."
        )
    return None


HUGGINGFACE = PluginInfo(
    name="huggingface",
    kind="hub",
    summary="Uploads models, cards and checkpoints to the Hugging Face Hub.",
    implementation="drivetrain_plugins.hub.huggingface:HuggingFace",
    arguments=(
        "push_to_hub",
        "hub_model_id",
        "hub_strategy",
        "hub_token",
        "hub_private_repo",
        "hub_always_push",
        "hub_patience",
    ),
    requires=("huggingface_hub",),
    extra="huggingface",
    chosen_by=_wanted,
    probe=_check,
)
