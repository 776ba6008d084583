"""What a run of the plane cost: CPU seconds of every process, and what etcd and the leader counted.

Read from outside, at the beginning and at the end of a phase: the CPU clock of each process, etcd's own
metrics (the independent witness of what was committed) and the leading scheduler's. Nothing of it is switched
on for a measurement.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.etcd.channel import EtcdTls
from services.local.certs import PlaneCertificates

_PROCESS_CLOCK = 2
_HTTP_SECONDS_MAX = 10.0

# Name of a counter -> the samples of etcd that are added up for it.
_ETCD_COUNTERS = {
    "transactions": 'grpc_server_handled_total{grpc_code="OK",grpc_method="Txn"',
    "puts": "etcd_mvcc_put_total ",
    "deletes": "etcd_mvcc_delete_total ",
    "received_bytes": "etcd_network_client_grpc_received_bytes_total ",
    "syncs": "etcd_disk_wal_fsync_duration_seconds_count",
    "sync_seconds": "etcd_disk_wal_fsync_duration_seconds_sum",
}
_LEADER_COUNTERS = {
    "batches": "muster_scheduler_batch_events_count",
    "events": "muster_scheduler_batch_events_sum",
    "step_seconds": "muster_scheduler_step_seconds_sum",
    "commits": "muster_scheduler_commit_seconds_count",
    "commit_seconds": "muster_scheduler_commit_seconds_sum",
    "entries": "muster_scheduler_outbox_recorded_entries_total",
    "flushes": "muster_scheduler_outbox_flush_seconds_count",
    "flush_seconds": "muster_scheduler_outbox_flush_seconds_sum",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one instant: process -> CPU seconds, and counters."""

    cpu_s: Mapping[str, float]
    etcd: Mapping[str, float]
    leader: Mapping[str, float]


class Meter:
    """Reads the plane in `home`, whose coordinator is at `coordinator`, and further processes by name."""

    def __init__(self, home: Path, coordinator: str, others: Mapping[str, int]) -> None:
        plane = json.loads((home / "plane.json").read_text("utf-8"))
        self._pids: dict[str, int] = {}
        self._leader = ""
        for process in plane["processes"]:
            name = process["name"]
            if process["address"] == coordinator:
                name, self._leader = "scheduler (leader)", process["metrics_address"]
            elif process["service"] == "etcd":
                self._etcd = process["address"]
            elif process["service"] == "scheduler":
                name = "scheduler (standby)"
            self._pids[name] = process["pid"]
        self._pids |= others
        certificates = PlaneCertificates(home)
        certificate, key = certificates.operator_pair()
        self._plane_tls = EtcdTls(certificates.ca, certificate, key, "scheduler.muster.internal")
        self._etcd_tls = certificates.etcd_client()

    def read(self) -> Reading:
        """Return what everything stands at; blocks for some milliseconds."""
        return Reading(
            {name: cpu_seconds(pid) for name, pid in self._pids.items()},
            _counters(_get(self._etcd, self._etcd_tls), _ETCD_COUNTERS),
            _counters(_get(self._leader, self._plane_tls), _LEADER_COUNTERS),
        )


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process in all its threads; see clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | _PROCESS_CLOCK)


def spent(before: Reading, after: Reading, tasks: int) -> dict[str, float]:
    """Return what each of `tasks` cost between two readings, as named quantities."""
    found = {
        f"cpu_us {name}": (after.cpu_s[name] - begin) / tasks * 1e6 for name, begin in before.cpu_s.items()
    }
    found["cpu_us all"] = sum(found.values())
    etcd = {name: after.etcd[name] - begin for name, begin in before.etcd.items()}
    leader = {name: after.leader[name] - begin for name, begin in before.leader.items()}
    writes = etcd["puts"] + etcd["deletes"]
    return found | {
        "transactions": etcd["transactions"] / tasks,
        "operations": writes / max(1.0, etcd["transactions"]),
        "writes": writes / tasks,
        "bytes": etcd["received_bytes"] / tasks,
        "syncs": etcd["syncs"] / tasks,
        "sync_ms": _mean_ms(etcd["sync_seconds"], etcd["syncs"]),
        "batch_events": leader["events"] / max(1.0, leader["batches"]),
        "batches": leader["batches"] / tasks,
        "step_ms": _mean_ms(leader["step_seconds"], leader["batches"]),
        "commit_ms": _mean_ms(leader["commit_seconds"], leader["commits"]),
        "entries": leader["entries"] / tasks,
        "flush_ms": _mean_ms(leader["flush_seconds"], leader["flushes"]),
    }


def _mean_ms(seconds: float, count: float) -> float:
    return seconds / max(1.0, count) * 1e3


def _counters(text: str, wanted: Mapping[str, str]) -> dict[str, float]:
    found = dict.fromkeys(wanted, 0.0)
    for line in text.splitlines():
        for name, start in wanted.items():
            if line.startswith(start):
                found[name] += float(line.rsplit(" ", 1)[1])
    return found


def _get(address: str, tls: EtcdTls) -> str:
    """Return /metrics of one process; HTTP/1.0, since the certificates carry names and not addresses."""
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.load_cert_chain(str(tls.certificate), str(tls.key))
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), _HTTP_SECONDS_MAX) as plain,
        context.wrap_socket(plain, server_hostname=tls.server_name) as secured,
    ):
        secured.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        parts: list[Any] = []
        while part := secured.recv(1 << 16):
            parts.append(part)
    return b"".join(parts).decode()
