"""What happens to a plane, as one JSON object per event or as lines for a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TextIO

Emit = Callable[["PlaneEvent"], None]


@dataclass(frozen=True, slots=True)
class PlaneEvent:
    """One event; `kind` is one of the keys of `TEXTS`, `facts` are JSON values.

    starting    directory
    serving     name, pid, address, took_ms
    coordinator replica_id, address, epoch
    ready       directory, context, registry, etcd, addresses, metrics_addresses, logs, command lines
    crashed     name, story, retry_ms
    restarted   name, pid
    asked       pid: `down` asked a launcher to stop
    stopping    -
    killed      name: it did not end by itself in time
    stopped     -
    failed      message
    certified   directory
    issued      name, certificate, key
    part        name, pid, address, state (of `status`)
    """

    kind: str
    facts: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the event as one line without its newline."""
        return json.dumps({"event": self.kind, **self.facts}, ensure_ascii=False)

    def to_text(self) -> str:
        """Return the event as a person wants to read it."""
        return TEXTS[self.kind].format(**self.facts)


TEXTS = {
    "starting": "Muster: starting the control plane in {directory}",
    "serving": "  {name:<12} {address:<16} serving after {took_ms} ms",
    "coordinator": "  coordinator  {address:<16} {replica_id} leads with epoch {epoch}",
    "ready": (
        "The plane is up. Ctrl-C stops it.\n"
        "\n"
        "  use it from another terminal   export MUSTER_HOME={directory}\n"
        "  a certificate for your agent   {issue_command}\n"
        "  look inside with grpcurl       {grpcurl_command}\n"
        "  look inside with etcdctl       {etcdctl_command}\n"
        "  read the logs                  {logs}/"
    ),
    "crashed": "  {name} crashed; it is started again in {retry_ms} ms. {story}",
    "restarted": "  {name} serves again (pid {pid})",
    "asked": "Asking the plane's launcher (pid {pid}) to stop",
    "stopping": "Stopping the plane; Ctrl-C again ends it at once",
    "killed": "  {name} did not end in time and was killed",
    "stopped": "The plane is stopped.",
    "failed": "Muster: {message}",
    "certified": "Certificates of both authorities are in {directory}; keep the keys private",
    "issued": "{name}\n  certificate  {certificate}\n  key          {key}",
    "part": "  {name:<12} {address:<16} pid {pid:<8} {state}",
}


def printer(stream: TextIO, complaints: TextIO, *, as_json: bool) -> Emit:
    """Return what prints events to `stream`, each at once; a failure's text goes to `complaints`."""

    def emit(event: PlaneEvent) -> None:
        out = complaints if event.kind == "failed" and not as_json else stream
        out.write((event.to_json() if as_json else event.to_text()) + "\n")
        out.flush()

    return emit
