"""Replicas of the registry's core around one store in memory: no clock, no event loop, no sockets.

Commits and what the store tells of changes are delivered when a test says so, in any order that the real
ones could have, with faults. After every step every invariant of the core is checked.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from services.common.core.entries import EntryDraft
from services.common.core.errors import ServiceError
from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.core.instants import Instant
from services.registry.core import effects, events
from services.registry.core.model import (
    AgentRecord,
    AgentState,
    HelloFields,
    Instance,
    LeaseId,
    Limits,
    LinkId,
    Load,
    SkillLevel,
)
from services.registry.core.registry import Registry
from services.registry.store import Applied
from services.registry.stores.memory import Shelf

START = Instant(1_700_000_000_000)
HYDROLOGY = SkillLevel(Skill("hydrology"), 0.8)


class Fault(Enum):
    """How a commit fails: the two ways that look the same from outside."""

    NOT_PERSISTED = auto()
    PERSISTED = auto()


@dataclass
class Link:
    """What a replica has said to one link."""

    agent_id: AgentId
    instance_id: InstanceId
    welcome: effects.Welcome | None = None
    refusal: ServiceError | None = None
    acks: list[effects.Ack] = field(default_factory=list)
    ended: effects.EndLink | None = None
    sent: int = 0
    cut: bool = False

    @property
    def open(self) -> bool:
        return self.welcome is not None and self.ended is None and not self.cut

    @property
    def waits(self) -> bool:
        return self.welcome is None and self.refusal is None and not self.cut


class Replica:
    """One core with what is on its way to and from it."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.core = Registry(name, world.limits)
        self.links: dict[LinkId, Link] = {}
        self.commits: deque[effects.Commit] = deque()
        self.answers: deque[events.Event] = deque()
        self.reloads: deque[AgentId] = deque()
        self.notes: list[EntryDraft] = []
        self.changed: list[AgentId] = []
        self.seen = 0
        self.lease: LeaseId | None = None

    def start(self) -> None:
        """Load, then hold a lease."""
        shelf = self.world.shelf
        self.seen = len(shelf.history)
        snapshot = shelf.everything()
        self.step(events.Loaded("load", snapshot.revision, snapshot.agents))
        self.grant()

    def grant(self) -> None:
        self.lease = self.world.shelf.grant()
        self.step(events.LeaseGranted("lease", self.lease))

    def lose_lease(self) -> None:
        if self.lease is not None:
            self.world.shelf.end_lease(self.lease)
            self.lease = None
        self.step(events.LeaseEnded("lease"))

    def step(self, event: events.Event) -> list[effects.Effect]:
        made = self.core.step(event, self.world.now)
        for effect in made:
            match effect:
                case effects.Commit():
                    self.commits.append(effect)
                case effects.Reload(agent_id=agent_id):
                    self.reloads.append(agent_id)
                case EntryDraft():
                    self.notes.append(effect)
                case effects.Changed(agent_id=agent_id):
                    self.changed.append(agent_id)
                case effects.Welcome(link=link):
                    assert self.links[link].waits, "a second answer to one hello"
                    self.links[link].welcome = effect
                    self.world.note_welcome(self.links[link], effect)
                case effects.RefuseOpen(link=link, error=error):
                    assert self.links[link].waits, "a second answer to one hello"
                    self.links[link].refusal = error
                case effects.EndLink(link=link):
                    assert self.links[link].open, "a link is ended that is not open"
                    self.links[link].ended = effect
                case effects.Ack(link=link):
                    self.links[link].acks.append(effect)
        check_invariants(self.core)
        return made

    # The store's answers.

    def commit_next(self, fault: Fault | None = None) -> None:
        """Carry out the oldest commit on its way, and feed its answer back."""
        self.apply_next(fault)
        while self.answers:
            self.answer_next()

    def apply_next(self, fault: Fault | None = None) -> None:
        """Carry out the oldest commit on its way; its answer comes later."""
        commit = self.commits.popleft()
        change = commit.change
        touched = [put.instance_id for put in change.present]
        assert len(touched) == len(set(touched)), "etcd refuses a key that is written twice"
        assert not set(change.forgotten) & {name for name, _ in change.incarnations}
        answer: events.Event = events.CommitFailed(commit.cause, change.agent_id, "no answer")
        if fault is not Fault.NOT_PERSISTED:
            try:
                outcome = self.world.shelf.apply(change)
            except ServiceError:
                # The lease of its presence keys has ended.
                self.answers.append(answer)
                return
            if isinstance(outcome, Applied):
                self.world.check_record(change.record)
            if fault is None and isinstance(outcome, Applied):
                answer = events.Committed(commit.cause, change.agent_id, outcome.revision)
            elif fault is None and not isinstance(outcome, Applied):
                answer = events.Conflicted(commit.cause, outcome)
        self.answers.append(answer)

    def answer_next(self) -> None:
        """Feed the oldest answer of the store back."""
        self.step(self.answers.popleft())

    def reload_next(self) -> None:
        agent_id = self.reloads.popleft()
        self.step(events.Reloaded("reload", self.world.shelf.snapshot(agent_id)))

    def observe_next(self) -> None:
        changes = self.world.shelf.history[self.seen]
        self.seen += 1
        self.step(events.Observed(f"watch-{changes.revision}", changes.changes))

    @property
    def idle(self) -> bool:
        return not (self.commits or self.answers or self.reloads) and self.seen == len(
            self.world.shelf.history
        )

    # The agents' side.

    def open(
        self,
        agent: str = "a-agent",
        instance: str = "0",
        *,
        resume: str = "",
        load: Load = Load(),  # noqa: B008  # frozen
        fields: HelloFields | None = None,
    ) -> LinkId:
        link = self.world.new_link()
        self.links[link] = Link(AgentId(agent), InstanceId(instance))
        hello = fields or HelloFields(
            instance_id=instance, skills=(HYDROLOGY,), resume_session_id=resume, load=load
        )
        self.step(events.OpenRequested(f"link-{link}", link, AgentId(agent), hello))
        return link

    def beat(self, link: LinkId, load: Load = Load()) -> None:  # noqa: B008  # frozen
        self.links[link].sent += 1
        self.step(events.HeartbeatReceived("beat", link, self.links[link].sent, load))

    def cut(self, link: LinkId) -> None:
        self.links[link].cut = True
        self.step(events.LinkCut("cut", link))

    def tick(self) -> None:
        if self.core.next_deadline() <= self.world.now:
            self.step(events.Tick("tick"))

    def instance(self, agent: str = "a-agent", instance: str = "0") -> Instance:
        record = self.core.agent(AgentId(agent), self.world.now)
        assert record is not None
        found = record.instance(InstanceId(instance))
        assert found is not None
        return found

    def state(self, agent: str = "a-agent", instance: str = "0") -> AgentState:
        return self.instance(agent, instance).state


