"""A network namespace for the tests of clusters, with loopback alone: Ray listens on all addresses of its host."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
IFF_UP = 1


def enter_namespace() -> str | None:
    """Move this process into a namespace of its own, unless it is in one. Returns why that is not possible."""
    if not _is_alone():
        if not hasattr(ctypes.CDLL(None), "unshare"):
            return "this system has no network namespaces"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            return f"no network namespace ({reason}): run the tests under `unshare --map-root-user --net`"
    with socket.socket() as probe:
        name = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(probe, SIOCGIFFLAGS, name))[1]
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))
    return None


def _is_alone() -> bool:
    """Whether loopback is the only interface."""
    interfaces = Path("/proc/net/dev")
    return interfaces.exists() and {line.split(":")[0].strip() for line in interfaces.read_text().splitlines()[2:]} == {
        "lo"
    }
