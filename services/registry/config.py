"""Every knob of the registry: unit, default, reason."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.config import knob
from services.common.service_config import ServiceConfig
from services.registry.core.model import Limits

# An agent's record must fit into one etcd request of 1.5 MiB; an instance with every skill and label at its
# longest takes about 13 KB.
_RECORD_INSTANCES_MAX = 100


@dataclass(frozen=True, kw_only=True)
class RegistryConfig(ServiceConfig):
    """Settings of the registry."""

    lease_ttl_ms: int = knob(
        10_000, "How long a session lives without a heartbeat; then the instance is lost.", unit="ms"
    )
    heartbeat_interval_ms: int = knob(
        2_000, "How often agents are told to send heartbeats: five in a lease, so four may fail.", unit="ms"
    )
    suspect_after_ms: int = knob(
        5_000, "Silence after which an instance is suspect: two heartbeats missed, and a half.", unit="ms"
    )
    probe_window_ms: int = knob(
        10_000, "A ready instance has answered a probe of the coordinator within this time.", unit="ms"
    )
    pause_ms_max: int = knob(
        2_000,
        "When this process ran late by more (stopped, starved), every lease begins anew.",
        unit="ms",
    )
    presence_ttl_s: int = knob(
        5, "How long presence outlives a replica that crashed; others then take its sessions over.", unit="s"
    )
    ended_retention_ms: int = knob(
        3_600_000, "How long an instance is shown after it was lost or said farewell.", unit="ms"
    )
    instances_ended_max: int = knob(16, "Ended instances of one agent that are kept; the oldest go first.")
    instances_live_max: int = knob(64, "Live instances of one agent; more are refused.")
    agents_max: int = knob(100_000, "Agents that ever registered; a new one beyond it is refused.")
    sessions_max: int = knob(20_000, "Sessions of this replica; about 0.1 MB each with their connections.")
    heartbeats_per_second_max: int = knob(
        20, "Rate of one session's heartbeats, in bursts of twenty; a faster stream is ended."
    )
    watchers_max: int = knob(64, "WatchAgents streams at once; each remembers which agents it must be sent.")
    hello_timeout_ms: int = knob(10_000, "How long a Session stream may wait with its hello.", unit="ms")
    open_timeout_ms: int = knob(
        10_000, "How long a hello may wait for its commit; then the agent tries again.", unit="ms"
    )
    drain_ms: int = knob(3_000, "How long calls may go on after a stop was asked for.", unit="ms")

    def __post_init__(self) -> None:
        """Check the settings; raises ValueError."""
        super().__post_init__()
        if not 2 * self.heartbeat_interval_ms <= self.suspect_after_ms < self.lease_ttl_ms:
            raise ValueError(
                "suspect_after_ms must leave room for two heartbeats (heartbeat_interval_ms) and be less "
                "than lease_ttl_ms"
            )
        if self.instances_live_max + self.instances_ended_max > _RECORD_INSTANCES_MAX:
            raise ValueError(
                f"instances_live_max and instances_ended_max together must be at most {_RECORD_INSTANCES_MAX}"
            )
        if not 1 <= self.heartbeats_per_second_max <= 1_000:
            raise ValueError("heartbeats_per_second_max must be 1 to 1000")
        for name in ("presence_ttl_s", "instances_live_max", "agents_max", "sessions_max", "probe_window_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")

    @property
    def limits(self) -> Limits:
        """What the core decides by."""
        return Limits(
            lease_ttl_ms=self.lease_ttl_ms,
            suspect_after_ms=self.suspect_after_ms,
            probe_window_ms=self.probe_window_ms,
            pause_ms_max=self.pause_ms_max,
            ended_retention_ms=self.ended_retention_ms,
            sessions_max=self.sessions_max,
            agents_max=self.agents_max,
            instances_live_max=self.instances_live_max,
            instances_ended_max=self.instances_ended_max,
            heartbeats_per_second_max=self.heartbeats_per_second_max,
        )
