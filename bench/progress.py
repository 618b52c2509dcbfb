"""What the display on a terminal costs a step: the same run with it, and with its rows printed alone.

    python bench/progress.py [--rounds 15] [--windows 8] [--logging-steps 50] [--json OUT]

Rounds take turns in one process, each on a pseudo-terminal of 120 columns that another process reads. Processor
time is that of all threads, so the display's own is in it, and is told by itself as well: that figure is the one to
trust on a machine that others use. An update takes under a millisecond, the shortest there are.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pty
import random
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator

import engines
import torch
from workload import Clock, workloads


class Watched(Clock):
    """A clock that also reads the processor time of the display's thread.

    Attributes:
        spent: seconds of it at the last window's end, and the seconds since the display came.
    """

    def __init__(self, windows: int) -> None:
        super().__init__(windows)
        self.spent = (0.0, 0.0)
        self._began = 0.0

    def tick(self) -> None:
        if self.calls % 250 == 0:
            self._began = self._began or time.perf_counter()
            for thread in threading.enumerate():
                if thread.name == "drivetrain-progress" and thread.ident is not None:
                    used = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
                    self.spent = used, time.perf_counter() - self._began
        super().tick()


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Standard output and error are a terminal that somebody reads."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    reading = subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(reader)
    with (
        os.fdopen(writer, "w") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        yield
    reading.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--windows", type=int, default=8, help="of 250 steps each, in a round")
    parser.add_argument("--logging-steps", type=int, default=50)
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args()
    os.environ["TERM"] = "xterm-256color"
    torch.set_num_threads(1)
    engines.LOG_EVERY = options.logging_steps
    data = workloads()["batches"]
    found: dict[str, list[tuple[float, float]]] = {"rows": [], "display": []}
    shares: list[float] = []
    for _ in range(options.rounds):
        for name in random.sample(sorted(found), 2):
            torch.manual_seed(1)
            clock = Watched(options.windows)
            with terminal():
                engines.a_trainer("drivetrain", data, clock, disable_tqdm=name == "rows")
            wall, processor = zip(*clock.windows, strict=True)
            if name == "display":
                shares.append(clock.spent[0] / clock.spent[1])
            found[name].append((statistics.median(wall), statistics.median(processor)))
    for at, kind in enumerate(("wall", "processor")):
        ratios = [
            with_[at] / without[at] for with_, without in zip(found["display"], found["rows"], strict=True)
        ]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows, display = (statistics.median(one[at] for one in found[name]) for name in ("rows", "display"))
        print(
            f"{kind:>9}: {rows:6.0f} µs a step with rows alone, {display:6.0f} with the display; "
            f"ratio of a round: median {middle:.4f}, quartiles {low:.4f} and {high:.4f}"
        )
    print(f"The display's thread: {statistics.median(shares):.2%} of a processor (median of rounds)")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file)


if __name__ == "__main__":
    sys.exit(main())
