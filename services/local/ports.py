"""Loopback ports: which are free, and what to say when one is taken."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

LOOPBACK = "127.0.0.1"
# Below this only root may listen, and well-known services live a little above.
_PORT_MIN = 10_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# The lower end of Linux's default ephemeral range.
_EPHEMERAL_DEFAULT = 32_768
#: Ports next to each other that one process draws from; see `free_ports`.
BLOCK = 64


class PortTakenError(Exception):
    """Another program listens where a part of the plane should."""

    def __init__(self, port: int, purpose: str) -> None:
        self.port, self.purpose = port, purpose
        super().__init__(
            f"port {port} for {purpose} is taken by another program; see which with "
            f"`ss -ltnp 'sport = :{port}'`, then stop it, or choose other ports with --port-base N "
            "(0 takes free ones)"
        )


def is_free(port: int) -> bool:
    """Return whether a listener could be opened on `port` of the loopback address."""
    with socket.socket() as probe:
        # Connections of an earlier plane that linger in TIME_WAIT do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Return `count` different free ports that nobody else is given; raises `OSError` when there are none.

    A port from `bind(0)` comes from the ephemeral range, where any outgoing connection can take it between
    now and its use; these lie below that range. And two processes that look at the same moment would both
    find the same port free: so each draws from blocks of its own, and holds the first port of a block for as
    long as it lives to say that the others are taken.
    """
    found: list[int] = []
    while len(found) < count:
        port = next(_draws)
        if port not in found and is_free(port):
            found.append(port)
    return found


def _draw() -> Iterator[int]:
    """Yield the ports of one block after the other.

    Two blocks are held: what was drawn last of the older one may not be in use yet.
    """
    with contextlib.ExitStack() as older:
        while True:
            holder = _hold_block()
            first: int = holder.getsockname()[1]
            yield from range(first + 1, first + BLOCK)
            older.close()
            older.enter_context(holder)


def _hold_block() -> socket.socket:
    """Return a socket on the first port of a block that no other process holds."""
    end = max(_ephemeral_low(), _PORT_MIN + BLOCK)
    firsts = range(_PORT_MIN, end - BLOCK + 1, BLOCK)
    for first in random.sample(firsts, len(firsts)):
        holder = socket.socket()
        try:
            # Bound and no more: nobody can connect to it, and nobody else can bind it.
            holder.bind((LOOPBACK, first))
        except OSError:
            holder.close()
        else:
            return holder
    raise OSError(
        f"no free ports between {_PORT_MIN} and {end} on {LOOPBACK}: stop planes that are not needed, or "
        "choose ports with --port-base N"
    )


_draws = _draw()


def _ephemeral_low() -> int:
    try:
        return int(_EPHEMERAL_RANGE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return _EPHEMERAL_DEFAULT
