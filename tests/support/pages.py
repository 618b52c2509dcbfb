"""What stands in fences in a page of the documentation, to be run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "contrib").glob("*/README.md"),
        *(ROOT / "docs").rglob("*.md"),
    ]
)

_FENCE = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fence.

    Attributes:
        language: the word behind the fence.
        text: what stands in it.
        line: the line of its first row.
        file: the file that it is, by a comment `<!-- file: NAME -->` before it.
        skipped: why it is not run, by a comment `<!-- not run: REASON -->` before it.
    """

    language: str
    text: str
    line: int
    file: str | None
    skipped: str | None


def blocks(page: Path) -> list[Block]:
    """The fences of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        note = match["note"] or ""
        found.append(
            Block(
                language=match["language"],
                text=match["text"],
                line=text.count("\n", 0, match.start("text")) + 1,
                file=note.removeprefix("file: ") if note.startswith("file: ") else None,
                skipped=note.removeprefix("not run: ") if note.startswith("not run: ") else None,
            )
        )
    return found
