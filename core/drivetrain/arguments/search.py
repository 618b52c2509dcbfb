"""Hyperparameter search."""

from dataclasses import dataclass
from typing import Optional

from drivetrain.arguments.field import argument


@dataclass
class Search:
    ray_scope: Optional[str] = argument(
        "last", "Which of a trial's results a search with Ray compares: last, all, avg, min or max.", owner="search:ray"
    )
