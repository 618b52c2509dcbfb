"""Who this process is: alone, and for real among several."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch

from drivetrain import processes
from drivetrain.arguments import TrainingArguments
from drivetrain.errors import PluginError


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in (*processes.SIZE_VARIABLES, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield
    processes.set_launcher(None)


@pytest.mark.parametrize("name", processes.SIZE_VARIABLES)
def test_launchers_say_how_many(monkeypatch, name):
    assert processes.asked_for() == 1
    monkeypatch.setenv(name, "4")
    assert processes.asked_for() == 4


def test_making_arguments_makes_no_process_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")

    def refuse(args):
        raise AssertionError("nobody asked")

    processes.set_launcher(refuse)
    args = TrainingArguments("out")
    assert args.to_dict()["local_rank"] == 1
    str(args)
    with pytest.raises(AssertionError, match="nobody asked"):
        _ = args.local_rank


def test_a_launcher_is_started_once():
    starts = []

    class Launcher:
        def start(self, args):
            starts.append(args.local_rank)  # its own view, without starting again
            return processes.Processes(torch.device("cpu"), rank=1, local_rank=1, world_size=2)

    processes.set_launcher(lambda args: Launcher())
    args = TrainingArguments("out")
    assert (args.world_size, args.process_index, args.local_rank) == (2, 1, 1)
    assert starts == [0]


def test_a_launcher_that_asks_for_itself_is_told():
    class Launcher:
        def start(self, args):
            return args.device

    processes.set_launcher(lambda args: Launcher())
    with pytest.raises(PluginError, match="may read the environment"):
        _ = TrainingArguments("out").device


SCRIPT = textwrap.dedent(
    """
    import os, pathlib, time
    import torch, torch.distributed as dist
    from drivetrain import processes
    from drivetrain.arguments import TrainingArguments

    class Gloo:
        def start(self, args):
            dist.init_process_group("gloo", timeout=args.ddp_timeout_delta)
            rank = dist.get_rank()
            return processes.Processes(
                torch.device("cpu"), rank=rank, local_rank=rank, world_size=dist.get_world_size(),
                wait=dist.barrier
            )

    processes.set_launcher(lambda args: Gloo())
    args = TrainingArguments("out", use_cpu=True, ddp_timeout=60)
    assert not dist.is_initialized()
    done = pathlib.Path(os.environ["DONE"])
    with args.main_process_first():
        assert dist.is_initialized()
        if args.process_index == 0:
            time.sleep(0.5)
            done.write_text("prepared")
        assert done.read_text() == "prepared"
    assert args.parallel_mode.value == "distributed"
    print(args.process_index, args.local_rank, args.world_size, args.should_save, args.should_log)
    dist.destroy_process_group()
    """
)


def test_two_real_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    shared |= {"DONE": str(tmp_path / "done"), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCRIPT],
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [out.strip() for out, _ in said] == ["0 0 2 True True", "1 1 2 False False"], said
