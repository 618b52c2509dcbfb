"""A launch that hangs ends, with all its processes, and says so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from strategies import launching
from strategies.scenario import Scenario

HANGS = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that is in a collective
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
pathlib.Path(sys.argv[2], f"pids-{os.environ['RANK']}").write_text(f"{os.getpid()} {helper.pid}")
time.sleep(3600)
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_launch_that_hangs_is_ended_with_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    monkeypatch.setattr(launching, "WORKER", script)
    monkeypatch.setattr(launching, "FAREWELL", 1.0)
    is_whole = launching._is_whole

    def once_both_hang(scenario: Scenario, out: Path) -> bool:
        """On a busy machine the patience would be over before they have begun."""
        while not all((tmp_path / f"pids-{rank}").exists() for rank in range(2)):
            time.sleep(0.05)
        return is_whole(scenario, out)

    monkeypatch.setattr(launching, "_is_whole", once_both_hang)
    outcome = launching.run_all([Scenario("one", "ddp", 2)], tmp_path, patience=1.0)["one"]
    assert outcome.trouble.startswith("no end within 1 seconds, ranks [0, 1] silent")
    pids = [int(pid) for rank in range(2) for pid in (tmp_path / f"pids-{rank}").read_text().split()]
    assert len(pids) == 4
    end = time.monotonic() + 30
    while any(map(running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(running, pids))
