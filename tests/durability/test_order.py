"""What a save makes is on the disk before it has its name, and its name before anything older goes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drivetrain.record import NAME as RECORD
from durability import faults
from durability.faults import Call, Control
from durability.order import deletes, unsafe

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(faults.lacking() is not None, reason=str(faults.lacking()))


def trained(
    root: Path, shim: str | None, settings: dict[str, Any], resume: Any = True, around: tuple[str, ...] = ()
) -> list[Call]:
    """A run in a process of its own, in `root/work`; the calls that it made there."""
    work = root / "work"
    work.mkdir(exist_ok=True)
    control = Control(str(root / "control"))
    control.arm(str(work))
    given = {
        "notes": str(root / "notes"),
        "result": str(root / "result"),
        "settings": settings,
        "resume": resume,
    }
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [*around, sys.executable, str(HERE / "training.py"), json.dumps(given)]
    if shim is not None:
        environment |= {"LD_PRELOAD": shim, "FAULTS_CONTROL": control.path}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return control.calls()


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    return faults.build(str(tmp_path_factory.mktemp("shim")))


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory, shim: str) -> list[Call]:
    """A run from the folder that is made for it, with rotation; then one that goes on from before, and replaces."""
    root = tmp_path_factory.mktemp("order")
    settings = {"save_total_limit": 3, "max_steps": 8}
    first = trained(root, shim, {**settings, "output_dir": "new/below/out"})
    shutil.copytree(root / "work" / "new/below/out/checkpoint-6", root / "work" / "early")
    again = trained(root, shim, {**settings, "output_dir": "new/below/out"}, resume="early")
    # The record of a run is not promised: it is written as a log is.
    return [call for call in first + again if os.path.basename(call.path) != RECORD]


def test_nothing_has_a_name_that_is_not_on_the_disk(calls: list[Call]) -> None:
    assert not unsafe(calls)
    names = [
        os.path.basename(call.second) for call in calls if call.name == "rename" and ".del" not in call.second
    ]
    assert [name for name in names if name.startswith("checkpoint-")] == [
        *(f"checkpoint-{step}" for step in (2, 4, 6, 8, 8))
    ]
    assert any(".old-" in name for name in names)
    assert any(deletes(call) for call in calls)


def test_a_missing_sync_is_noticed(calls: list[Call]) -> None:
    """Any one of the syncs left out, or done after the rename, is told: none of them is there for nothing."""
    for place, call in enumerate(calls):
        if call.name == "fsync":
            assert unsafe(calls[:place] + calls[place + 1 :]), call


def test_a_sync_before_the_last_write_does_not_count(calls: list[Call]) -> None:
    written = next(call for call in calls if call.name == "write")
    synced = next(
        place for place, call in enumerate(calls) if call.name == "fsync" and call.path == written.path
    )
    late = dataclasses.replace(written)
    assert unsafe([*calls[: synced + 1], late, *calls[synced + 1 :]])


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_shim_misses_no_system_call(tmp_path: Path, shim: str) -> None:
    """strace sees the same calls in the same order as the shim between Python and the C library."""
    settings = {"max_steps": 4, "save_total_limit": 1, "eval_steps": 2, "save_steps": 2}
    trace = tmp_path / "trace"
    names = "open,openat,creat,write,writev,pwrite64,pwritev,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,"
    names += "mkdir,mkdirat,unlink,unlinkat,rmdir,ftruncate,truncate,link,linkat,symlink,symlinkat,sendfile,"
    names += "copy_file_range,fallocate,splice,mknodat"
    around = (
        "strace",
        "-f",
        "-y",
        "-s",
        "0",
        "-o",
        str(trace),
        "-e",
        f"trace={names}",
        "-E",
        f"LD_PRELOAD={shim}",
    )
    around += ("-E", f"FAULTS_CONTROL={tmp_path / 'control'}")
    calls = trained(tmp_path, None, settings, around=around)
    seen = [
        found for line in trace.read_text().splitlines() if (found := traced(line, str(tmp_path / "work")))
    ]
    ours = [(call.name, os.path.basename(call.path)) for call in calls if call.name not in ("close", "open")]
    assert [entry for entry in seen if entry[0] != "open"] == ours


_CALL = re.compile(r"^\d+ +(\w+)\((.*)$")


def traced(line: str, folder: str) -> tuple[str, str] | None:
    """(name as faults.py has it, the file's own name) of a line of strace, for changes below the folder."""
    match = _CALL.match(line)
    if match is None:
        return None
    name, rest = match.groups()
    # A folder's descriptor with its path, then a name in it; or a descriptor alone.
    found = re.search(r'^(?:(?:AT_FDCWD|\d+)<([^<>]*)>)?(?:, )?(?:"([^"]*)")?', rest)
    assert found is not None, line
    if found[1] is not None and not found[1].startswith("/"):  # a pipe or a socket
        return None
    place = os.path.join(folder, found[1] or "", found[2] or "").rstrip(os.sep)
    if not (place == folder or place.startswith(folder + os.sep)):
        return None
    name = re.sub(r"(at2?|64)$", "", name)
    if name == "open":
        name = "create" if re.search(r"O_CREAT|O_WRONLY|O_RDWR", rest) else "open"
    if name == "unlink" and "AT_REMOVEDIR" in rest:
        name = "rmdir"
    return {"pwrite": "write", "writev": "write", "fdatasync": "fsync", "ftruncate": "truncate"}.get(
        name, name
    ), os.path.basename(place)
