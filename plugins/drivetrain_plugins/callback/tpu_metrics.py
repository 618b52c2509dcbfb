"""`debug="tpu_metrics_debug"`: the counters of torch_xla after each epoch and each evaluation."""

from __future__ import annotations

from drivetrain.plugin import hookimpl
from drivetrain.run import Run


class TpuMetrics:
    """Prints torch_xla's report of compilations, transfers and operators that ran on the host; rank 0 speaks."""

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """After an epoch."""
        _print(run)

    @hookimpl
    def on_evaluate(self, run: Run) -> None:
        """After an evaluation."""
        _print(run)


def _print(run: Run) -> None:
    from torch_xla.debug import metrics

    if run.is_main_process:
        print(metrics.metrics_report(), flush=True)
