"""The energy of a training, and what it emits, by CodeCarbon."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row
from drivetrain_plugins.logger.options import CodecarbonOptions

logger = logging.getLogger("drivetrain")


class CodecarbonLogger(Logger):
    """Adds a line to `emissions.csv` in the output folder when training ends. It takes no rows of the log.

    CodeCarbon reads its own environment (`CODECARBON_...`) and `.codecarbon.config`. It asks the network where the
    machine is, unless the option `country` tells.
    """

    name = "codecarbon"
    options: CodecarbonOptions
    _codecarbon: Any
    _tracker: Any

    def load(self) -> None:
        """Imports CodeCarbon."""
        self._codecarbon = importlib.import_module("codecarbon")

    def open(self, facts: Facts) -> None:
        """Begins to measure."""
        self._tracker = None
        if not facts.is_training or facts.again:
            return
        if self.options.country is not None:
            self._tracker = self._codecarbon.OfflineEmissionsTracker(
                output_dir=facts.output_dir, country_iso_code=self.options.country
            )
        else:
            self._tracker = self._codecarbon.EmissionsTracker(output_dir=facts.output_dir)
        self._tracker.start()

    def write(self, row: Row) -> None:
        """Nothing of it is CodeCarbon's."""

    def close(self) -> None:
        """Writes what was measured."""
        if self._tracker is not None:
            emitted = self._tracker.stop()
            if emitted is not None:
                logger.info("CodeCarbon: this training has emitted %.3g kg of CO2.", emitted)
