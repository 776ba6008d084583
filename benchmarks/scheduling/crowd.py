"""A large fleet and a long queue around the scheduler's real core, in this process, for S6, S7 and S8.

Agents have 5 of 50 skills at levels of their own; tasks need 1 or 2 skills that somebody has, belong to 20
requesters and to every class, and some have deadlines, named agents or needs. Everything goes in as events,
as the driver puts them.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from random import Random

from services.common.core.ids import (
    AgentId,
    CollaborationId,
    InstanceId,
    RequestId,
    Skill,
    TaskId,
)
from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Answer, Assign, Effect
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
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.model import (
    AttemptRef,
    CollaborationSpec,
    InstanceKey,
    Payload,
    Priority,
    SchedulingPolicy,
    Submission,
    TaskSpec,
)
from services.scheduler.core.state import SchedulerState

SKILLS, SKILLS_EACH, REQUESTERS = 50, 5, 20
START = Instant(1_700_000_000_000)
#: Tasks of one submission.
_BUNDLE = 100


class Crowd:
    """A state with a fleet, and the frames that its agents send.

    `handle` says where events go if not to a state of its own; `stream_of` names the agents' streams there.
    """

    def __init__(
        self,
        agents: int,
        seed: int = 1,
        policy: SchedulingPolicy = SchedulingPolicy.PRIORITY,
        *,
        suspendable: bool = False,
        now: Instant = START,
        handle: Callable[[Event, Instant], list[Effect]] | None = None,
        stream_of: Callable[[int], StreamId] = StreamId,
    ) -> None:
        self.random = Random(seed)
        self.now = now
        self.state = SchedulerState(Settings(policy=policy), 1)
        self.streams = [stream_of(number) for number in range(agents)]
        self._handle = handle or self.state.handle
        self.held: dict[StreamId, list[AttemptRef]] = {}
        self.submissions = 0
        self.skills: list[tuple[str, ...]] = []
        views = []
        for number in range(agents):
            skills = tuple(f"s{each}" for each in self.random.sample(range(SKILLS), SKILLS_EACH))
            self.skills.append(skills)
            levels = tuple((Skill(name), round(self.random.uniform(0.2, 1.0), 3)) for name in skills)
            view = InstanceView(InstanceId("0"), 1, False, levels, (("gpu_milli", 8_000),))
            views.append(AgentView(AgentId(f"a{number}"), frozenset(name for name, _ in levels), (view,)))
        self._handle(AgentsChanged("agents", 0.5, tuple(views), snapshot=True), self.now)
        for number, stream in enumerate(self.streams):
            key = InstanceKey(AgentId(f"a{number}"), InstanceId("0"))
            self._handle(WorkOpened("hello", stream, key, 1, suspendable=suspendable), self.now)

    def offer(self, slots: int) -> None:
        """Let every agent offer slots, without placing anything yet."""
        for stream in self.streams:
            self._handle(WorkFrame("offer", stream, 0.5, credits=slots), self.now)

    def submit(self, count: int, priority: Priority | None = None) -> None:
        """Put `count` tasks in, without placing them yet."""
        for begin in range(0, count, _BUNDLE):
            size = min(_BUNDLE, count - begin)
            self.submissions += 1
            name = f"r{self.submissions}"
            spec = CollaborationSpec(tuple(self._task(number, priority) for number in range(size)))
            owner = f"agent/q{self.random.randrange(REQUESTERS)}"
            submission = Submission(owner, RequestId(name), spec, name.encode())
            event = Submitted(name, submission, CollaborationId(f"c-{name}"), ReplyId(self.submissions))
            for effect in self._handle(event, self.now):
                if isinstance(effect, Answer) and isinstance(effect.value, Exception):
                    raise effect.value

    def _task(self, number: int, priority: Priority | None) -> TaskSpec:
        random = self.random
        agent = random.randrange(len(self.skills))
        skills = self.skills[agent][: random.choice((1, 1, 2))]
        classes = (Priority.HIGH, Priority.NORMAL, Priority.NORMAL, Priority.LOW)
        return TaskSpec(
            TaskId(f"t{number}"),
            tuple(Skill(name) for name in skills),
            priority=priority or random.choice(classes),
            required_agents=(AgentId(f"a{agent}"),) if random.random() < 0.002 else (),
            estimated_duration_ms=random.choice((500, 1_000, 5_000)),
            deadline=Instant(self.now + random.randrange(3_600_000, 7_200_000))
            if random.random() < 0.2
            else None,
            needs=(("gpu_milli", 500),) if random.random() < 0.1 else (),
        )

    def place(self) -> list[Assign]:
        """Place what can be placed; return what was handed over."""
        return self.take(self.state.handle(PlacementDue("place"), self.now))

    def take(self, effects: list[Effect]) -> list[Assign]:
        """Let the agents take what is handed over to them."""
        given = [effect for effect in effects if isinstance(effect, Assign)]
        for effect in given:
            self.held.setdefault(effect.stream, []).append(effect.task.ref(effect.attempt))
        return given

    def frames(self, count: int) -> Iterator[WorkFrame]:
        """Yield the frames of `count` agents that end one attempt each and offer its slot again."""
        streams = [*self.held]
        for _ in range(count):
            stream = self.random.choice(streams)
            while not self.held[stream]:
                stream = self.random.choice(streams)
            ref = self.held[stream].pop()
            yield WorkFrame("end", stream, 0.5, credits=1, results=(ResultReport(ref, Payload()),))


def resident_mb() -> float:
    """Return the most memory that this process had resident, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
