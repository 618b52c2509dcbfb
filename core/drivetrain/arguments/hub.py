"""Uploads to the Hugging Face hub."""

from dataclasses import dataclass

from drivetrain.arguments.checks import token
from drivetrain.arguments.enums import HubStrategy
from drivetrain.arguments.field import argument


@dataclass
class Hub:
    """The arguments about uploads."""

    push_to_hub: bool = argument(False, "Upload the model to the hub, as hub_strategy says.", owner="hub")
    hub_model_id: str | None = argument(
        None, "The repository, as NAME or OWNER/NAME; by default output_dir's name.", owner="hub"
    )
    hub_strategy: HubStrategy | str = argument("every_save", "What is uploaded, and when.", owner="hub")
    hub_token: str | None = argument(
        None,
        "The token to log in with; it is never written to disk or to a log.",
        owner="hub",
        check=token,
        secret=True,
    )
    hub_private_repo: bool = argument(False, "Make the repository private if it is new.", owner="hub")
    hub_always_push: bool = argument(
        False, "Upload every save, even while the one before it is still going up.", owner="hub"
    )
