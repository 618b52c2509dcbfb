"""What a logger costs a run when its tracker fails, is slow, or has a server that is killed or hangs.

    python bench/loggers.py

Each round trains the same model once with every logger and once without, in an order that turns from round to round,
and compares wall times; the end of `train()` is in them. The server is a real one, in a process of its own, that takes
each row by HTTP; it is killed (or stopped, so that it neither answers nor refuses) in the middle of the run. Every run
must end with the weights and the log of the run without a logger.
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


@dataclass(frozen=True)
class Seen:
    seconds: float
    processor: float
    weights: float
    rows: int


def train(kind: str, number: int, steps: int, width: int, every: int) -> Seen:
    """One run; a logger's name is its own in each, so that none waits for what an earlier one has left."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(4)))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.inner(x).square().mean()}

    rows = [{"x": torch.randn(width)} for _ in range(256)]
    args = TrainingArguments(
        "unused",  # nothing is written
        record=False,
        max_steps=steps,
        per_device_train_batch_size=32,
        logging_steps=every,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    logger: Logger | None = None
    callbacks: list[Any] = []
    if kind == "raises":
        logger = Raises()
    elif kind == "sleeps":
        logger = Sleeps()
    elif kind in ("killed", "stopped"):
        logger = Posts(signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
        callbacks = [Meets(logger, steps // 2)]
    if logger is not None:
        logger.name = f"{kind}-{number}"
    trainer = Trainer(
        Net(), args, train_dataset=rows, callbacks=callbacks, plugins=[] if logger is None else [logger]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        start, processor = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
    if isinstance(logger, Posts):
        assert logger.sent > 0, "no row has come to the server"
        logger.server.kill()
        logger.server.wait()
    weights = sum(float(value.detach().double().sum()) for value in trainer.model.parameters())
    return Seen(seconds, processor, weights, len(trainer.state.log_history))


KINDS = ("none", "raises", "sleeps", "killed", "stopped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=512, help="of the model's layers")
    parser.add_argument("--every", type=int, default=10, help="updates between two rows")
    parser.add_argument("--check", action="store_true", help="a missed target is the exit code")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("drivetrain").setLevel(logging.ERROR)
    train("none", 0, 50, options.width, options.every)  # what is slow the first time
    seen: dict[str, list[Seen]] = {kind: [] for kind in KINDS}
    for number in range(options.rounds):
        turn = number % len(KINDS)
        for kind in (*KINDS[turn:], *KINDS[:turn]):
            seen[kind].append(train(kind, number, options.steps, options.width, options.every))
    load = os.getloadavg()[0]
    print(
        f"{options.steps} steps, {options.rounds} rounds, a row every {options.every} steps, load {load:.1f}"
    )
    missed = False
    for kind in KINDS:
        ratios = [mine.seconds / none.seconds for mine, none in zip(seen[kind], seen["none"], strict=True)]
        work = [mine.processor / none.processor for mine, none in zip(seen[kind], seen["none"], strict=True)]
        ratio = statistics.median(ratios)
        same = all(
            (mine.weights, mine.rows) == (none.weights, none.rows)
            for mine, none in zip(seen[kind], seen["none"], strict=True)
        )
        missed |= ratio > TARGET or not same
        wall = statistics.median(run.seconds for run in seen[kind])
        quiet = min(run.seconds for run in seen[kind]) / min(run.seconds for run in seen["none"])
        spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
        print(
            f"{kind:8} {wall:7.2f} s   to none {ratio:.3f} ({spread}), shortest {quiet:.3f}, processor time "
            f"{statistics.median(work):.3f}   "
            f"weights and log as without: {'yes' if same else 'NO'}"
        )
    sys.stdout.flush()
    os._exit(int(missed and options.check))  # the loggers that hang would have their seconds at the end


if __name__ == "__main__":
    main()
