"""Makes the pictures of the documentation anew: `nox -s screenshots`, or `python docs/make_screenshots.py [PART ...]`.

Each part is a file `screenshots_PART.py` beside this one, whose `make(folder)` writes its pictures there.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(parts: list[str]) -> None:
    """Makes the pictures of the named parts, or of all."""
    sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
    known = sorted(path.stem.removeprefix("screenshots_") for path in HERE.glob("screenshots_*.py"))
    for part in parts or known:
        importlib.import_module(f"screenshots_{part}").make(HERE / "_static")


if __name__ == "__main__":
    main(sys.argv[1:])
