"""What the registry's core asks of the outside. Effects of one step are carried out in order."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.core.entries import EntryDraft
from services.common.core.errors import ServiceError
from services.common.core.ids import AgentId, InstanceId
from services.common.core.instants import Instant
from services.registry.core.model import AgentRecord, LeaseId, LinkId


@dataclass(frozen=True, slots=True)
class PresencePut:
    """Set a presence key under the change's lease."""

    instance_id: InstanceId
    incarnation: int
    reconnects: int


@dataclass(frozen=True, slots=True)
class Change:
    """One atomic change of one agent; all of it happens or none.

    It happens only if the agent's record was last written at `expect_record` (0: there is none) and each
    presence key in `expect_presence` at its revision (0: there is none).
    """

    agent_id: AgentId
    expect_record: int
    # None leaves the record as it is.
    record: AgentRecord | None
    # The lease of `present`.
    lease_id: LeaseId
    expect_presence: tuple[tuple[InstanceId, int], ...] = ()
    present: tuple[PresencePut, ...] = ()
    absent: tuple[InstanceId, ...] = ()
    # Incarnation keys to set and to forget.
    incarnations: tuple[tuple[InstanceId, int], ...] = ()
    forgotten: tuple[InstanceId, ...] = ()


@dataclass(frozen=True, slots=True)
class Commit:
    """Make a change durable; answered by `Committed`, `Conflicted` or `CommitFailed`.

    At most one for each agent is unanswered.
    """

    cause: str
    change: Change


@dataclass(frozen=True, slots=True)
class Reload:
    """Read one agent, trying until it works; answered by `Reloaded`."""

    cause: str
    agent_id: AgentId


@dataclass(frozen=True, slots=True)
class Welcome:
    """A session is open; follows its commit."""

    cause: str
    link: LinkId
    session_id: str
    incarnation: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class RefuseOpen:
    """There is no session for this link."""

    cause: str
    link: LinkId
    error: ServiceError


@dataclass(frozen=True, slots=True)
class Ack:
    """A heartbeat was taken; only the newest ack of a link matters."""

    link: LinkId
    sequence_number: int
    lease_expire_time: Instant


@dataclass(frozen=True, slots=True)
class EndLink:
    """Close a link: cleanly after a farewell, else with the reason."""

    cause: str
    link: LinkId
    error: ServiceError | None


@dataclass(frozen=True, slots=True)
class Changed:
    """An agent's published record is another one now."""

    agent_id: AgentId


# An entry is recorded before the answers of the same step are given.
Effect = Commit | Reload | EntryDraft | Welcome | RefuseOpen | Ack | EndLink | Changed
