"""The display in a notebook: bars, figures, and a table of what was logged."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from drivetrain_plugins.callback.rows import cells, number
from drivetrain_plugins.callback.standing import Figure, Standing, Track

REFRESH = 0.5  # seconds between two looks; each is a message to the page
ROWS = 200  # rows of the table; the first ones go where there are more
CURVE = 20  # columns of a curve

# Colours that can be read on white and on black; all else is the page's own.
STYLE = (
    "font-family:var(--jp-code-font-family,monospace);font-size:13px;line-height:1.6;"
    "font-variant-numeric:tabular-nums"
)
MOODS = {"good": "color:#2e9e5b", "bad": "color:#d9534f;font-weight:bold", "": ""}


class NotebookDisplay:
    """A display of a run under a cell. It is drawn again in its place, so what the cell prints is untouched.

    Attributes:
        standing: what it shows.
    """

    def __init__(self) -> None:
        self.standing = Standing()
        self._began = time.monotonic()
        self._rows: list[dict[str, str]] = []
        self._columns: list[str] = []
        self._dropped = 0
        self._handle: Any = None
        self._shown = ""
        self._stopped = threading.Event()
        # The page finds out by the context which cell is meant, and a thread has none of its own.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._watch,), name="drivetrain-progress", daemon=True
        )

    def start(self) -> None:
        """Puts the display up."""
        self._thread.start()

    def stop(self) -> None:
        """Shows the last state. May be called again."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join(timeout=5)
        self.standing.finish()
        self._draw()

    def row(self, logs: Mapping[str, Any], step: int, max_steps: int) -> bool:
        """Adds a row to the table: of losses and metrics; their speed is no column of it.

        An evaluation takes the place of the losses that came before it, but for that of its own step.
        """
        shown = {
            cell.name: cell.value
            for cell in cells(logs, step, 0)
            if cell.name and cell.name not in ("lr", "epoch")
        }
        if not shown:
            return True
        step_shown = number(step) if max_steps else ""
        last = self._rows[-1] if self._rows else None
        # An evaluation belongs to the step's loss, if there is one.
        if last is not None and last["step"] == step_shown and not set(shown) & set(last):
            last.update(shown)
        else:
            self._rows.append({"step": step_shown, **shown})
        if self._is_evaluated(shown):
            self._rows = [row for row in self._rows[:-1] if self._is_evaluated(row)] + self._rows[-1:]
        self._columns += [name for name in shown if name not in self._columns]
        if len(self._rows) > ROWS:
            self._dropped += len(self._rows) - ROWS
            del self._rows[:-ROWS]
        return True

    @staticmethod
    def _is_evaluated(row: Mapping[str, str]) -> bool:
        return any(name.startswith("eval_") for name in row)

    def _watch(self) -> None:
        self._draw()
        while not self._stopped.wait(REFRESH):
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        tracks, groups = self.standing.tracks(), self.standing.figures()
        html = self._html(tracks, groups)
        if html == self._shown:
            return
        self._shown = html
        data = {"text/html": html, "text/plain": _plain(tracks, groups)}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    # -- what is drawn ---------------------------------------------------------------------------------

    def _html(self, tracks: Sequence[Track], groups: Sequence[Sequence[Figure]]) -> str:
        parts = [_track(track) for track in tracks]
        for group in groups:
            parts.append(f"<div>{'&ensp;&ensp;'.join(_figure(figure) for figure in group)}</div>")
        return f'<div style="{STYLE}">{"".join(parts)}{self._table()}</div>'

    def _table(self) -> str:
        rows = list(self._rows)
        if not rows:
            return ""
        columns = ["step", *self._columns] if any(row["step"] for row in rows) else list(self._columns)
        cell = 'style="text-align:right;padding:2px 10px"'
        head = "".join(f"<th {cell}>{escape(name)}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td {cell}>{escape(row.get(name, ''))}</td>" for name in columns) + "</tr>"
            for row in rows
        )
        before = f"<div>{self._dropped:,} rows before these</div>" if self._dropped else ""
        return f'{before}<table style="margin:6px 0;font-size:inherit;line-height:1.2"><tr>{head}</tr>{body}</table>'


def _track(track: Track) -> str:
    """A line with a bar, which is a `<progress>`: the page draws it in its own colours."""
    total = track.total
    value = f' value="{track.done}" max="{max(total, 1)}"' if total is not None else ""
    beside = "&ensp;&ensp;".join(escape(text) for text in (_count(track), track.beside, track.time) if text)
    return (
        f'<div><span style="display:inline-block;width:6.6em">{escape(track.name)}</span>'
        f'<progress{value} style="width:min(240px,40%);vertical-align:middle"></progress>&ensp;{beside}</div>'
    )


def _count(track: Track) -> str:
    if track.total is None:
        return f"{track.done:,}"
    share = f" {track.done / track.total:.0%}" if track.total else ""
    return f"{track.done:,}/{track.total:,}{share}"


def _plain(tracks: Sequence[Track], groups: Sequence[Sequence[Figure]]) -> str:
    """What stands there where the page is none."""
    made = [" ".join(filter(None, (track.name, _count(track), track.beside, track.time))) for track in tracks]
    made += ["  ".join(f"{figure.name} {figure.value}".strip() for figure in group) for group in groups]
    return "\n".join(made)


def _figure(figure: Figure) -> str:
    name = f'<span style="opacity:.65">{escape(figure.name)}</span> ' if figure.name else ""
    curve = (
        f' <span style="letter-spacing:-.5px">{figure.curve.drawn(CURVE)}</span>'
        if figure.curve is not None
        else ""
    )
    return f'{name}<span style="{MOODS[figure.mood]}">{escape(figure.value)}</span>{curve}'
