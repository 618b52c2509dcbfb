"""All parity cases: importing this module fills ``kit.REGISTRY``, in the order in which they run."""

from __future__ import annotations

import cases_arguments
import cases_callbacks
import cases_corners
import cases_data
import cases_debugging
import cases_differences
import cases_evaluation
import cases_from_transformers
import cases_inner
import cases_models
import cases_more
import cases_resume
import cases_subclasses

__all__ = [
    "cases_arguments",
    "cases_callbacks",
    "cases_corners",
    "cases_data",
    "cases_debugging",
    "cases_differences",
    "cases_evaluation",
    "cases_from_transformers",
    "cases_inner",
    "cases_models",
    "cases_more",
    "cases_resume",
    "cases_subclasses",
]
