"""`--nproc`: the command once more in several processes, by torch's own elastic launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from drivetrain.cli.again import COMMAND, LEFT, again
from drivetrain.cli.console import EXIT_CODES, INTERRUPTED, complain_line
from drivetrain.errors import ConfigurationError, DrivetrainError, Preempted, ProcessError
from drivetrain.processes import asked_for

_LINES = 40  # of what a failed process wrote
_ELASTIC = "torch.distributed.elastic"


@dataclass(frozen=True)
class Launch:
    """How the processes are to be started, as it was written on the command line.

    Attributes:
        nproc: on this machine: a number, or "auto" for one a CUDA device.
        nnodes: machines: `2`, or `1:4` where they may come and go.
        max_restarts: how often all are started anew after one has failed.
        rdzv_endpoint: HOST:PORT of the machine at which several meet.
        rdzv_id: names the run there.
    """

    nproc: str | None = None
    nnodes: str | None = None
    max_restarts: str | None = None
    rdzv_endpoint: str | None = None
    rdzv_id: str | None = None

    def check(self) -> tuple[int, int, int]:
        """Processes on this machine, and the least and the highest number of machines.

        Raises:
            ConfigurationError: every mistake.
        """
        problems = []
        if asked_for() > 1:
            problems.append(
                f"--nproc starts processes, and this one is already one of {asked_for()}: leave --nproc out, or the "
                "launcher."
            )
        nodes = re.fullmatch(r"(\d+)(?::(\d+))?", self.nnodes or "1")
        least, most = (int(nodes[1]), int(nodes[2] or nodes[1])) if nodes else (0, 0)
        if not 0 < least <= most:
            problems.append(
                f"--nnodes {self.nnodes} is no number of machines: write 2, or 1:4 for one to four."
            )
        if most > 1 and self.rdzv_endpoint is None:
            problems.append(
                "--nnodes needs --rdzv-endpoint HOST:PORT, the machine at which all of them meet."
            )
        if most > 1 and self.rdzv_id is None:
            problems.append("--nnodes needs --rdzv-id NAME, the same on all machines, and new for each run.")
        if self.rdzv_endpoint is not None and not re.fullmatch(r".+:\d+", self.rdzv_endpoint):
            problems.append(f"--rdzv-endpoint {self.rdzv_endpoint} lacks its port: write HOST:PORT.")
        if not (self.max_restarts or "0").isdigit():
            problems.append(f"--max-restarts {self.max_restarts} is no number of restarts: write 0 or more.")
        processes = self._processes(problems)
        if problems:
            raise ConfigurationError(problems)
        return processes, least, most

    def words(self) -> list[str]:
        """The options, as they were written."""
        return [
            word
            for option in fields(self)
            if (value := getattr(self, option.name)) is not None
            for word in (f"--{option.name.replace('_', '-')}", value)
        ]

    def _processes(self, problems: list[str]) -> int:
        if self.nproc is None:
            problems.append("How many processes each machine starts is said by --nproc N.")
        elif self.nproc == "auto":
            import torch

            if not torch.cuda.is_available():
                problems.append(
                    "--nproc auto counts CUDA devices, and this machine has none: write --nproc N."
                )
            return torch.cuda.device_count()
        elif not self.nproc.isdigit() or int(self.nproc) < 1:
            problems.append(f"--nproc {self.nproc} is no number of processes: write a number, or auto.")
        else:
            return int(self.nproc)
        return 0


def launch(words: Sequence[str], how: Launch) -> int:
    """Runs `drivetrain WORDS` in several processes, and waits for them.

    The first process of this machine speaks on the terminal. What the others write is shown where one of them
    fails.

    Args:
        words: the command line without the options of `Launch`.
        how: those.

    Returns:
        the exit code: 0, or that of the process that failed first.

    Raises:
        ConfigurationError: the options do not fit together.
    """
    processes, least, most = how.check()
    # Each attempt gets a store of its own: one that is shared still holds the addresses of the dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # Its C++ part logs whole stacks where a process is gone; what that means is said in a sentence.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    restarts = int(how.max_restarts or 0)
    told = _Restarts(restarts)
    logs = tempfile.mkdtemp(prefix="drivetrain-")
    os.environ[COMMAND] = again(words, how.words())
    os.environ[LEFT] = logs
    config = LaunchConfig(
        min_nodes=least,
        max_nodes=most,
        nproc_per_node=processes,
        run_id=how.rdzv_id or os.urandom(8).hex(),
        rdzv_backend="c10d",
        rdzv_endpoint=how.rdzv_endpoint or "localhost:0",
        rdzv_configs=_rendezvous(how.rdzv_endpoint),
        local_addr=_own_address(how.rdzv_endpoint),
        max_restarts=restarts,
        monitor_interval=0.1,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=dict.fromkeys(range(1, processes), Std.ALL)),
    )
    try:
        with told.silenced():
            elastic_launch(config, sys.executable)(*python_options(), "-m", "drivetrain", *words)
    except ChildFailedError as error:
        return _failure(error.failures, restarts, Path(logs))
    except SignalException as error:
        number = int(error.sigval)
        if all(Path(logs, f"left-{place}").exists() for place in range(processes)):
            return INTERRUPTED if number == signal.SIGINT else Preempted.EXIT_CODE  # rank 0 has said it
        complain_line(f"Stopped by {signal.Signals(number).name}.")
        return 128 + number
    except RendezvousError as error:
        at = how.rdzv_endpoint or "this machine"
        raise ProcessError(
            f"The machines did not meet at {at} (--rdzv-id {config.run_id}): {error} See whether {least} of them were "
            "started, with the same --rdzv-endpoint and --rdzv-id, and whether they reach that port."
        ) from error
    finally:
        shutil.rmtree(logs, ignore_errors=True)
    return 0


class _Restarts(logging.Handler):
    """Says in a sentence what torch's launcher logs of a failed process, where all are then started anew."""

    def __init__(self, restarts: int) -> None:
        super().__init__(logging.ERROR)
        self.restarts, self.seen = restarts, 0

    def emit(self, record: logging.LogRecord) -> None:
        """One of the launcher's own records."""
        if not str(record.msg).startswith("failed (exitcode") or not isinstance(record.args, tuple):
            return
        self.seen += 1
        if self.seen <= self.restarts:
            code, process = record.args[:2]
            complain_line(
                f"Process {process} of this machine {_ended(int(str(code)))}; all are started anew "
                f"({self.seen} of {self.restarts})."
            )

    @contextlib.contextmanager
    def silenced(self) -> Any:
        """Keeps the launcher's own log from the terminal."""
        logger = logging.getLogger(_ELASTIC)
        before = logger.propagate
        logger.propagate = False
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.propagate = before


