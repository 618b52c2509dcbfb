"""Two hosts on one machine: network namespaces, joined by a pair of virtual cables."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@dataclass(frozen=True)
class Host:
    """A namespace and its address."""

    name: str
    address: str

    def command(self, *words: str) -> list[str]:
        """A command on this host."""
        return ["ip", "netns", "exec", self.name, *words]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Both hosts; skips the test where namespaces cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("two hosts are two network namespaces, and there is no `ip` to make them with")
    names = [f"dt{os.getpid()}{letter}" for letter in "ab"]
    cables = [f"v{os.getpid()}{letter}" for letter in "ab"]
    made = []
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
                made.append(name)
            _ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
            for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
                _ip("link", "set", cable, "netns", name)
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
                _ip("-n", name, "link", "set", cable, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine forbids network namespaces: {error.stderr.strip()}")
        yield Host(names[0], ADDRESSES[0]), Host(names[1], ADDRESSES[1])
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
