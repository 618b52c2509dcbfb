"""Rows of the log, printed as they are."""

from __future__ import annotations

from typing import Any

from drivetrain.callbacks import TrainerCallback


class PrinterCallback(TrainerCallback):
    """Prints each row of the log as a plain dict: the progress bar's place under `disable_tqdm=True`."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Prints the row. As documented callbacks do, it takes `total_flos` out of it."""
        if logs is None:
            return
        logs.pop("total_flos", None)
        if state.is_local_process_zero:
            print(logs, flush=True)
