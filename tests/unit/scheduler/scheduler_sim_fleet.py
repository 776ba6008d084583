"""Virtual time, and the agents of the simulated plane: they crash, straggle, drain and lie, and their links
lose what is in flight.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappush

from services.common.core.ids import AgentId, InstanceId, ResourceName, Skill
from services.common.core.instants import Instant
from services.scheduler.core.effects import (
    AckResult,
    Assign,
    CancelAttempt,
    GrantLocks,
    Probe,
    RefuseLocks,
    Send,
    SuspendAttempt,
)
from services.scheduler.core.events import (
    AgentsChanged,
    AgentView,
    Cancelled,
    Event,
    InstanceView,
    LockReleased,
    LockRequested,
    ResultReport,
    SavepointReport,
    StreamId,
    Suspended,
    WorkClosed,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.model import (
    AttemptRef,
    Failure,
    FailureKind,
    InstanceKey,
    LockMode,
    Payload,
    ResourceClaim,
)
from tests.unit.scheduler.scheduler_sim_checker import Checker
from tests.unit.scheduler.scheduler_sim_orders import RESOURCES, Flavour

#: Frames and answers arrive at multiples of this, so that several share a batch.
GRID_MS = 4


@dataclass(eq=False)
class Agent:
    """One instance: what its process knows."""

    name: str
    skills: tuple[str, ...]
    slots: int
    capacities: tuple[tuple[str, int], ...]
    #: Its durations are the declared ones times this.
    pace: float
    #: Shares of its attempts or moments in which it does what it should not.
    straggles: float
    fails: float
    lies: float
    suspendable: bool
    incarnation: int = 1
    alive: bool = True
    drains: bool = False
    stream: StreamId | None = None
    #: What it runs; the value grows when the attempt is no longer the same run.
    held: dict[AttemptRef, Assign] = field(default_factory=dict)
    unacked: dict[AttemptRef, ResultReport] = field(default_factory=dict)
    past: list[ResultReport] = field(default_factory=list)
    #: Attempts whose slot it gave to the scheduler when it was asked to suspend them.
    gave: set[AttemptRef] = field(default_factory=set)
    #: Locks that code waits for, and what is to be done when they are held.
    asked: dict[int, AttemptRef] = field(default_factory=dict)
    requests: int = 0

    @property
    def key(self) -> InstanceKey:
        return InstanceKey(AgentId(self.name), InstanceId("0"))

    def view(self, *, gone: bool = False) -> AgentView:
        skills = tuple((Skill(each), 0.5 + 0.5 * (self.slots > 1)) for each in self.skills)
        instance = InstanceView(InstanceId("0"), self.incarnation, gone, skills, self.capacities)
        return AgentView(AgentId(self.name), frozenset(Skill(each) for each in self.skills), (instance,))

    def frame(self, stream: StreamId, **items: object) -> WorkFrame:
        return WorkFrame("frame", stream, 0.25, **items)  # type: ignore[arg-type]  # named fields of the frame


class Fleet:
    """Time, and the agents in it; a plane around them takes in what they send."""

    now: Instant
    calm: bool
    flavour: Flavour
    agents: list[Agent]
    streams: dict[StreamId, Agent]
    checker: Checker
    views: dict[str, AgentView]

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.agenda: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.stream_count = 0

    def put(self, event: Event) -> None:
        """Let an event reach the scheduler, if there is one; the plane does it."""

    #: Whether somebody leads.
    served: bool

    # Time.

    def later(self, delay_ms: float, action: Callable[[], None]) -> None:
        at = self.now + max(1, int(delay_ms))
        at += -at % GRID_MS
        self.count += 1
        heappush(self.agenda, (at, self.count, action))

    def some_ms(self, least: int, most: int) -> int:
        return self.random.randint(least, most)

    # Agents.

    def _named(self, name: str) -> Agent:
        return self.agents[int(name[1:])]

    def _send(self, agent: Agent, **items: object) -> None:
        """Send a frame: it arrives a moment later, unless the link breaks meanwhile."""
        stream = agent.stream
        if stream is None:
            return

        def arrive() -> None:
            if agent.stream == stream:
                self.put(agent.frame(stream, **items))

        self.later(self.some_ms(1, 6), arrive)

    def _begin(self, agent: Agent, said: Assign) -> None:
        ref = said.task.ref(said.attempt)
        agent.held[ref] = said
        rng = self.random
        if rng.random() < 0.5:
            self._send(agent, started=(ref,))
        if not self.calm and rng.random() < self.flavour.code_locks and not said.task.spec.resources:
            agent.requests += 1
            mode = rng.choice((LockMode.EXCLUSIVE, LockMode.SHARED))
            claims = (ResourceClaim(ResourceName(rng.choice(RESOURCES)), mode),)
            agent.asked[agent.requests] = ref
            wait = rng.choice((0, 300, 2_000))
            self._send(agent, lock_requests=(LockRequested(agent.requests, claims, wait, ref),))
            return
        self._run(agent, ref)

    def _run(self, agent: Agent, ref: AttemptRef) -> None:
        said, rng = agent.held[ref], self.random
        took = said.task.spec.estimated_duration_ms * agent.pace * rng.uniform(0.7, 1.4)
        chance = 1.0 if self.calm else rng.random()
        if chance < agent.straggles:
            took *= 8
        if rng.random() < self.flavour.savepoints:
            point = Payload("", f"p-{self.count}".encode())
            self.later(took / 2, lambda: self._save(agent, ref, point))
        incarnation = agent.incarnation
        outcome: Payload | Failure | Cancelled = Payload("", f"{ref} by {agent.name}".encode())
        drawn = 1.0 if self.calm else rng.random()
        if drawn < agent.fails * 0.6:
            outcome = Failure(FailureKind.TRANSIENT, "HANDLER_RAISED")
        elif drawn < agent.fails * 0.7:
            outcome = Failure(FailureKind.PERMANENT, "HANDLER_REFUSED")
        elif drawn < agent.fails * 0.8:
            outcome = Cancelled()
        elif drawn < agent.fails:
            return  # It hangs, and only its time-out ends it.

        def end() -> None:
            if agent.alive and agent.incarnation == incarnation and ref in agent.held:
                self._finish(agent, ref, outcome)

        self.later(took, end)

    def _save(self, agent: Agent, ref: AttemptRef, point: Payload) -> None:
        if ref in agent.held:
            self._send(agent, savepoints=(SavepointReport(ref, point),))

    def _finish(
        self, agent: Agent, ref: AttemptRef, outcome: Payload | Failure | Cancelled | Suspended
    ) -> None:
        agent.held.pop(ref)
        report = agent.unacked[ref] = ResultReport(ref, outcome)
        agent.past.append(report)
        reports = [report]
        if not self.calm and self.random.random() < agent.lies:
            reports += self._lie(agent)
        self._send(agent, results=tuple(reports), credits=0 if agent.drains or ref in agent.gave else 1)

    def _lie(self, agent: Agent) -> list[ResultReport]:
        """Say what is not so: an old result again, another's attempt, a token that was never given."""
        rng = self.random
        other = rng.choice(self.agents)
        made: list[ResultReport] = [rng.choice(agent.past)]
        for ref in [*other.held][:1]:
            if other is not agent:
                made.append(ResultReport(ref, Payload("", b"stolen")))
                newer = ref._replace(token=ref.token._replace(number=ref.token.number + 1))
                made.append(ResultReport(newer, Payload("", b"guessed")))
                older = ref._replace(token=ref.token._replace(epoch=1))
                made.append(ResultReport(older, Payload("", b"old")))
        return made

    def _link(self, agent: Agent) -> None:
        if not agent.alive or not self.served or agent.stream is not None:
            return
        self.stream_count += 1
        stream = agent.stream = StreamId(self.stream_count)
        self.streams[stream] = agent
        agent.drains = False
        agent.asked.clear()
        agent.gave.clear()
        held = (*agent.held, *agent.unacked)
        self.put(WorkOpened("hello", stream, agent.key, agent.incarnation, held, (), agent.suspendable))
        free = max(0, agent.slots - len(agent.held))
        self.put(agent.frame(stream, credits=free, results=tuple(agent.unacked.values())))

    def _cut(self, agent: Agent, *, told: bool) -> None:
        """The link breaks; what is in flight is lost. `told`: the scheduler notices."""
        if agent.stream is None:
            return
        stream, agent.stream = agent.stream, None
        if told:
            self.later(self.some_ms(1, 40), lambda: self.put(WorkClosed("gone", stream)))

    def _hear_close(self, agent: Agent, stream: StreamId) -> None:
        if agent.stream == stream:
            agent.stream = None
            self.later(self.some_ms(5, 300), lambda: self._link(agent))

    def _restart(self, agent: Agent) -> None:
        if not agent.alive:
            agent.alive = True
            agent.incarnation += 1
            if self.random.random() < 0.8 or self.calm:
                self._tell_registry(agent)
            self.later(self.some_ms(5, 400), lambda: self._link(agent))

    def _tell_registry(self, agent: Agent, *, gone: bool = False) -> None:
        view = self.views[agent.name] = agent.view(gone=gone)
        self.put(AgentsChanged("agents", 0.5, (view,)))

    def _receive(self, agent: Agent, said: Send) -> None:
        if agent.stream is None or getattr(said, "stream", None) != agent.stream:
            return
        match said:
            case Assign():
                self._begin(agent, said)
            case CancelAttempt(_, ref):
                if agent.held.pop(ref, None) is not None and not agent.drains and ref not in agent.gave:
                    self._send(agent, credits=1)
            case SuspendAttempt(_, ref):
                agent.gave.add(ref)
                if ref in agent.held and self.random.random() < 0.8:
                    saves = self.random.random() < 0.6
                    point = Payload("", f"s-{self.count}".encode()) if saves else None
                    self._finish(agent, ref, Suspended(point))
            case AckResult(_, ref):
                agent.unacked.pop(ref, None)
            case GrantLocks(_, number) | RefuseLocks(_, number):
                behalf = agent.asked.pop(number, None)
                if behalf is not None and behalf in agent.held:
                    self._run(agent, behalf)
                elif isinstance(said, GrantLocks):
                    self._send(agent, lock_releases=(LockReleased(number, said.locks),))
            case Probe(_, nonce):
                self._send(agent, probe_nonce=nonce)
            case _:
                pass
