"""A plane in a process of its own, started by the command that users run; for tests that share one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.identity import Principal
from services.common.tls import TlsIdentity
from services.local.certs import PlaneCertificates
from services.local.layout import Places

ROOT = Path(__file__).parents[2]
STOP_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Launched:
    """What `python -m services.local up` said when it was ready; safe to use from any event loop."""

    home: Path
    facts: Mapping[str, Any]

    @property
    def addresses(self) -> Mapping[str, str]:
        """Name of a replica -> host:port of its gRPC listener."""
        addresses: Mapping[str, str] = self.facts["addresses"]
        return addresses

    def pids(self) -> dict[str, int]:
        """Return the process id of each part as it is now."""
        state = json.loads(Places(self.home).state.read_text(encoding="utf-8"))
        return {str(row["name"]): int(row["pid"]) for row in state["processes"]}

    def tls(self, principal: str) -> TlsIdentity:
        """Return the identity of "operator/admin", "service/NAME" or "agent/NAME" (issued when missing)."""
        kind, _, name = principal.partition("/")
        folder = self.home / f"{kind}s"
        if not (folder / f"{name}.crt").exists():
            PlaneCertificates(self.home).issue(Principal(kind, name))
        return TlsIdentity(self.home / "ca.crt", folder / f"{name}.crt", folder / f"{name}.key")


@contextlib.contextmanager
def launched_plane(home: Path) -> Iterator[Launched]:
    """Run a plane in `home` on free ports for the length of a `with`."""
    command = [sys.executable, "-m", "services.local", "up", "--directory", str(home), "--port-base", "0"]
    process = subprocess.Popen(
        [*command, "--json-events", "--until-stdin-ends"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen")])},
    )
    assert process.stdout is not None
    try:
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "ready":
                break
        else:
            raise AssertionError(f"the plane did not get ready: {events}")
        yield Launched(home, events[-1])
    finally:
        # Its standard input ends here, and with it the plane.
        process.communicate(timeout=STOP_S_MAX)
    assert process.returncode == 0, f"the plane ended with {process.returncode}"
