"""What a logger costs a run when its tracker fails, is slow, or has a server that is killed or hangs.

    python bench/loggers.py

Each round trains the same model once without a logger and once with each, all of them side by side in this process:
each run has a thread, one of them has the word, and after so many updates it hands it on to the next, in a ring. So
windows that are compared lie a tenth of a second apart, and a machine whose speed drifts does no harm. The time of a
run is that in which it had the word, from the call of `train()` until it returned. "none again" is a second run without
a logger: what it shows is the measurement's own error.

The server is a real one, in a process of its own, that takes each row by HTTP; it is killed (or stopped, so that it
neither answers nor refuses) in the middle of the run. Every run must end with the weights and the log of the run
without a logger.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import torch

from drivetrain import Trainer, TrainerCallback, TrainingArguments
from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row

TARGET = 1.02

SERVER = """
import http.server
class Takes(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Takes)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Raises(Logger):
    name = "raises"

    def open(self, facts: Facts) -> None:
        pass

    def write(self, row: Row) -> None:
        raise OSError("no")


class Sleeps(Logger):
    name = "sleeps"

    def open(self, facts: Facts) -> None:
        time.sleep(1)

    def write(self, row: Row) -> None:
        time.sleep(1)

    def close(self) -> None:
        time.sleep(1)


class Posts(Logger):
    """Sends each row to a server, which a signal meets in the middle of the run."""

    def __init__(self, met_by: signal.Signals) -> None:
        super().__init__()
        self.met_by, self.sent = met_by, 0
        self.server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        self.address = f"http://127.0.0.1:{int(self.server.stdout.readline())}"

    def open(self, facts: Facts) -> None:
        self._post(facts.arguments)

    def write(self, row: Row) -> None:
        self._post({**row.values, "step": row.step})
        self.sent += 1

    def _post(self, what: dict[str, Any]) -> None:
        request = urllib.request.Request(self.address, json.dumps(what).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=60):
            pass


class Meets(TrainerCallback):
    def __init__(self, logger: Posts, step: int) -> None:
        self.logger, self.step = logger, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(self.logger.server.pid, self.logger.met_by)


class Ring:
    """Hands the word from one thread to the next, and measures how long each had it.

    Args:
        size: how many threads there are.
    """

    def __init__(self, size: int) -> None:
        self.events = [threading.Event() for _ in range(size)]
        self.left = set(range(size))
        self.windows: list[list[tuple[float, float]]] = [[] for _ in range(size)]  # (wall, processor) seconds
        self._since = (0.0, 0.0)
        self.events[0].set()

    def wait(self, place: int) -> None:
        """Waits for the word."""
        self.events[place].wait()
        self.events[place].clear()
        self._since = time.perf_counter(), time.process_time()

    def hand_on(self, place: int, last: bool = False) -> None:
        """Ends a window: the next has the word, and where it is not the `last` one, it comes back."""
        wall, processor = self._since
        self.windows[place].append((time.perf_counter() - wall, time.process_time() - processor))
        if last:
            self.left.remove(place)
        if self.left:
            size = len(self.events)
            after = next(
                number % size for number in range(place + 1, place + 1 + size) if number % size in self.left
            )
            self.events[after].set()


class Turn(TrainerCallback):
    """Hands the word on after so many updates."""

    def __init__(self, ring: Ring, place: int, steps: int) -> None:
        self.ring, self.place, self.steps = ring, place, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self.ring.hand_on(self.place)
            self.ring.wait(self.place)


class Net(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(4)))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.inner(x).square().mean()}


@dataclass(frozen=True)
class Seen:
    """A run: its windows as (wall, processor) seconds, the last one that of its end; and what it ended with."""

    windows: list[tuple[float, float]]
    weights: float
    rows: int

    @property
    def wall(self) -> float:
        return sum(wall for wall, _ in self.windows)


