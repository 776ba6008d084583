"""All that a replica knows of one agent: what is committed, what is wanted, what is on its way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.common.core.ids import AgentId, InstanceId
from services.registry.core.effects import Change
from services.registry.core.events import AgentSnapshot, PresenceSeen, RecordSeen
from services.registry.core.model import AgentRecord, Held, Hello, LeaseId, LinkId
from services.registry.core.sessions import Session


@dataclass(slots=True, eq=False)
class PendingOpen:
    """A link that waits for its session."""

    cause: str
    # None when the link was cut meanwhile.
    link: LinkId | None
    hello: Hello


@dataclass(frozen=True, slots=True)
class Opening:
    """One open inside a flight: what it asks, and the session that its commit makes real."""

    pending: PendingOpen
    session: Session
    session_id: str
    resumed: bool
    # The live incarnation that this one ends; 0 for none.
    fenced_incarnation: int


@dataclass(frozen=True, slots=True)
class Flight:
    """A change on its way to the store, with what its commit means here."""

    cause: str
    change: Change
    openings: tuple[Opening, ...]
    # Sessions whose end is in the change.
    ending: tuple[Session, ...]


@dataclass(slots=True, eq=False)
class Slot:
    """One agent. Owned by `Registry`, changed by its steps only."""

    agent_id: AgentId
    # Committed, and the revision of its last write; 0 without a record.
    record: AgentRecord | None = None
    record_revision: int = 0
    # Presence keys; None where the key is known to be gone. A key that is not here was absent at
    # `presence_floor`. Each with the revision at which that became so.
    presence: dict[InstanceId, tuple[int, Held | None]] = field(default_factory=dict)
    presence_floor: int = 0
    # Sessions that this replica times.
    sessions: dict[InstanceId, Session] = field(default_factory=dict)
    waiting: list[PendingOpen] = field(default_factory=list)
    # At most one change is on its way; what the store tells of others' changes meanwhile is kept in
    # `unseen`, by key and the newest only, because it may be this very change.
    flight: Flight | None = None
    # Whether the last change may or may not have happened, and the agent is being read again.
    stale: bool = False
    unseen_record: RecordSeen | None = None
    unseen_presence: dict[InstanceId, PresenceSeen] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether what is committed is known."""
        return self.flight is None and not self.stale

    @property
    def empty(self) -> bool:
        """Whether nothing is known, wanted or on its way."""
        return self.settled and self.record is None and not self.sessions and not self.waiting

    def presence_revision(self, instance_id: InstanceId) -> int:
        """Return the revision of a presence key's last write; 0 when the key is absent."""
        revision, held = self.presence.get(instance_id, (0, None))
        return revision if held is not None else 0

    def held_elsewhere(self, instance_id: InstanceId, lease_id: LeaseId) -> bool:
        """Whether the instance's presence hangs on another lease than `lease_id`."""
        _, held = self.presence.get(instance_id, (0, None))
        return held is not None and held.lease_id != lease_id

    def keep_unseen(self, changes: Iterable[RecordSeen | PresenceSeen]) -> None:
        """Put off what the store tells until this slot is settled."""
        for change in changes:
            if isinstance(change, RecordSeen):
                self.unseen_record = change
            else:
                self.unseen_presence[change.instance_id] = change

    def take_unseen(self) -> None:
        """Take in what was put off, where it is newer than what is known."""
        record, self.unseen_record = self.unseen_record, None
        presence, self.unseen_presence = self.unseen_presence, {}
        if record is not None:
            self.observe(record)
        for one in presence.values():
            self.observe(one)
        # Instances come and go under ever new names: what is gone from both is not remembered.
        known = {one.instance_id for one in self.record.instances} if self.record else set()
        gone = [name for name, (_, held) in self.presence.items() if held is None and name not in known]
        for name in gone:
            del self.presence[name]

    def observe(self, change: RecordSeen | PresenceSeen) -> None:
        """Take in one change of the store unless something newer is known."""
        if isinstance(change, RecordSeen):
            if change.revision > self.record_revision:
                self.record = change.record
                self.record_revision = change.revision if change.record is not None else 0
            return
        known, _ = self.presence.get(change.instance_id, (self.presence_floor, None))
        if change.revision > known:
            self.presence[change.instance_id] = (change.revision, change.held)

    def install(self, snapshot: AgentSnapshot) -> None:
        """Replace all that is known of the store by a snapshot that is newer."""
        self.record, self.record_revision = snapshot.record, snapshot.record_revision
        self.presence = {name: (revision, held) for name, revision, held in snapshot.presence}
        self.presence_floor = snapshot.read_revision

    def install_commit(self, flight: Flight, revision: int) -> None:
        """Take in this replica's own change, which happened at `revision`."""
        change = flight.change
        if change.record is not None:
            self.record, self.record_revision = change.record, revision
        for put in change.present:
            held = Held(put.incarnation, put.reconnects, change.lease_id)
            self.presence[put.instance_id] = (revision, held)
        for name in change.absent:
            self.presence[name] = (revision, None)
