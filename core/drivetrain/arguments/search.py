"""Hyperparameter search."""

from dataclasses import dataclass

from drivetrain.arguments.field import argument


@dataclass
class Search:
    """The arguments about hyperparameter search."""

    ray_scope: str | None = argument(
        "last",
        "Which of a trial's results a search with Ray compares: last, all, avg, min or max.",
        owner="search:ray",
    )
