"""A page of runs in one file: data, plots and the library that draws them, without a network."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from drivetrain.record import Named, Reading
from drivetrain_plugins.report.content import content


class Html:
    """Writes the page."""

    def write(self, runs: Sequence[Named], path: Path) -> None:
        """Writes a page of these runs.

        Args:
            runs: in the order in which they are shown.
            path: of the file.
        """
        path.write_text(page(content(runs)), encoding="utf-8")

    def serve(self, readings: Sequence[Reading], port: int, tell: Callable[[str], object]) -> None:
        """Shows the page on this machine, and follows the runs, until it is interrupted.

        Args:
            readings: of the runs' records.
            port: on 127.0.0.1; 0 for any that is free.
            tell: is given the page's address.

        Raises:
            OSError: the port is taken.
        """
        from drivetrain_plugins.report.serve import serve

        serve(readings, port, tell)


def page(data: dict[str, Any]) -> str:
    """The whole page of what `content` has put together."""
    folder = files("drivetrain_plugins.report")
    text = (folder / "page.html").read_text(encoding="utf-8")
    title = ", ".join(run["name"] for run in data["runs"])
    values = {
        "TITLE": title.replace("&", "&amp;").replace("<", "&lt;"),
        "STYLE": (folder / "page.css").read_text(encoding="utf-8"),
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "SCRIPT": (folder / "page.js").read_text(encoding="utf-8"),
        "LIBRARY": library(),
    }
    # Split once, so that nothing within a value is taken for a place.
    parts = text.split("@@")
    return "".join(values.get(part, part) if place % 2 else part for place, part in enumerate(parts))


@functools.cache
def library() -> str:
    """plotly.js, compressed to a third; the browser unpacks it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
