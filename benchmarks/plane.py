"""Our own side of the comparisons: a whole local plane, or only its certificates."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.programs import Program, ProgramFailedError, module, running
from services.common.identity import Principal
from services.common.tls import TlsIdentity
from services.local.certs import PlaneCertificates
from services.local.layout import SERVICES


@dataclass(frozen=True, slots=True)
class RunningPlane:
    """A plane that serves; `home` is what agents know as $MUSTER_HOME."""

    home: Path
    # replica id -> host:port
    addresses: dict[str, str]
    # host:port
    etcd: str
    # The launcher, which says what happens to the parts, and what it said before all was ready.
    program: Program
    events: tuple[dict[str, Any], ...]


def certificates(directory: Path, agents: Sequence[str]) -> PlaneCertificates:
    """Make a plane's certificates and those of `agents`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = PlaneCertificates(directory)
    made.prepare(SERVICES)
    for name in agents:
        made.issue(Principal("agent", name))
    return made


def agent_tls(home: Path, name: str) -> TlsIdentity:
    """Return an agent's TLS identity from a plane's folder."""
    return TlsIdentity(home / "ca.crt", home / "agents" / f"{name}.crt", home / "agents" / f"{name}.key")


def operator_tls(home: Path) -> TlsIdentity:
    """Return the operator's TLS identity from a plane's folder."""
    return TlsIdentity(home / "ca.crt", home / "operators" / "admin.crt", home / "operators" / "admin.key")


@asynccontextmanager
async def running_plane(
    folder: Path, agents: Sequence[str], environ: Mapping[str, str] | None = None
) -> AsyncIterator[RunningPlane]:
    """Start etcd and every service as processes of their own; stop them when the block ends.

    `environ` adds to their environment, for settings such as MUSTER_BROKER_AUDIT_MESSAGES.
    """
    home = folder / "plane"
    certificates(home, agents)
    command = module(
        "services.local", "up", "--directory", home, "--port-base", 0, "--json-events", "--until-stdin-ends"
    )
    async with running("plane", command, folder, environ) as program:
        events = []
        while (event := await program.next_event())["event"] != "ready":
            events.append(event)
            if event["event"] == "failed":
                raise ProgramFailedError(f"the plane did not start: {event['message']}")
        yield RunningPlane(home, event["addresses"], event["etcd"], program, tuple(events))


def service_process(service: str) -> psutil.Process:
    """Return the process of a service of the plane that this process started."""
    for child in psutil.Process().children(recursive=True):
        if f"services.{service}" in child.cmdline():
            return child
    raise ProgramFailedError(f"no process of {service} was found")
