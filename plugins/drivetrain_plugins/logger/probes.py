"""Why a logger cannot do its work here, by what the environment and metadata say; nothing is imported."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any


def mlflow(args: Any) -> str | None:
    """4.34.0 knows a variable that switches it off."""
    if os.environ.get("DISABLE_MLFLOW_INTEGRATION", "").lower() == "true":
        return (
            "The logger 'mlflow' is switched off by DISABLE_MLFLOW_INTEGRATION=TRUE: unset it, or leave 'mlflow' out "
            "of report_to."
        )
    return None


def dagshub(args: Any) -> str | None:
    """It needs to know which repository."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return "The logger 'dagshub' needs MLFLOW_TRACKING_URI, which dagshub.init() sets: call it first."
    return mlflow(args)


def azure_ml(args: Any) -> str | None:
    """As in 4.34.0, "all" leaves it out beside MLflow, which writes to Azure as well."""
    if args.report_to == ["all"]:
        try:
            importlib.metadata.version("mlflow")
        except importlib.metadata.PackageNotFoundError:
            return None
        return "mlflow is installed, and takes its place"
    return None
