"""The network interface by which several machines talk."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable

VARIABLE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def tell_gloo(lines: Iterable[socket.socket]) -> None:
    """Lets gloo use the interface of these connections, where the user has named none.

    By itself it takes the one of the address that the host's name has, which on many a machine is 127.0.1.1: then
    the others try to reach this process on their own loopback.
    """
    if VARIABLE in os.environ:
        return
    for line in lines:
        address = str(line.getsockname()[0]).removeprefix("::ffff:")
        name = None if address.startswith("127.") else interface_of(address)
        if name is not None:
            os.environ[VARIABLE] = name
            return


def interface_of(address: str) -> str | None:
    """The name of the interface that has an IPv4 address; None where there is none, or no such question."""
    try:
        import fcntl
    except ImportError:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None
