"""The plots of a report as a picture, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drivetrain.record import Named
from drivetrain_plugins.report.series import Series, series_of
from drivetrain_plugins.report.thinning import thinned

_COLORS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#14b8a6", "#ca8a04", "#ec4899")
_TITLES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "figures/grad_norm": "Gradient norm",
    "figures/rows_per_second": "Rows a second",
}
_MOST = 12


class Png:
    """Draws loss, metrics, learning rate, gradient norm and speed, one plot each, the runs in one."""

    def write(self, runs: Sequence[Named], path: Path) -> None:
        """Writes the picture.

        Args:
            runs: in the order in which they are drawn.
            path: of the file.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        drawn = [(found.name, series_of(found.run)) for found in runs]
        names = dict.fromkeys(name for _, series in drawn for name in series)
        wanted = [*_TITLES, *(name for name in names if name.startswith("eval/") and name != "eval/loss")]
        plots = [name for name in wanted if name in names][:_MOST] or ["loss"]
        columns = 1 if len(plots) == 1 else 2
        rows = -(-len(plots) // columns)
        figure = Figure(figsize=(6.5 * columns, 3.6 * rows), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        for place, name in enumerate(plots):
            axes = figure.add_subplot(rows, columns, place + 1)
            for number, (label, series) in enumerate(drawn):
                color = _COLORS[number % len(_COLORS)]
                _draw(axes, series.get(name), color, label, "-")
                if name == "loss":
                    _draw(axes, series.get("eval/loss"), color, f"{label}, evaluation", "--")
            axes.set_title(_TITLES.get(name, name.removeprefix("eval/")), loc="left", fontsize=11)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel("step", fontsize=9)
            if place == 0 and axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, format="png")


def _draw(axes: object, series: Series | None, color: str, label: str, style: str) -> None:
    if series is None:
        return
    kept = thinned(series.values)
    values = [float("nan") if series.values[place] is None else series.values[place] for place in kept]
    axes.plot(  # type: ignore[attr-defined]  # matplotlib's Axes
        [series.steps[place] for place in kept], values, style, color=color, label=label, linewidth=1.4,
        marker="o" if len(kept) < 3 else None, markersize=3,
    )  # fmt: skip