class World:
    """Replicas, their store, and the time."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.now = START
        self.shelf = Shelf()
        self.replicas: list[Replica] = []
        self._links = 0
        # The incarnations that were welcomed anew, and the newest record committed, of each agent.
        self._welcomed: dict[tuple[AgentId, InstanceId], set[int]] = {}
        self._records: dict[AgentId, AgentRecord] = {}

    def add(self) -> Replica:
        replica = Replica(self, f"registry-{len(self.replicas)}")
        self.replicas.append(replica)
        replica.start()
        return replica

    def kill(self, replica: Replica, *, lease_ends: bool = True) -> None:
        """End a replica without a word; its lease ends at once or later."""
        self.replicas.remove(replica)
        if lease_ends and replica.lease is not None:
            self.shelf.end_lease(replica.lease)

    def new_link(self) -> LinkId:
        self._links += 1
        return LinkId(self._links)

    def settle(self) -> None:
        """Deliver everything that is on its way until nothing is."""
        for _ in range(10_000):
            busy = [replica for replica in self.replicas if not replica.idle]
            if not busy:
                return
            for replica in busy:
                if replica.answers:
                    replica.answer_next()
                elif replica.commits:
                    replica.apply_next()
                elif replica.reloads:
                    replica.reload_next()
                else:
                    replica.observe_next()
        raise AssertionError("the replicas never come to rest")

    def advance(self, ms: int, *, settle: bool = True) -> None:
        """Let time pass, with a tick at every deadline on the way."""
        end = Instant(self.now + ms)
        for _ in range(100_000):
            at = min((replica.core.next_deadline() for replica in self.replicas), default=end)
            if at > end:
                break
            self.now = max(self.now, at)
            for replica in self.replicas:
                replica.tick()
            if settle:
                self.settle()
        else:
            raise AssertionError("time stands still")
        self.now = end

    def note_welcome(self, link: Link, welcome: effects.Welcome) -> None:
        """An incarnation is given once. That it grows is checked where it is committed."""
        if welcome.resumed:
            return
        given = self._welcomed.setdefault((link.agent_id, link.instance_id), set())
        assert welcome.incarnation not in given
        given.add(welcome.incarnation)

    def check_record(self, record: AgentRecord | None) -> None:
        """A record's generation grows by one, an instance's incarnation and reconnects never shrink."""
        if record is None:
            return
        before = self._records.get(record.agent_id)
        assert record.generation == (before.generation if before else 0) + 1
        for instance in record.instances:
            old = before.instance(instance.instance_id) if before else None
            if old is not None:
                assert (instance.incarnation, instance.reconnects) >= (old.incarnation, old.reconnects)
                same = instance.incarnation == old.incarnation
                assert old.state.live or not same or instance == old, "an ended incarnation came back"
            assert instance.incarnation <= record.generation
            key = (record.agent_id, instance.instance_id)
            assert self.shelf.incarnations[key] == instance.incarnation
        self._records[record.agent_id] = record


def check_invariants(core: Registry) -> None:
    """Assert what holds of a core between any two steps."""
    fleet = core.fleet
    for link, session in fleet.links.items():
        assert session.link == link
        assert fleet.slots[session.agent_id].sessions.get(session.instance_id) is session
        assert link not in fleet.opens
    sessions = [session for slot in fleet.slots.values() for session in slot.sessions.values()]
    for session in sessions:
        assert session.link is None or fleet.links.get(session.link) is session
    live = [session for session in sessions if session.state.live]
    assert len(fleet.deadlines) == len(live), "not exactly the live sessions are armed"
    for slot in fleet.slots.values():
        assert not slot.empty, f"{slot.agent_id}: an empty slot was kept"
        assert slot.flight is None or not slot.stale
        names = [instance.instance_id for instance in slot.record.instances] if slot.record else []
        assert names == sorted(set(names))
        for pending in slot.waiting:
            assert pending.link is not None
            assert fleet.opens[pending.link] == (slot, pending)
    committed = [slot.record for slot in fleet.slots.values() if slot.record is not None]
    assert list(fleet.index.after("", "")) == sorted(record.agent_id for record in committed)
    for skill in {skill.name for record in committed for skill in record.skills}:
        having = sorted(r.agent_id for r in committed if skill in {one.name for one in r.skills})
        assert list(fleet.index.after("", skill)) == having
    for state in AgentState:
        count = sum(one.state is state for record in committed for one in record.instances)
        assert fleet.index.states[state] == count


def working(now: Instant, *, used: int = 0, slots: int = 1, epoch: int = 0) -> Load:
    """A report of an agent that work reaches."""
    return replace(
        Load(),
        slots=slots,
        slots_used=used,
        work_stream_open=True,
        coordinator_epoch=epoch,
        last_probe_time=now,
    )
