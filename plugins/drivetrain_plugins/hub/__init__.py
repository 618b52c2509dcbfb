"""Hubs that come with drivetrain: what they say of themselves."""

from __future__ import annotations

from typing import Any

from drivetrain.plugin import Claim, PluginInfo


def _wanted(args: Any) -> Claim | None:
    return Claim("push_to_hub=True") if args.push_to_hub else None


def _check(args: Any) -> str | None:
    strategy = str(getattr(args.hub_strategy, "value", args.hub_strategy))
    if args.push_to_hub and strategy != "end":
        return f"hub_strategy={strategy!r} is not there yet: use hub_strategy='end'."
    return None


HUGGINGFACE = PluginInfo(
    name="huggingface",
    kind="hub",
    summary="Uploads the model and a model card to the Hugging Face Hub.",
    implementation="drivetrain_plugins.hub.huggingface:HuggingFace",
    arguments=(
        "push_to_hub",
        "hub_model_id",
        "hub_strategy",
        "hub_token",
        "hub_private_repo",
        # hub_always_push is about uploads that come while another is under way: at the end there is one alone.
    ),
    requires=("huggingface_hub",),
    extra="huggingface",
    chosen_by=_wanted,
    probe=_check,
)
