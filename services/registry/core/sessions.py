"""One session as the replica that times it sees it: its lease, its newest report, its state."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from services.common.core.ids import AgentId, InstanceId
from services.common.core.instants import Instant, after
from services.registry.core.machine import TABLE, Input, probe_seen_after, read_report
from services.registry.core.model import (
    NO_LEASE,
    AgentState,
    Hello,
    Instance,
    LeaseId,
    Limits,
    LinkId,
    Load,
    SkillLevel,
)

# Transitions that a session remembers, for the story of an invalid one.
_STORY_MAX = 16
# A link may save up this many heartbeats, then it is held to its rate.
_HEARTBEAT_BURST = 20


@dataclass(slots=True, eq=False)
class Session:
    """One incarnation of one instance. Owned by `Registry`, changed by its steps only.

    A session without a link is detached (its link was cut) or adopted (this replica found it in the store,
    and no live replica holds it); its lease runs out unless the agent resumes.
    """

    agent_id: AgentId
    instance_id: InstanceId
    incarnation: int
    # Grows with each link of the instance; with the incarnation it tells a session from its successor.
    reconnects: int
    session_start_time: Instant
    skills: tuple[SkillLevel, ...]
    labels: tuple[tuple[str, str], ...]
    # As wanted; what is published is the record's state, which follows by a commit.
    state: AgentState
    # The last sign of life, or the adoption; the lease counts from here.
    renewed: Instant
    load: Load
    load_time: Instant
    probe_seen: Instant | None = None
    round_trip_us: int = 0
    draining: bool = False
    link: LinkId | None = None
    # Whether it began at a link of this replica.
    owned: bool = False
    # The lease under which its presence key is committed.
    presence_lease: LeaseId = NO_LEASE
    # Of the present link: its last heartbeat's number, and when its next one is due at its highest rate.
    heartbeat_number: int = 0
    heartbeat_due: int = 0
    story: deque[str] = field(default_factory=lambda: deque(maxlen=_STORY_MAX))

    @classmethod
    def open(
        cls, agent_id: AgentId, hello: Hello, incarnation: int, reconnects: int, now: Instant
    ) -> Session:
        """Return the session of a new incarnation."""
        session = cls(
            agent_id,
            hello.instance_id,
            incarnation,
            reconnects,
            session_start_time=now,
            skills=hello.skills,
            labels=hello.labels,
            state=TABLE.start,
            renewed=now,
            load=Load(),
            load_time=now,
            owned=True,
        )
        session.move(Input.OPENED, now)
        return session

    @classmethod
    def adopt(cls, agent_id: AgentId, instance: Instance, now: Instant) -> Session:
        """Return a session that goes on from what is stored; its lease begins anew."""
        return cls(
            agent_id,
            instance.instance_id,
            instance.incarnation,
            instance.reconnects,
            session_start_time=instance.session_start_time,
            skills=instance.skills,
            labels=instance.labels,
            state=instance.state,
            renewed=now,
            load=instance.load,
            load_time=instance.load_time,
            round_trip_us=instance.round_trip_us,
            draining=instance.state is AgentState.DRAINING,
        )

    def resume(self, hello: Hello, reconnects: int, now: Instant) -> Session:
        """Return the same incarnation on a new link."""
        resumed = Session(
            self.agent_id,
            self.instance_id,
            self.incarnation,
            reconnects,
            session_start_time=self.session_start_time,
            skills=hello.skills,
            labels=hello.labels,
            state=self.state,
            renewed=now,
            load=self.load,
            load_time=self.load_time,
            probe_seen=self.probe_seen,
            draining=self.draining,
            owned=True,
        )
        resumed.story.extend(self.story)
        return resumed

    @property
    def subject(self) -> str:
        """Its name in the audit log and in errors."""
        return f"agent/{self.agent_id}/{self.instance_id}"

    def superseded_by(self, instance: Instance) -> bool:
        """Whether `instance` belongs to a later session than this one."""
        return (instance.incarnation, instance.reconnects) > (self.incarnation, self.reconnects)

    def follow(self, instance: Instance) -> None:
        """Take over the state that others committed, if this session is adopted and has no verdict yet.

        Two replicas that adopted the same session would else write their two views of it for ever.
        """
        if not self.owned and self.state.live and self.state is not AgentState.SUSPECT:
            self.state = instance.state

    def move(self, given: Input, now: Instant) -> None:
        """Take the transition that the table has for `given`."""
        before, self.state = self.state, TABLE.next(self.subject, self.state, given, tuple(self.story))
        if before is not self.state:
            self.story.append(f"{now} {before.name} -{given.name}-> {self.state.name}")

    def report(self, load: Load, now: Instant, coordinator_epoch: int, limits: Limits) -> None:
        """Take in a report, which is a sign of life."""
        self.probe_seen = probe_seen_after(self.load, self.probe_seen, load, now)
        self.load, self.load_time, self.renewed = load, now, max(now, self.renewed)
        given = read_report(load, self.probe_seen, now, coordinator_epoch, limits)
        self.move(Input.DRAINING if self.draining else given, now)

    def heartbeat_admitted(self, now: Instant, limits: Limits) -> bool:
        """Whether the link keeps to its rate.

        Method: the generic cell rate algorithm (ITU-T I.371), which needs one number per link.
        """
        interval_ms = 1_000 // limits.heartbeats_per_second_max
        if self.heartbeat_due - now > _HEARTBEAT_BURST * interval_ms:
            return False
        self.heartbeat_due = max(self.heartbeat_due, now) + interval_ms
        return True

    def lease_expire_time(self, floor: Instant, limits: Limits) -> Instant:
        """Return when the lease ends unless renewed; `floor` counts as a renewal of every session."""
        return after(max(self.renewed, floor), limits.lease_ttl_ms)

    def deadline(self, floor: Instant, limits: Limits) -> Instant:
        """Return when silence has its next consequence."""
        silence_ms = limits.lease_ttl_ms if self.state is AgentState.SUSPECT else limits.suspect_after_ms
        return after(max(self.renewed, floor), silence_ms)

    def snapshot(self, floor: Instant, limits: Limits) -> Instance:
        """Return the instance as it would be published."""
        return Instance(
            self.instance_id,
            self.incarnation,
            self.state,
            self.lease_expire_time(floor, limits),
            self.load,
            self.load_time,
            self.session_start_time,
            self.skills,
            self.labels,
            self.round_trip_us,
            self.reconnects,
        )