def _failure(failures: Mapping[int, Any], restarts: int, logs: Path) -> int:
    """Says which process failed first, and gives its exit code; a signal's is 128 and its number, as in a shell."""
    # Those that only lost another, and those that the launcher then ended, are not to blame.
    followers = (EXIT_CODES[ProcessError], -signal.SIGTERM, -signal.SIGINT)
    by_age = sorted(failures.items(), key=lambda item: item[1].timestamp)
    blamed = [item for item in by_age if item[1].exitcode not in followers] or by_age
    if blamed[0][1].exitcode in (Preempted.EXIT_CODE, INTERRUPTED):
        return int(
            blamed[0][1].exitcode
        )  # a signal came to one of them, and all have left; rank 0 has said it
    mistake = EXIT_CODES[DrivetrainError]
    # A mistake of all is said by the first of them, whichever of them was the first to end.
    rank, failure = next((item for item in blamed if item[0] == 0 and item[1].exitcode == mistake), blamed[0])
    if failure.local_rank != 0:
        written = max(
            logs.glob(f"*/attempt_*/{failure.local_rank}/stderr.log"), key=os.path.getmtime, default=None
        )
        lines = written.read_text(errors="replace").splitlines() if written is not None else []
        print(*lines[-_LINES:], sep="\n", end="\n" * bool(lines), file=sys.stderr)
    after = f" after {restarts} restart{'s' if restarts > 1 else ''}" if restarts else ""
    if failure.exitcode != mistake:  # that is a sentence already
        complain_line(f"Rank {rank} {_ended(failure.exitcode)}{after}, and the others with it.")
    return int(failure.exitcode) if failure.exitcode > 0 else 128 - int(failure.exitcode)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}{' (by hand, or for want of memory)' if name == 'SIGKILL' else ''}"


def python_options() -> list[str]:
    """The folder that `python -m` puts first on the path is there only where it is for this process too."""
    return [] if "" in sys.path or os.getcwd() in sys.path else ["-P"]


def _rendezvous(endpoint: str | None) -> dict[str, Any]:
    """torch guesses by names whether this machine is the endpoint's; whether its address can be had is sure."""
    if endpoint is None:
        return {}
    host = endpoint.rpartition(":")[0].strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError:
        return {"is_host": False}
    return {"is_host": True}


def _own_address(endpoint: str | None) -> str | None:
    """The address of this machine from which the endpoint is reached; None for one machine alone."""
    if endpoint is None:
        return None
    host, _, port = endpoint.rpartition(":")
    with contextlib.suppress(OSError):
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    return None
