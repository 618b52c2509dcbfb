"""One target under atheris, which finds its way by the lines that an input reaches: `one.py TARGET SECONDS [FOLDER]`.

Ends with another code than 0, and leaves the input in FOLDER, where anything but a sentence came of one. A file in the
place of SECONDS is run once.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["drivetrain.checkpoint", "drivetrain.trust", "drivetrain.resuming", "json"]
):
    from fuzz.targets import TARGETS, Bench, seeds


def main() -> None:
    name, seconds = sys.argv[1], sys.argv[2]
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    bench = Bench()

    def run(data: bytes) -> None:
        TARGETS[name](bench, data)

    if not seconds.isdigit():
        run(Path(seconds).read_bytes())
        bench.close()
        return
    failures = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp())
    failures.mkdir(parents=True, exist_ok=True)
    corpus = bench.folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds(bench, name)):
        (corpus / str(number)).write_bytes(content)
    options = [
        f"-max_total_time={seconds}",
        "-timeout=30",
        "-rss_limit_mb=4096",
        "-malloc_limit_mb=1024",
        "-max_len=65536",
        "-print_final_stats=1",
        "-verbosity=1",
        f"-artifact_prefix={failures}{os.sep}{name}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
