"""A real etcd for tests: embedded, TLS with client certificates, synced to disk."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.common.etcd.channel import EtcdTls
from services.common.etcd.client import EtcdClient
from services.local.certs import PlaneCertificates
from services.local.etcd_server import EtcdMember, EtcdServer, find_etcd
from services.local.ports import free_ports


class EtcdHarness:
    """One or several members that a test may kill, stop and restart.

    `client()` must be called inside the event loop that uses it, and closed (`async with`).
    """

    def __init__(self, directory: Path, *, members: int = 1) -> None:
        self.certificates = PlaneCertificates(directory / "certificates")
        self.certificates.prepare(())
        ports = free_ports(2 * members)
        places = [
            EtcdMember(
                f"etcd-{index}",
                directory / f"etcd-{index}",
                directory / f"etcd-{index}.log",
                *ports[2 * index : 2 * index + 2],
            )
            for index in range(members)
        ]
        files = self.certificates.etcd_server()
        binary = find_etcd()
        self.servers = [EtcdServer(binary, place, files, self.tls, places) for place in places]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """host:port of every member."""
        return tuple(server.member.endpoint for server in self.servers)

    @property
    def tls(self) -> EtcdTls:
        """The files of a client that etcd admits."""
        return self.certificates.etcd_client()

    def client(self, *, request_timeout_s: float = 5.0) -> EtcdClient:
        """Return a new client of every member."""
        return EtcdClient(self.endpoints, self.tls, request_timeout_s=request_timeout_s)

    def start(self) -> None:
        """Start every member that does not run and wait until all answer; blocks, for fixtures."""
        self._start_processes()
        # In a thread of its own: an async fixture that asks for this one already runs an event loop. The
        # processes are started here, because they end with the thread that started them.
        with ThreadPoolExecutor(max_workers=1) as pool:
            pool.submit(asyncio.run, self._wait_ready()).result()

    async def restart(self) -> None:
        """Start killed members again, on the same data and ports, and wait until all answer."""
        self._start_processes()
        await self._wait_ready()

    def kill(self, index: int = 0) -> None:
        """Kill a member as a power cut would."""
        self.servers[index].kill()

    def pause(self, index: int = 0) -> None:
        """Stop a member without ending it (SIGSTOP): connections stay, nothing answers."""
        self.servers[index].signal(signal.SIGSTOP)

    def resume(self, index: int = 0) -> None:
        """Let a paused member go on."""
        self.servers[index].signal(signal.SIGCONT)

    def stop(self) -> None:
        """End every member."""
        for server in self.servers:
            if server.child is not None:
                server.child.kill()

    def _start_processes(self) -> None:
        for server in self.servers:
            if server.child is None or server.child.exit_code is not None:
                server.start()

    async def _wait_ready(self) -> None:
        for server in self.servers:
            await server.wait_ready()


@contextlib.contextmanager
def running_etcd(directory: Path, *, members: int = 1) -> Iterator[EtcdHarness]:
    """Run etcd for the length of a `with` block."""
    harness = EtcdHarness(directory, members=members)
    try:
        harness.start()
        yield harness
    finally:
        harness.stop()
