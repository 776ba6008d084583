"""Loopback ports: which are free, and what to say when one is taken."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
# Below this only root may listen, and well-known services live a little above.
_PORT_MIN = 10_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# The lower end of Linux's default ephemeral range.
_EPHEMERAL_DEFAULT = 32_768
_TRIES_MAX = 1_000


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
    """Return `count` different free ports that the system will not give to somebody else by itself.

    A port from `bind(0)` comes from the ephemeral range, where any outgoing connection can take it between
    now and its use; these lie below that range.
    """
    high = max(_ephemeral_low(), _PORT_MIN + 10 * count)
    found: list[int] = []
    for _ in range(_TRIES_MAX):
        if len(found) == count:
            return found
        port = random.randrange(_PORT_MIN, high)
        if port not in found and is_free(port):
            found.append(port)
    raise OSError(f"no {count} free ports between {_PORT_MIN} and {high} on {LOOPBACK}")


def _ephemeral_low() -> int:
    try:
        return int(_EPHEMERAL_RANGE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return _EPHEMERAL_DEFAULT
