"""A simulated plane around the real core: virtual time, links that lose what is in flight, leaders that die
at any moment, a registry that is late, agents that crash, straggle, drain and lie, other programs' locks.

Everything follows from the seed. First chaos; then all is well again, and what was accepted has to end, or to
wait for something that is named.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop
from random import Random

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import CollaborationId, InstanceId, ResourceName, Skill
from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.changes import Change
from services.scheduler.core.course import Collaboration
from services.scheduler.core.effects import (
    Accepted,
    AckResult,
    AckSavepoint,
    Answer,
    Assign,
    CancelAttempt,
    CloseStream,
    GrantLocks,
    Probe,
    Publish,
    RefuseLocks,
    Send,
    SuspendAttempt,
)
from services.scheduler.core.events import (
    AgentsChanged,
    AgentView,
    CancelRequested,
    Event,
    LockKeysChanged,
    PauseRequested,
    ReplyId,
    ResultReport,
    ResumeRequested,
    StreamId,
    Submitted,
    WorkClosed,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.model import (
    InstanceKey,
    Payload,
    Submission,
    TaskKey,
    TaskState,
)
from services.scheduler.core.queries import waiting_for
from services.scheduler.core.state import SchedulerState
from services.scheduler.inbox import Reply
from services.scheduler.store import LeadershipLostError
from services.scheduler.stores.memory import MemoryPlane, MemoryStore
from tests.unit.scheduler.scheduler_sim_checker import Checker
from tests.unit.scheduler.scheduler_sim_fleet import Agent, Fleet
from tests.unit.scheduler.scheduler_sim_leader import Death, Leader, LeaderDied, MakeState
from tests.unit.scheduler.scheduler_sim_orders import (
    RESOURCES,
    SKILLS,
    DrawAlarm,
    Flavour,
    Halt,
    draw_alarm,
    draw_crowd,
    draw_order,
)
from tests.unit.scheduler.scheduler_sim_seen import BrokenPromise, Seen

SETTINGS = Settings(
    reconnect_grace_ms=1_500,
    takeover_grace_ms=3_000,
    gone_grace_ms=800,
    probe_interval_ms=4_000,
    silence_ms_max=9_000,
    retention_ms=30_000,
    history_max=16,
    ageing_ms=2_000,
    ageing_share=2,
    suspend_grace_ms=800,
    savepoint_interval_ms=200,
    speculation_share=0.5,
    straggle_quantile=0.6,
)
START = Instant(1_700_000_000_000)
CHAOS_MS = 8_000
#: In calm nothing that was accepted takes longer, whatever its turn.
CALM_MS = 180_000


class World(Fleet):
    """One plane from its seed to its end. `play` raises `BrokenPromise` or `AssertionError`."""

    def __init__(
        self,
        seed: int,
        make: MakeState = SchedulerState,
        store: Callable[[MemoryPlane], MemoryStore] = MemoryStore,
        *,
        inspects: bool = True,
    ) -> None:
        super().__init__(seed)
        self.make, self.make_store, self.inspects = make, store, inspects
        self.flavour = Flavour.draw(self.random)
        self.now = START
        self.calm = False
        self.epoch = 1
        self.plane = MemoryPlane(lambda one: one.epoch == self.epoch)
        self.checker = Checker(
            ageing_ms=SETTINGS.ageing_ms,
            ageing_share=SETTINGS.ageing_share,
            slots_max=max(self.flavour.slots, 1),
            grace_ms=SETTINGS.suspend_grace_ms,
            class_lent=self.flavour.code_locks > 0.0,
        )
        self.checker.patience = self._patience
        self.checker.room.kept = self._kept
        self.leader: Leader | None = None
        self.inbox: list[Event] = []
        self.streams: dict[StreamId, Agent] = {}
        #: What is asked for and waits for an answer, by reply: submissions, cancellations, pauses.
        self.open: dict[int, Submission | CollaborationId | Halt] = {}
        #: Draws of its own, so that planes without pauses are what they were before there were any.
        self.halts = Random(seed + 1_000_003)
        paused = self.halts.random() < 0.3 and not self.flavour.flood
        self.pauses = self.halts.randint(1, 6) if paused else 0
        #: The same of planes in which the alarm is given while everybody is busy.
        self.alarms = Random(seed + 2_000_003)
        alarmed = self.alarms.random() < 0.4 and not self.flavour.flood and self.flavour.agents > 1
        self.alarm_count = self.alarms.randint(1, 3) if alarmed else 0
        self.replies = 0
        self.orders: list[Submission] = []
        self.views: dict[str, AgentView] = {}
        self.batches = 0
        self.operations: list[str] = []
        self.agents = [self._draw_agent(number) for number in range(self.flavour.agents)]
        for agent in self.agents:
            self.views[agent.name] = agent.view()

    def _draw_agent(self, number: int) -> Agent:
        rng, flavour = self.random, self.flavour
        skills = rng.sample(SKILLS, rng.randint(1, len(SKILLS))) if flavour.skills else list(SKILLS)
        return Agent(
            f"a{number}",
            tuple(sorted(skills)),
            rng.randint(1, flavour.slots),
            (("gpu", rng.choice((1, 2, 4))),) if rng.random() < 0.7 else (),
            rng.choice((0.5, 1.0, 1.0, 2.0)),
            flavour.trouble * rng.choice((0.0, 0.1, 0.4)),
            flavour.trouble * rng.choice((0.0, 0.1, 0.3)),
            flavour.trouble * rng.choice((0.0, 0.0, 0.3)),
            rng.random() < 0.8,
        )

    def play(self) -> None:
        """Chaos, then calm, then the reckoning."""
        self._lead()
        for agent in self.agents:
            self.later(self.some_ms(1, 300), lambda agent=agent: self._link(agent))  # type: ignore[misc]
        for _ in range(self.flavour.orders):
            self.later(self.random.random() * CHAOS_MS * 0.7, self._submit)
        if self.alarm_count:
            self.later(self.alarms.randint(1, 400), lambda: self._alarm(draw_crowd))
        for _ in range(self.alarm_count):
            self.later(500 + self.alarms.random() * CHAOS_MS * 0.5, lambda: self._alarm(draw_alarm))
        for _ in range(self.flavour.troubles):
            self.later(self.random.random() * CHAOS_MS, self._trouble)
        for _ in range(self.pauses):
            self.later(self.halts.random() * CHAOS_MS, self._halt)
        self._run_until(Instant(self.now + CHAOS_MS))
        self._become_calm()
        end = Instant(self.now + CALM_MS)
        while self.now < end and not self._rests():
            self._run_until(Instant(min(end, self.now + 500)))
        self._reckon()

    def _run_until(self, end: Instant) -> None:
        agenda = self.agenda
        while True:
            due = self.leader.state.next_due() if self.leader is not None else end + 1
            ahead = agenda[0][0] if agenda else end + 1
            at = min(due, ahead)
            if at > end:
                self.now = Instant(max(end, self.now))
                return
            self.now = Instant(max(at, self.now))
            while agenda and agenda[0][0] <= self.now:
                heappop(agenda)[2]()
            self._batch()

    # The leader.

    @property
    def served(self) -> bool:  # type: ignore[override]  # a fact of its own here
        return self.leader is not None

    def put(self, event: Event) -> None:
        if self.leader is not None:
            self.inbox.append(event)

    def _batch(self) -> None:
        leader = self.leader
        if leader is None:
            return
        events, self.inbox = self.inbox, []
        for event in events:
            self._note(event)
        try:
            leader.run(events, self.now, self._hear)
        except LeaderDied:
            self._lose_leader()
            return
        self.batches += 1
        if self.inspects and self.batches % 16 == 0:
            leader.state.validate()
        self.checker.settled(self.now)

    def _patience(self, key: TaskKey) -> Instant | None:
        hold = None if self.leader is None else self.leader.state.book.foresight.holds.get(key)
        return None if hold is None else hold.wait.until

    def _kept(self, key: InstanceKey) -> int:
        instance = None if self.leader is None else self.leader.state.book.instances.get(key)
        return 0 if instance is None else len(instance.kept)

    def _note(self, event: Event) -> None:
        """Tell the checker what reaches the scheduler now."""
        checker = self.checker
        match event:
            case WorkFrame(_, stream) if (link := checker.links.get(stream)) is not None:
                if event.drain:
                    link.draining, link.credits = True, 0
                    checker.room.disturbed()
                if not link.draining:
                    link.credits += event.credits
                for report in event.results:
                    checker.said_result(link.instance, report)
            case WorkOpened(_, stream, instance):
                agent = self._named(instance.agent_id)
                skills = frozenset(agent.skills)
                checker.linked(
                    stream, instance, skills, dict(agent.capacities), suspendable=event.suspendable
                )
                known = self.views[agent.name]
                skills = frozenset(str(each) for each in known.skills)
                checker.declared(instance, skills)
            case WorkClosed(_, stream):
                checker.unlinked(stream)
            case AgentsChanged(_, _, views):
                for view in views:
                    name = InstanceKey(view.agent_id, InstanceId("0"))
                    checker.declared(name, frozenset(str(each) for each in view.skills))
            case PauseRequested(_, name) | ResumeRequested(_, name):
                checker.ordered(name, goes_on=isinstance(event, ResumeRequested))
            case _:
                pass

    def _lose_leader(self) -> None:
        """The leader is gone: its streams break, and after a while another one leads."""
        if self.leader is None:
            return
        old, self.leader = self.leader, None
        self.operations += [entry.operation for entry in old.entries]
        self.inbox.clear()
        held = {agent: [*agent.held.values()] for agent in self.agents}
        for agent in self.agents:
            self._cut(agent, told=False)
        self.checker.handed.clear()
        self.later(self.some_ms(20, 2_500), self._lead)
        if self.random.random() < 0.5:
            self.later(self.some_ms(2_600, 4_000), lambda: self._wake(old, held))

    def _wake(self, old: Leader, held: dict[Agent, list[Assign]]) -> None:
        """A leader that was stopped past its lease goes on where it was: nothing of it may count."""
        old.death = None
        if self.leader is None or self.leader is old:
            return
        for runs in held.values():
            results = tuple(
                ResultReport(each.task.ref(each.attempt), Payload("", b"to a zombie")) for each in runs[:3]
            )
            if results and (stream := runs[0].stream) in old.state.book.streams:
                for result in results:
                    self.checker.said_result(runs[0].attempt.instance, result)
                try:
                    old.run([WorkFrame("zombie", stream, 0.5, results=results)], self.now, self._hear_zombie)
                except LeadershipLostError:
                    return

    def _hear_zombie(self, said: Send | Answer) -> None:
        """What a stopped leader says without a commit is heard by nobody: its streams are gone."""

    def _lead(self) -> None:
        self.epoch += 7
        self.checker.leads(self.epoch)
        store = self.make_store(self.plane)
        leader = Leader(self.epoch, store, self.checker, SETTINGS, self.make)
        recovered = leader.load()
        names = [each.record.collaboration_id for each in recovered.collaborations]
        self.checker.loaded(names)
        self.leader = leader
        self.inbox = [AgentsChanged("agents", 0.5, tuple(self.views.values()), True), recovered]
        # Whoever was not answered asks again.
        for number, asked in [*self.open.items()]:
            self.later(self.some_ms(10, 400), lambda number=number, asked=asked: self._ask(number, asked))  # type: ignore[misc]
        for agent in self.agents:
            if agent.alive:
                self.later(self.some_ms(5, 1_200), lambda agent=agent: self._link(agent))  # type: ignore[misc]

    # What is told.

    def _hear(self, said: Send | Answer) -> None:
        match said:
            case Publish(change):
                if isinstance(change, Change):
                    self.checker.published(change)
            case Answer(reply, value):
                self._take_answer(reply, value)
            case CloseStream(stream):
                self.checker.unlinked(stream)
                agent = self.streams.get(stream)
                if agent is not None:
                    self._close_soon(agent, stream)
            case Assign():
                ref = said.task.ref(said.attempt)
                self.checker.handed_over(said.stream, ref, said.attempt, said.task.savepoint, said.locks)
                for lock, claim in zip(said.locks, said.task.spec.resources, strict=True):
                    self.checker.holds(lock, self.plane.locks, claim.mode)  # type: ignore[arg-type]
                self._deliver(said)
            case GrantLocks():
                self._deliver(said)
            case SuspendAttempt():
                self.checker.room.asked(said.attempt, said.reason, self.now)
                link = self.checker.links.get(said.stream)
                if link is not None and not link.draining:
                    link.credits += 1
                self._deliver(said)
            case AckResult(stream, ref, None):
                agent = self.streams.get(stream)
                if agent is not None:
                    self.checker.acked(agent.key, ref, agent.unacked.get(ref))
                self._deliver(said)
            case AckSavepoint(_, ref, None):
                self.checker.saved(ref)
            case AckResult() | CancelAttempt() | RefuseLocks() | Probe():
                self._deliver(said)
            case _:
                pass

    def _close_soon(self, agent: Agent, stream: StreamId) -> None:
        self.later(2, lambda: self._hear_close(agent, stream))

    def _take_answer(self, reply: ReplyId, value: Reply) -> None:
        asked = self.open.pop(reply, None)
        if isinstance(asked, Submission):
            name = CollaborationId(f"c-{asked.request_id}")
            if isinstance(value, Accepted):
                self.checker.accepted(name, asked, name in self.plane.collaborations)
            elif isinstance(value, ServiceError) and value.reason is Reason.REQUEST_ID_REUSED:
                known = self.checker.cases[name].submission.content_hash
                self.checker.refused_reuse(name, same_content=known == asked.content_hash)
        elif isinstance(asked, Halt):
            if isinstance(value, Collaboration):
                self.checker.halted(asked.collaboration_id, goes_on=asked.goes_on)
        elif asked is not None and isinstance(value, Collaboration):
            self.checker.cancelled(asked)

    def _deliver(
        self, said: Assign | CancelAttempt | SuspendAttempt | AckResult | GrantLocks | RefuseLocks | Probe
    ) -> None:
        agent = self.streams.get(said.stream)
        if agent is not None and agent.stream == said.stream:
            self.later(self.some_ms(1, 6), lambda: self._receive(agent, said))

    # Requesters.

    def _submit(self) -> None:
        order = draw_order(self.random, self.flavour, len(self.orders), self.now)
        self.orders.append(order)
        self._ask(0, order)

    def _alarm(self, draw: DrawAlarm) -> None:
        order = draw(self.alarms, self.flavour, len(self.orders))
        self.orders.append(order)
        self._ask(0, order)

    def _ask(self, number: int, asked: Submission | CollaborationId | Halt) -> None:
        if number and self.open.pop(number, None) is None:
            return
        self.replies += 1
        reply = ReplyId(self.replies)
        self.open[reply] = asked
        if isinstance(asked, Submission):
            name = CollaborationId(f"c-{asked.request_id}")
            self.put(Submitted(str(asked.request_id), asked, name, reply))
        elif isinstance(asked, Halt):
            self.put(asked.event(reply))
        else:
            self.put(CancelRequested("cancel", asked, "operator/admin", "enough", reply))

    def _halt(self) -> None:
        """Pause a collaboration, or let one go on, whatever it does just now."""
        rng, known = self.halts, [*self.checker.cases]
        if known and not self.calm:
            self._ask(0, Halt(rng.choice(known), rng.random() < 0.4, rng.random() < 0.5))

    def _resume_all(self) -> None:
        """Whoever paused something lets it go on, and does not ask again for a pause."""
        for number in [number for number, asked in self.open.items() if isinstance(asked, Halt)]:
            del self.open[number]
        for name in self.checker.open_cases():
            self._ask(0, Halt(name, goes_on=True))

    # Trouble.

    def _trouble(self) -> None:
        if self.calm:
            return
        rng = self.random
        agent = rng.choice(self.agents)
        kind = rng.choice(TROUBLES)
        match kind:
            case "crash":
                if agent.alive:
                    self._cut(agent, told=rng.random() < 0.8)
                    agent.alive = False
                    agent.held.clear()
                    agent.unacked.clear()
                    if rng.random() < 0.6:
                        self.later(self.some_ms(100, 2_000), lambda: self._over(agent))
                    self.later(self.some_ms(50, 5_000), lambda: self._restart(agent))
            case "cut":
                self._cut(agent, told=rng.random() < 0.7)
                self.later(rng.choice((20, 200, 900, 2_500)), lambda: self._link(agent))
            case "drain":
                agent.drains = True
                self._send(agent, drain=True)
                self.later(self.some_ms(500, 3_000), lambda: self._leave(agent))
            case "learn":
                agent.skills = tuple(sorted(rng.sample(SKILLS, rng.randint(1, len(SKILLS)))))
                self._tell_registry(agent)
            case "takeover":
                if self.leader is not None:
                    self.leader.death = rng.choice((*Death, None))
                    if self.leader.death is None:
                        self._lose_leader()
            case "again" if self.orders:
                order = rng.choice(self.orders)
                if rng.random() < 0.3:
                    order = order.__class__(order.requester, order.request_id, order.spec, b"other")
                self._ask(0, order)
            case "cancel" if self.orders:
                name = CollaborationId(f"c-{rng.choice(self.orders).request_id}")
                if name in self.checker.cases:
                    self._ask(0, name)
            case "foreign":
                resource = rng.choice(RESOURCES)
                self.plane.put_foreign(resource, f"f-{self.count}")
                self._tell_locks()
                self.later(self.some_ms(50, 2_000), self._free_foreign)
            case _:
                pass

    def _over(self, agent: Agent) -> None:
        if not agent.alive:
            self._tell_registry(agent, gone=True)

    def _leave(self, agent: Agent) -> None:
        self._cut(agent, told=True)
        self.later(self.some_ms(20, 600), lambda: self._link(agent))

    def _foreign_keys(self) -> list[tuple[ResourceName, str]]:
        return [name for name in self.plane.locks if name[1].startswith("f-")]

    def _tell_locks(self) -> None:
        rows = [self.plane.locks[name] for name in self._foreign_keys()]
        self.put(LockKeysChanged("watch", 0.5, foreign=tuple(rows)))  # type: ignore[arg-type]

    def _free_foreign(self) -> None:
        gone = tuple(self._foreign_keys())
        for name in gone:
            self.plane.delete(name)
        self.put(LockKeysChanged("watch", 0.5, deleted=gone))

    # The end.

    def _become_calm(self) -> None:
        self.calm = True
        self._free_foreign()
        if self.leader is None:
            self._run_until(Instant(self.now + 3_000))
        if self.pauses:
            self._resume_all()
        for agent in self.agents:
            self._restart(agent)
            agent.skills = SKILLS if self.flavour.heals else agent.skills
            self._tell_registry(agent)
            if agent.stream is None or agent.drains:
                self._cut(agent, told=True)
                self.later(self.some_ms(5, 100), lambda agent=agent: self._link(agent))  # type: ignore[misc]

    def _rests(self) -> bool:
        return self.leader is not None and not self.checker.open_cases() and not self.open

    def _reckon(self) -> None:
        assert self.leader is not None
        self.leader.state.validate()
        self.operations += [entry.operation for entry in self.leader.entries]
        if self.open:
            raise BrokenPromise("T1", f"never answered: {self.open}")
        for name, case in self.checker.open_cases().items():
            for seen in case.tasks.values():
                task = self.leader.state.book.collaborations[name].tasks[seen.key.task_id]
                if task.ended:
                    continue
                why = waiting_for(self.leader.state.book, task)
                if not why:
                    raise BrokenPromise("PROGRESS", f"{task} waits for nothing that has a name")
                if self.checker.able(seen):
                    raise BrokenPromise("PROGRESS", f"{task} has not ended in calm: waits for {why}")
                self._check_reason(seen, why)

    def _check_reason(self, seen: Seen, why: str) -> None:
        """What nobody can do says which of the things that it asks for is missing."""
        if seen.spec.gang is not None or seen.state is TaskState.PENDING or why.startswith("tasks "):
            return
        skills = {skill for agent in self.agents for skill in agent.skills}
        missing = [skill for skill in seen.spec.required_skills if skill not in skills]
        for name, amount in seen.spec.needs:
            if all(dict(agent.capacities).get(name, 0) < amount for agent in self.agents):
                missing.append(Skill(name))
        if missing and not any(name in why for name in missing):
            raise BrokenPromise("REASON", f"{seen.key} lacks {missing} and says that it waits for {why}")


#: As often as they are named.
TROUBLES = (
    *["crash"] * 4,
    *["cut"] * 5,
    *["drain"] * 2,
    *["learn"] * 2,
    *["takeover"] * 3,
    *["again"] * 2,
    "cancel",
    *["foreign"] * 2,
)
