"""Rows of the log, printed as they are."""

from __future__ import annotations

from typing import Any

from drivetrain.callbacks import TrainerCallback
from drivetrain_plugins.callback.rows import say


class PrinterCallback(TrainerCallback):
    """Prints each row of the log as a plain dict: the progress bar's place under `disable_tqdm=True`."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Prints the row, without `total_flos`, as documented."""
        if logs is not None and state.is_local_process_zero:
            say(str({name: value for name, value in logs.items() if name != "total_flos"}))
