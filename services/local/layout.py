"""Where everything of a plane is: its replicas, their ports, its files. Pure; nothing here touches the disk.

The folder (0700), its keys 0600:

    context.json      what agents and the `muster` command need to find the plane
    plane.json        what runs now: process ids and addresses; absent when nothing does
    lock              held by the launcher
    config/<replica>.toml   logs/<replica>.log   data/<replica>/
    certificates: see certs.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.local.ports import LOOPBACK

ETCD = "etcd"
_ETCD_CLIENT_OFFSET = 0
_ETCD_PEER_OFFSET = 9
_METRICS_OFFSET = 50
PORT_BASE_MIN = 1_024
# The highest port is that of the last scheduler's metrics, 62 above the base.
PORT_BASE_MAX = 65_535 - 62


@dataclass(frozen=True, slots=True)
class Replica:
    """One service process: `port_offset` is added to the port base."""

    service: str
    replica_id: str
    port_offset: int


# In stages: each is started after the one before it and stopped before it. Audit outlives the others, so that
# what they record while they drain is still taken.
STAGES: tuple[tuple[Replica, ...], ...] = (
    (Replica("audit", "audit-1", 4),),
    (Replica("registry", "registry-1", 1), Replica("broker", "broker-1", 3)),
    (Replica("scheduler", "scheduler-1", 2), Replica("scheduler", "scheduler-2", 12)),
)
REPLICAS = tuple(replica for stage in STAGES for replica in stage)
SERVICES = tuple(dict.fromkeys(replica.service for replica in REPLICAS))


@dataclass(frozen=True, slots=True)
class Ports:
    """Every port of a plane, all on the loopback address."""

    etcd_client: int
    etcd_peer: int
    # replica id -> port
    grpc: dict[str, int]
    metrics: dict[str, int]

    @classmethod
    def from_base(cls, base: int) -> Ports:
        """Return the ports of `--port-base`; raises ValueError when they would not fit."""
        if not PORT_BASE_MIN <= base <= PORT_BASE_MAX:
            raise ValueError(
                f"port base {base} is not between {PORT_BASE_MIN} and {PORT_BASE_MAX} (0 takes free ports)"
            )
        grpc = {replica.replica_id: base + replica.port_offset for replica in REPLICAS}
        return cls(
            base + _ETCD_CLIENT_OFFSET,
            base + _ETCD_PEER_OFFSET,
            grpc,
            {replica_id: port + _METRICS_OFFSET for replica_id, port in grpc.items()},
        )

    @classmethod
    def from_free(cls, ports: Sequence[int]) -> Ports:
        """Hand out `PORT_COUNT` free ports."""
        left = list(ports)
        return cls(
            left.pop(),
            left.pop(),
            {replica.replica_id: left.pop() for replica in REPLICAS},
            {replica.replica_id: left.pop() for replica in REPLICAS},
        )

    def purposes(self) -> dict[int, str]:
        """Return port -> what it is for, in the words of a message."""
        found = {self.etcd_client: "etcd", self.etcd_peer: "etcd's peers"}
        found |= {port: replica_id for replica_id, port in self.grpc.items()}
        return found | {port: f"the metrics of {replica_id}" for replica_id, port in self.metrics.items()}

    def address(self, replica_id: str) -> str:
        """Return host:port of a replica's gRPC listener."""
        return f"{LOOPBACK}:{self.grpc[replica_id]}"

    def metrics_address(self, replica_id: str) -> str:
        """Return host:port of a replica's Prometheus listener."""
        return f"{LOOPBACK}:{self.metrics[replica_id]}"


PORT_COUNT = 2 + 2 * len(REPLICAS)


@dataclass(frozen=True, slots=True)
class Places:
    """The files of one plane, below `directory`."""

    directory: Path

    @property
    def lock(self) -> Path:
        """Held by the launcher as long as it lives."""
        return self.directory / "lock"

    @property
    def state(self) -> Path:
        """What runs now."""
        return self.directory / "plane.json"

    @property
    def context(self) -> Path:
        """What agents and the `muster` command read."""
        return self.directory / "context.json"

    def config(self, replica_id: str) -> Path:
        """A replica's settings."""
        return self.directory / "config" / f"{replica_id}.toml"

    def log(self, name: str) -> Path:
        """A process's log."""
        return self.directory / "logs" / f"{name}.log"

    @property
    def all_data(self) -> Path:
        """The folder of what all processes own."""
        return self.directory / "data"

    def data(self, name: str) -> Path:
        """The files that a process owns."""
        return self.all_data / name
