"""What is wrong with the configuration, found before DeepSpeed or a model is loaded."""

from __future__ import annotations

from typing import Any

from drivetrain.errors import ConfigurationError
from drivetrain.processes import asked_for
from drivetrain_plugins.strategy.deepspeed import unsupported
from drivetrain_plugins.strategy.deepspeed.configuration import read
from drivetrain_plugins.strategy.deepspeed.doubled import doubled
from drivetrain_plugins.strategy.deepspeed.filling import fill_from_arguments


def problems(args: Any) -> list[str]:
    """One sentence for each thing that this machine or these arguments do not allow."""
    import torch

    try:
        config = read(args.deepspeed)
    except ConfigurationError as error:
        return list(error.problems)
    found = fill_from_arguments(config, args, asked_for())
    found += doubled(config, args)
    found += unsupported.problems(config, torch.cuda.is_available() and not args.use_cpu)
    return found
