"""What can happen to the registry. `cause` says why, on everything that follows from an event."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.core.errors import Reason
from services.common.core.ids import AgentId, InstanceId
from services.registry.core.model import AgentRecord, Held, HelloFields, LeaseId, LinkId, Load

# From agents.


@dataclass(frozen=True, slots=True)
class OpenRequested:
    """A link's first frame: an agent wants a session."""

    cause: str
    link: LinkId
    # From the certificate.
    agent_id: AgentId
    hello: HelloFields


@dataclass(frozen=True, slots=True)
class LinkRefused:
    """A link ended before its hello: what came was none."""

    cause: str
    agent_id: AgentId
    reason: Reason


@dataclass(frozen=True, slots=True)
class HeartbeatReceived:
    """A report that renews the lease."""

    cause: str
    link: LinkId
    sequence_number: int
    load: Load
    round_trip_us: int = 0


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The agent takes nothing new."""

    cause: str
    link: LinkId


@dataclass(frozen=True, slots=True)
class FarewellReceived:
    """The agent leaves."""

    cause: str
    link: LinkId


@dataclass(frozen=True, slots=True)
class LinkCut:
    """A link ended, whatever the reason; says nothing about the agent: its lease goes on."""

    cause: str
    link: LinkId


# From the clock.


@dataclass(frozen=True, slots=True)
class Tick:
    """It may be time for what `next_deadline` announced."""

    cause: str


# From the store. Revisions are the store's; each is the answer to one effect, or unasked.


@dataclass(frozen=True, slots=True)
class Committed:
    """The agent's change is durable, at `revision`."""

    cause: str
    agent_id: AgentId
    revision: int


@dataclass(frozen=True, slots=True)
class AgentSnapshot:
    """All that the store has about one agent, as of `read_revision`."""

    agent_id: AgentId
    read_revision: int
    record: AgentRecord | None
    # Revision of the record's last write; 0 without a record.
    record_revision: int
    # Each presence key with the revision of its last write.
    presence: tuple[tuple[InstanceId, int, Held], ...] = ()


@dataclass(frozen=True, slots=True)
class Conflicted:
    """The agent's change was refused because somebody else changed the agent; nothing was written."""

    cause: str
    snapshot: AgentSnapshot


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """Whether the agent's change happened is unknown."""

    cause: str
    agent_id: AgentId
    message: str


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The answer to `Reload`."""

    cause: str
    snapshot: AgentSnapshot


@dataclass(frozen=True, slots=True)
class RecordSeen:
    """An agent's record as written (None: deleted) at `revision`."""

    agent_id: AgentId
    revision: int
    record: AgentRecord | None


@dataclass(frozen=True, slots=True)
class PresenceSeen:
    """A presence key as written (None: deleted, or its lease ended) at `revision`."""

    agent_id: AgentId
    instance_id: InstanceId
    revision: int
    held: Held | None


@dataclass(frozen=True, slots=True)
class Observed:
    """Changes in the store, ours and others', each revision whole, in order."""

    cause: str
    changes: tuple[RecordSeen | PresenceSeen, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything in the store as of `revision`: at the start, and after a gap in what is observed."""

    cause: str
    revision: int
    agents: tuple[AgentSnapshot, ...]


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """This replica's presence keys hang on this lease from now on."""

    cause: str
    lease_id: LeaseId


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """This replica's lease ended, or may have; its presence keys go."""

    cause: str


@dataclass(frozen=True, slots=True)
class CoordinatorSeen:
    """A scheduler replica leads with this epoch."""

    cause: str
    epoch: int


Event = (
    OpenRequested
    | LinkRefused
    | HeartbeatReceived
    | DrainRequested
    | FarewellReceived
    | LinkCut
    | Tick
    | Committed
    | Conflicted
    | CommitFailed
    | Reloaded
    | Observed
    | Loaded
    | LeaseGranted
    | LeaseEnded
    | CoordinatorSeen
)
