"""The servers of the peers: found, started on a free loopback port with data in our folder, stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.programs import ROOT, Program, ProgramFailedError, running
from benchmarks.turns import MissingPeerError
from services.local.certs import PlaneCertificates
from services.local.ports import LOOPBACK, free_ports

ENVIRONMENT = ROOT / ".bench-venv"
_DEBIAN = ENVIRONMENT / "debian"
_READY_S_MAX = 20.0
_POLL_S = 0.02


def peer_python() -> str:
    """Return the Python of the peers' environment. Raises `MissingPeerError`."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        raise MissingPeerError("its Python packages are not here: run `make bench-peers`")
    return str(python)


def peer_script(name: str, *arguments: object) -> list[str]:
    """Return the command that runs one of `benchmarks/peers` with the peers' Python."""
    return [peer_python(), str(ROOT / "benchmarks" / "peers" / f"{name}.py"), *map(str, arguments)]


def find_server(name: str) -> tuple[str, dict[str, str]]:
    """Return a server's path and what its environment needs. Raises `MissingPeerError`."""
    for folder in ("usr/sbin", "usr/bin"):
        unpacked = _DEBIAN / folder / name
        if unpacked.exists():
            libraries = [str(path) for path in (_DEBIAN / "usr/lib").glob("*-linux-gnu")]
            return str(unpacked), {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    installed = shutil.which(name)
    if installed is None:
        raise MissingPeerError(f"no {name} here: run `make bench-peers`, or install it so that it is on PATH")
    return installed, {}


class TlsFiles(NamedTuple):
    """An authority, and what it signed for a peer's server and for its clients: both sides show one."""

    ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]

    @classmethod
    def make(cls, folder: Path) -> TlsFiles:
        """Make them in `folder`, of the same kind as a plane's."""
        made = PlaneCertificates(folder)
        made.prepare(("peer",))
        services, operators = folder / "services", folder / "operators"
        return cls(
            made.ca,
            (services / "peer.crt", services / "peer.key"),
            (operators / "admin.crt", operators / "admin.key"),
        )

    def client_arguments(self) -> list[str]:
        """What the scripts of the peers take."""
        return ["--tls", *map(str, (self.ca, *self.client))]


@asynccontextmanager
async def jetstream(folder: Path, tls: TlsFiles | None = None) -> AsyncIterator[int]:
    """Run a NATS server with JetStream on files; yield its port. With `tls` it asks clients for theirs."""
    server, environ = find_server("nats-server")
    (port,) = free_ports(1)
    command = [server, "--addr", LOOPBACK, "--port", str(port), "--jetstream", "--store_dir", str(folder)]
    if tls is not None:
        certificate, key = map(str, tls.server)
        command += ["--tlsverify", "--tlscacert", str(tls.ca), "--tlscert", certificate, "--tlskey", key]
    async with running("nats-server", command, folder, environ) as program:
        await _wait_listening(program, port)
        yield port


@asynccontextmanager
async def redis(folder: Path, *, durable: bool, tls: TlsFiles | None = None) -> AsyncIterator[int]:
    """Run a Redis server; yield its port. `durable`: each write is in the append-only file, and synced.

    With `tls` it listens with TLS alone, and asks clients for their certificate.
    """
    server, environ = find_server("redis-server")
    (port,) = free_ports(1)
    command = [server, "--bind", LOOPBACK, "--dir", str(folder), "--save", ""]
    if tls is None:
        command += ["--port", str(port)]
    else:
        certificate, key = map(str, tls.server)
        command += ["--port", "0", "--tls-port", str(port), "--tls-ca-cert-file", str(tls.ca)]
        command += ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "yes"]
    if durable:
        command += ["--appendonly", "yes", "--appendfsync", "always"]
    async with running("redis-server", command, folder, environ) as program:
        await _wait_listening(program, port)
        yield port


async def _wait_listening(program: Program, port: int) -> None:
    try:
        async with asyncio.timeout(_READY_S_MAX):
            while not await _is_listening(port):
                if program.has_ended:
                    raise ProgramFailedError(f"{program.name} ended at once; see {program.log}")
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise ProgramFailedError(f"{program.name} does not listen after {_READY_S_MAX:.0f} s") from None


async def _is_listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
