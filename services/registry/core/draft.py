"""The next change of one agent, made from what is committed and what is wanted.

Nothing is taken in here: if the change conflicts, it is drafted again from what the store has by then.
"""

from __future__ import annotations

from dataclasses import replace

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import InstanceId
from services.common.core.instants import Instant
from services.registry.core.effects import Change, PresencePut
from services.registry.core.matching import union_of_skills
from services.registry.core.model import AgentRecord, Instance, LeaseId, Limits, session_id_of
from services.registry.core.sessions import Session
from services.registry.core.slot import Flight, Opening, PendingOpen, Slot

# Instances that one change may touch, and those that it may forget, so that it fits into one etcd
# transaction: 128 operations, of which a touched instance takes at most two and a forgotten one takes one.
# What is left waits for the next change.
TOUCHED_MAX = 32


class Draft:
    """Collects one change; `flight` returns it."""

    def __init__(
        self, slot: Slot, now: Instant, *, floor: Instant, lease_id: LeaseId, epoch: int, limits: Limits
    ) -> None:
        self._slot, self._now, self._floor = slot, now, floor
        self._lease_id, self._epoch, self._limits = lease_id, epoch, limits
        self._instances = {one.instance_id: one for one in slot.record.instances} if slot.record else {}
        self._register_time = slot.record.register_time if slot.record else now
        self._generation = (slot.record.generation if slot.record else 0) + 1
        self._touched: set[InstanceId] = set()
        self._record_changes = False
        self._openings: list[Opening] = []
        self._ending: list[Session] = []
        self._present: list[PresencePut] = []
        self._absent: list[InstanceId] = []
        self._expect_presence: list[tuple[InstanceId, int]] = []
        self._incarnations: list[tuple[InstanceId, int]] = []

    @property
    def full(self) -> bool:
        """Whether the rest must wait for the next change."""
        return len(self._touched) >= TOUCHED_MAX

    def open(self, pending: PendingOpen) -> bool:
        """Take in one open; False when it must wait for the next change. Raises QUOTA_EXCEEDED."""
        instance_id = pending.hello.instance_id
        if self.full or instance_id in self._touched:
            return False
        current = self._instances.get(instance_id)
        session = self._slot.sessions.get(instance_id)
        live = current is not None and current.state.live and (session is None or session.state.live)
        if not live and self._live_besides(instance_id) >= self._limits.instances_live_max:
            raise ServiceError(
                Reason.QUOTA_EXCEEDED,
                f"agent {self._slot.agent_id!r} has {self._limits.instances_live_max} live instances, the "
                "most that one agent may have; stop some, or use another agent name",
                metadata={"limit": "instances_live_max"},
                retry_after_ms=self._limits.lease_ttl_ms,
            )
        resumed = (
            live and current is not None and pending.hello.resume_session_id == self._session_id(current)
        )
        opened = self._opened(pending, current, session, resumed=resumed)
        opened.report(pending.hello.load, self._now, self._epoch, self._limits)
        self._set(opened.snapshot(self._floor, self._limits))
        self._put_presence(opened)
        if not resumed:
            self._incarnations.append((instance_id, opened.incarnation))
        fenced = current.incarnation if live and not resumed and current is not None else 0
        session_id = self._session_id(self._instances[instance_id])
        self._openings.append(Opening(pending, opened, session_id, resumed, fenced))
        return True

    def follow(self, session: Session) -> None:
        """Take in what a session wants: its state, and its presence under the present lease."""
        committed = self._instances.get(session.instance_id)
        if self.full or committed is None or session.instance_id in self._touched:
            return
        if not session.state.live:
            # The lease ended now, whatever it had left.
            ended = replace(session.snapshot(self._floor, self._limits), lease_expire_time=self._now)
            self._set(ended)
            self._ending.append(session)
            self._absent.append(session.instance_id)
            if not session.owned:
                # This replica may judge because no other one holds the instance: that must still be so.
                revision = self._slot.presence_revision(session.instance_id)
                self._expect_presence.append((session.instance_id, revision))
            return
        if session.state is not committed.state:
            self._set(session.snapshot(self._floor, self._limits))
        if session.owned and session.presence_lease != self._lease_id:
            self._put_presence(session)

    def flight(self, cause: str) -> Flight | None:
        """Return the change; None when there is nothing to change."""
        if not self._record_changes and not self._present:
            return None
        forgotten = self._prune() if self._record_changes else ()
        change = Change(
            self._slot.agent_id,
            expect_record=self._slot.record_revision,
            record=self._record() if self._record_changes else None,
            lease_id=self._lease_id,
            expect_presence=tuple(self._expect_presence),
            present=tuple(self._present),
            absent=tuple(self._absent),
            incarnations=tuple(self._incarnations),
            forgotten=forgotten,
        )
        return Flight(cause, change, tuple(self._openings), tuple(self._ending))

    def _opened(
        self, pending: PendingOpen, current: Instance | None, session: Session | None, *, resumed: bool
    ) -> Session:
        hello = pending.hello
        reconnects = current.reconnects + 1 if current is not None else 0
        if resumed and current is not None:
            base = session or Session.adopt(self._slot.agent_id, current, self._now)
            return base.resume(hello, reconnects, self._now)
        # An instance that the record does not know may have been here before and was pruned. Its incarnations
        # were at most the generation of their time, so the new generation is above all of them.
        incarnation = current.incarnation + 1 if current is not None else self._generation
        return Session.open(self._slot.agent_id, hello, incarnation, reconnects, self._now)

    def _set(self, instance: Instance) -> None:
        self._instances[instance.instance_id] = instance
        self._touched.add(instance.instance_id)
        self._record_changes = True

    def _put_presence(self, session: Session) -> None:
        self._present.append(PresencePut(session.instance_id, session.incarnation, session.reconnects))
        self._touched.add(session.instance_id)

    def _live_besides(self, instance_id: InstanceId) -> int:
        return sum(1 for one in self._instances.values() if one.state.live and one.instance_id != instance_id)

    def _session_id(self, instance: Instance) -> str:
        return session_id_of(self._slot.agent_id, self._register_time, instance)

    def _prune(self) -> tuple[InstanceId, ...]:
        """Forget the instances that ended too long ago, or are too many, oldest first."""
        ended = sorted(
            (one for one in self._instances.values() if not one.state.live),
            key=lambda one: one.lease_expire_time,
            reverse=True,
        )
        horizon = self._now - self._limits.ended_retention_ms
        forgotten = tuple(
            one.instance_id
            for place, one in enumerate(ended)
            if one.instance_id not in self._touched
            and (place >= self._limits.instances_ended_max or one.lease_expire_time < horizon)
        )
        for instance_id in forgotten[-TOUCHED_MAX:]:
            del self._instances[instance_id]
        return forgotten[-TOUCHED_MAX:]

    def _record(self) -> AgentRecord:
        instances = tuple(self._instances[name] for name in sorted(self._instances))
        known = self._slot.record.skills if self._slot.record else ()
        skills = union_of_skills(instances) or known
        return AgentRecord(self._slot.agent_id, self._register_time, skills, self._generation, instances)
