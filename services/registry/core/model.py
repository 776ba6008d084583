"""The registry's nouns: agents, their instances, what these report, and the limits of it all."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import NewType

from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.core.instants import Instant

# The protocol versions that this registry speaks, newest first.
VERSIONS = (1,)

# One open Session stream of this replica; numbered by the driver, never reused in one process.
LinkId = NewType("LinkId", int)
# An etcd lease; `NO_LEASE` where there is none.
LeaseId = NewType("LeaseId", int)
NO_LEASE = LeaseId(0)


class AgentState(Enum):
    """The life cycle of one instance; the names are those of `muster.registry.v1.AgentState`."""

    JOINING = "joining"
    READY = "ready"
    BUSY = "busy"
    SUSPECT = "suspect"
    DRAINING = "draining"
    LOST = "lost"
    OFFLINE = "offline"

    @property
    def live(self) -> bool:
        """Whether there is a session."""
        return self not in _ENDED


_ENDED = frozenset({AgentState.LOST, AgentState.OFFLINE})

# From the most useful to a scheduler to the least; an agent's state is that of its best instance. A loss
# comes before a farewell so that it is seen.
BEST_FIRST = (
    AgentState.READY,
    AgentState.BUSY,
    AgentState.JOINING,
    AgentState.DRAINING,
    AgentState.SUSPECT,
    AgentState.LOST,
    AgentState.OFFLINE,
)


@dataclass(frozen=True, slots=True, order=True)
class SkillLevel:
    """A skill and its declared level, 0 < level <= 1."""

    name: Skill
    level: float = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """What an instance reports of itself."""

    # Attempts at once, and those that run now.
    slots: int = 0
    slots_used: int = 0
    # Share of one machine's CPU, 0 to 1, and resident memory; None when not measured.
    cpu_ratio: float | None = None
    memory_bytes: int | None = None
    work_stream_open: bool = False
    # Epoch of the coordinator at the other end of the work stream; 0 when unknown or closed.
    coordinator_epoch: int = 0
    # By the agent's clock.
    last_probe_time: Instant | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of an agent, as it is published and stored."""

    instance_id: InstanceId
    incarnation: int
    state: AgentState
    # When the lease ends unless renewed; of an ended instance, when it ended.
    lease_expire_time: Instant
    load: Load
    load_time: Instant
    session_start_time: Instant
    # Sorted by name.
    skills: tuple[SkillLevel, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    round_trip_us: int = 0
    # Sessions after the first one; grows with every open and every resume.
    reconnects: int = 0


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """One agent and its instances: the unit of storage, of compare-and-set and of publication."""

    agent_id: AgentId
    register_time: Instant
    # Union over the live instances, or the last known ones; sorted by name.
    skills: tuple[SkillLevel, ...]
    generation: int
    # Sorted by instance_id.
    instances: tuple[Instance, ...]

    def instance(self, instance_id: InstanceId) -> Instance | None:
        """Return one instance, or None."""
        return next((one for one in self.instances if one.instance_id == instance_id), None)


@dataclass(frozen=True, slots=True)
class Held:
    """A presence key: which incarnation, by which of its sessions, under which replica's lease."""

    incarnation: int
    reconnects: int
    lease_id: LeaseId


@dataclass(frozen=True, slots=True)
class HelloFields:
    """What an agent says to open a session, as it came."""

    versions: tuple[int, ...] = VERSIONS
    agent_id: str = ""
    instance_id: str = ""
    skills: tuple[SkillLevel, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    resume_session_id: str = ""
    load: Load = Load()


@dataclass(frozen=True, slots=True)
class Hello:
    """What an agent says to open a session, as it was admitted."""

    instance_id: InstanceId
    skills: tuple[SkillLevel, ...]
    labels: tuple[tuple[str, str], ...] = ()
    # Empty for a new incarnation.
    resume_session_id: str = ""
    load: Load = Load()


@dataclass(frozen=True, slots=True)
class Limits:
    """Every time and bound that decides something; config.py has the defaults and the reasons."""

    lease_ttl_ms: int = 10_000
    suspect_after_ms: int = 5_000
    probe_window_ms: int = 10_000
    pause_ms_max: int = 2_000
    ended_retention_ms: int = 3_600_000
    sessions_max: int = 20_000
    agents_max: int = 100_000
    instances_live_max: int = 64
    instances_ended_max: int = 16
    heartbeats_per_second_max: int = 20


def session_id_of(agent_id: AgentId, register_time: Instant, instance: Instance) -> str:
    """Return the session id of an instance's present incarnation.

    Derived from what is durable, so that any replica can verify it after any crash. It is no secret: to
    resume, the agent's certificate is needed too. The two times tell apart incarnations of equal number
    from before and after a loss of etcd's data.
    """
    facts = (agent_id, instance.instance_id, instance.incarnation, instance.session_start_time, register_time)
    digest = hashlib.sha256("\0".join(map(str, facts)).encode()).digest()[:15]
    return f"{instance.incarnation}.{base64.b32encode(digest).decode('ascii').lower()}"