class Racer:
    """A run with one kind of logger, in its place of a ring."""

    def __init__(self, kind: str, number: int, ring: Ring, place: int, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.ring, self.place = ring, place
        self.logger: Logger | None = None
        # The word is handed on before the server is met, so that this falls into the window of its own logger.
        callbacks: list[Any] = [Turn(ring, place, options.window)]
        if kind == "raises":
            self.logger = Raises()
        elif kind == "sleeps":
            self.logger = Sleeps()
        elif kind in ("killed", "stopped"):
            self.logger = Posts(signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
            callbacks.append(Meets(self.logger, options.steps // 2))
        if self.logger is not None:
            self.logger.name = (
                f"{kind}-{number}"  # its own, so that none waits for what an earlier one has left
            )
        rows = [{"x": torch.randn(options.width)} for _ in range(256)]
        args = TrainingArguments(
            "unused",  # nothing is written
            record=False,
            max_steps=options.steps,
            per_device_train_batch_size=32,
            logging_steps=options.every,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            data_seed=0,  # a generator of its own: the runs share torch's
        )
        self.trainer = Trainer(
            Net(options.width),
            args,
            train_dataset=rows,
            callbacks=callbacks,
            plugins=[] if self.logger is None else [self.logger],
        )
        self.error: BaseException | None = None

    def race(self) -> None:
        self.ring.wait(self.place)
        try:
            self.trainer.train()
        except BaseException as error:
            self.error = error
        self.ring.hand_on(self.place, last=True)

    def seen(self) -> Seen:
        if self.error is not None:
            raise self.error
        if isinstance(self.logger, Posts):
            assert self.logger.sent > 0, "no row has come to the server"
            self.logger.server.kill()
            self.logger.server.wait()
        weights = sum(float(value.detach().double().sum()) for value in self.trainer.model.parameters())
        return Seen(self.ring.windows[self.place], weights, len(self.trainer.state.log_history))


def race(kinds: tuple[str, ...], number: int, options: argparse.Namespace) -> dict[str, Seen]:
    """One round."""
    ring = Ring(len(kinds))
    racers = [Racer(kind, number, ring, place, options) for place, kind in enumerate(kinds)]
    threads = [threading.Thread(target=racer.race) for racer in racers]
    with contextlib.redirect_stdout(io.StringIO()):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {kind: racer.seen() for kind, racer in zip(kinds, racers, strict=True)}


KINDS = ("none", "raises", "sleeps", "killed", "stopped", "none again")


@dataclass(frozen=True)
class Against:
    """What is said of one kind: ratios to the run without a logger, of a round each, and of all windows."""

    rounds: list[float]
    windows: list[float]
    processor: list[float]
    end: list[float]
    same: bool

    @classmethod
    def of(cls, mine: list[Seen], none: list[Seen]) -> Against:
        pairs = list(zip(mine, none, strict=True))
        windows = [
            pair for one, other in pairs for pair in zip(one.windows[:-1], other.windows[:-1], strict=True)
        ]
        return cls(
            rounds=[one.wall / other.wall for one, other in pairs],
            windows=[one[0] / other[0] for one, other in windows],
            processor=[one[1] / other[1] for one, other in windows],
            end=[one.windows[-1][0] - other.windows[-1][0] for one, other in pairs],
            same=all((one.weights, one.rows) == (other.weights, other.rows) for one, other in pairs),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--window", type=int, default=20, help="updates until the next run has the word")
    parser.add_argument("--width", type=int, default=512, help="of the model's layers")
    parser.add_argument("--every", type=int, default=10, help="updates between two rows")
    parser.add_argument("--check", action="store_true", help="a missed target is the exit code")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("drivetrain").setLevel(logging.ERROR)
    race(("none",), 0, argparse.Namespace(**{**vars(options), "steps": 60}))  # what is slow the first time
    seen: dict[str, list[Seen]] = {kind: [] for kind in KINDS}
    for number in range(options.rounds):
        turn = number % len(KINDS)
        for kind, run in race((*KINDS[turn:], *KINDS[:turn]), number, options).items():
            seen[kind].append(run)
    load = os.getloadavg()[0]
    print(
        f"{options.steps} steps in windows of {options.window}, {options.rounds} rounds, a row every {options.every} "
        f"steps, load {load:.1f}"
    )
    missed = False
    print(
        f"{'':12}{'seconds':>8}{'to none':>9}{'(quartiles)':>15}{'windows':>9}{'processor':>11}{'at the end':>12}  same"
    )
    for kind in KINDS:
        line = f"{kind:12}{statistics.median(run.wall for run in seen[kind]):8.2f}"
        if kind != "none":
            found = Against.of(seen[kind], seen["none"])
            ratio = statistics.median(found.rounds)
            ordered = sorted(found.rounds)
            low, high = ordered[len(ordered) // 4], ordered[len(ordered) * 3 // 4]
            missed |= ratio > TARGET or not found.same
            line += (
                f"{ratio:9.3f}{f'({low:.3f}-{high:.3f})':>15}{statistics.median(found.windows):9.3f}"
                f"{statistics.median(found.processor):11.3f}{statistics.median(found.end) * 1000:+9.0f} ms"
                f"  {'yes' if found.same else 'NO'}"
            )
        print(line)
    print(
        "windows: their ratios, wall and processor time; the end: of train(), beyond that of none; same: weights, log"
    )
    sys.stdout.flush()
    os._exit(int(missed and options.check))  # the loggers that hang would have their seconds at the end


if __name__ == "__main__":
    main()
