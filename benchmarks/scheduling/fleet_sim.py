"""A fleet in virtual time around the scheduler's real core: what happens is drawn, what is decided is not."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from services.common.core.ids import AgentId, CollaborationId, InstanceId, RequestId, Skill
from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Assign, CancelAttempt, Effect
from services.scheduler.core.events import (
    AgentsChanged,
    AgentView,
    Event,
    InstanceView,
    PlacementDue,
    ReplyId,
    ResultReport,
    StreamId,
    Submitted,
    Ticked,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.model import (
    AttemptRef,
    CollaborationSpec,
    InstanceKey,
    Payload,
    Submission,
    TaskSpec,
)
from services.scheduler.core.state import SchedulerState

START = Instant(1_700_000_000_000)
#: How long an attempt runs, in milliseconds: given the task, which try of it this is, and who runs it.
Draw = Callable[[TaskSpec, int, AgentId], float]


@dataclass(slots=True)
class Course:
    """What one run took. Times in milliseconds."""

    #: From submission to the last result, by collaboration in order of submission.
    job_ms: list[int] = field(default_factory=list)
    #: Slot time of first attempts and of second ones.
    work_ms: float = 0.0
    extra_ms: float = 0.0
    #: Second attempts begun, and how many of them were first to end.
    second_count: int = 0
    second_won_count: int = 0


@dataclass(slots=True)
class _Running:
    """One attempt at an agent."""

    stream: StreamId
    ref: AttemptRef
    since: Instant
    speculative: bool
    over: bool = False


class FleetSim:
    """`agent_count` agents with one skill and one slot, or as many as `slots` says, by agent.

    Every handler takes as long as `draw` says.
    """

    def __init__(
        self, agent_count: int, settings: Settings, draw: Draw, *, slots: Sequence[int] | None = None
    ) -> None:
        self.course = Course()
        self._state = SchedulerState(settings, 1)
        self._draw = draw
        self._now = START
        self._heap: list[tuple[int, int, _Running]] = []
        self._order = 0
        self._running: dict[AttemptRef, _Running] = {}
        self._submitted: dict[CollaborationId, Instant] = {}
        skill = ((Skill("work"), 1.0),)
        names = [AgentId(f"a{number}") for number in range(agent_count)]
        views = tuple(
            AgentView(name, frozenset({Skill("work")}), (InstanceView(InstanceId("0"), 1, False, skill),))
            for name in names
        )
        self._step([AgentsChanged("agents", 0.5, views, snapshot=True)])
        for number, name in enumerate(names):
            stream = StreamId(number + 1)
            key = InstanceKey(name, InstanceId("0"))
            count = 1 if slots is None else slots[number]
            self._step([WorkOpened("hello", stream, key, 1), WorkFrame("credit", stream, 0.5, credits=count)])

    def run(self, jobs: Iterable[tuple[int, CollaborationSpec]]) -> Course:
        """Submit each job at its time after the start, and go on until all are done."""
        ended: dict[CollaborationId, int] = {}
        for number, (at_ms, spec) in enumerate(jobs):
            self._until(Instant(START + at_ms), ended)
            name = CollaborationId(f"c-{number}")
            digest = hashlib.sha256(name.encode()).digest()
            submission = Submission("operator/bench", RequestId(f"r{number}"), spec, digest)
            self._submitted[name] = self._now
            self._step([Submitted(f"r{number}", submission, name, ReplyId(number))])
        self._until(None, ended)
        self.course.job_ms = [ended[name] for name in self._submitted]
        return self.course

    def _until(self, end: Instant | None, ended: dict[CollaborationId, int]) -> None:
        """Let everything happen that happens before `end`, or all that still runs."""
        while self._heap:
            due = min(self._heap[0][0], self._state.next_due())
            if end is not None and due > end:
                break
            self._now = max(self._now, Instant(due))
            events: list[Event] = []
            if self._state.next_due() <= self._now:
                events.append(Ticked("tick", 0.5))
            while self._heap and self._heap[0][0] <= self._now:
                running = heapq.heappop(self._heap)[2]
                if not running.over:
                    self._end(running, won=True)
                    result = ResultReport(running.ref, Payload("", b"x"))
                    events.append(WorkFrame("end", running.stream, 0.5, credits=1, results=(result,)))
            self._step(events)
            for name in [name for name in self._submitted if name not in ended]:
                if (done := self._state.book.collaborations.get(name)) is not None and done.ended:
                    ended[name] = (done.end_time or self._now) - self._submitted[name]
        if end is not None:
            self._now = max(self._now, end)

    def _step(self, events: list[Event]) -> None:
        effects: list[Effect] = []
        for event in (*events, PlacementDue("place")):
            effects += self._state.handle(event, self._now)
        freed: list[Event] = []
        for effect in effects:
            if isinstance(effect, Assign):
                self._begin(effect)
            elif (
                isinstance(effect, CancelAttempt)
                and (running := self._running.get(effect.attempt)) is not None
            ):
                self._end(running, won=False)
                freed.append(WorkFrame("freed", running.stream, 0.5, credits=1))
        if freed:
            self._step(freed)

    def _begin(self, effect: Assign) -> None:
        attempt = effect.attempt
        running = _Running(effect.stream, effect.task.ref(attempt), self._now, attempt.speculative)
        self._running[running.ref] = running
        self._order += 1
        self.course.second_count += attempt.speculative
        lasts = max(1, round(self._draw(effect.task.spec, attempt.token.number, attempt.instance.agent_id)))
        heapq.heappush(self._heap, (self._now + lasts, self._order, running))
        # That it runs is said at once; it changes no decision here, so it needs no batch of its own.
        started = WorkFrame("start", effect.stream, 0.5, started=(running.ref,))
        self._state.handle(started, self._now)

    def _end(self, running: _Running, *, won: bool) -> None:
        running.over = True
        del self._running[running.ref]
        elapsed = self._now - running.since
        if running.speculative:
            self.course.extra_ms += elapsed
            self.course.second_won_count += won
        else:
            self.course.work_ms += elapsed
