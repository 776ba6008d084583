"""A stage for the pure core: what driver, store, registry and agents would do, without any of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from services.common.core.entries import EntryDraft
from services.common.core.errors import ServiceError
from services.common.core.fencing import FencingToken
from services.common.core.ids import (
    AgentId,
    CollaborationId,
    InstanceId,
    RequestId,
    ResourceName,
    Skill,
    TaskId,
)
from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.course import Collaboration, Task
from services.scheduler.core.effects import (
    Accepted,
    AckResult,
    Answer,
    Assign,
    DeleteLock,
    Effect,
    Forget,
    PutLock,
    SaveCollaboration,
    SaveLearned,
    SaveSpecs,
    SaveTask,
)
from services.scheduler.core.events import (
    AgentsChanged,
    AgentView,
    CancelRequested,
    Event,
    ForeignLock,
    HeldLock,
    InstanceView,
    LocksWritten,
    LockWritten,
    PlacementDue,
    Recovered,
    ReplyId,
    ResultReport,
    StreamId,
    Submitted,
    Ticked,
    WorkClosed,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.model import (
    AttemptRef,
    CollaborationSpec,
    GangPlace,
    InstanceKey,
    Payload,
    Priority,
    ResourceClaim,
    Submission,
    TaskSpec,
)
from services.scheduler.core.policies.bandit import PolicyCell
from services.scheduler.core.prediction.cells import Learned, LearnedKey
from services.scheduler.core.records import (
    CollaborationRecord,
    SpecRecord,
    StoredCollaboration,
    StoredLock,
    TaskRecord,
    collaboration_record,
    spec_record,
    task_record,
)
from services.scheduler.core.state import SchedulerState

E = TypeVar("E")
START = Instant(1_700_000_000_000)


def task(task_id: str, *dependencies: str, skill: str = "work", **more: Any) -> TaskSpec:
    """Return a small task."""
    resources = tuple(ResourceClaim(ResourceName(name)) for name in more.pop("locks", ()))
    return TaskSpec(
        TaskId(task_id),
        tuple(Skill(name) for name in more.pop("skills", (skill,))),
        dependencies=tuple(TaskId(name) for name in dependencies),
        resources=more.pop("resources", resources),
        **more,
    )


def gang(task_id: str, *dependencies: str, size: int, **more: Any) -> list[TaskSpec]:
    """Return the members of a gang, as the edge makes them."""
    found = []
    for rank in range(size):
        member = task(task_id if rank == 0 else f"{task_id}.{rank}", *dependencies, **more)
        found.append(replace(member, gang=GangPlace(TaskId(task_id), rank, size)))
        more.pop("locks", None)
    return found


def key(agent: str, instance: str = "0") -> InstanceKey:
    return InstanceKey(AgentId(agent), InstanceId(instance))


@dataclass
class MemoryRecords:
    """What a store would hold, by the same rules: the specs once, states over and over, locks by key."""

    specs: dict[CollaborationId, SpecRecord] = field(default_factory=dict)
    headers: dict[CollaborationId, CollaborationRecord] = field(default_factory=dict)
    tasks: dict[tuple[CollaborationId, TaskId], TaskRecord] = field(default_factory=dict)
    locks: dict[tuple[ResourceName, str], StoredLock] = field(default_factory=dict)
    learned: dict[LearnedKey, Learned] = field(default_factory=dict)
    revision: int = 100

    def commit(self, effects: Iterable[Effect]) -> list[LockWritten]:
        """Keep what a batch writes; return the locks that are durable now."""
        self.revision += 1
        written: dict[str, LockWritten] = {}
        for effect in effects:
            match effect:
                case SaveSpecs(collaboration):
                    self.specs[collaboration.collaboration_id] = spec_record(collaboration)
                case SaveCollaboration(collaboration):
                    self.headers[collaboration.collaboration_id] = collaboration_record(collaboration)
                case SaveTask(saved):
                    self.tasks[saved.key] = task_record(saved)
                case Forget(collaboration_id):
                    del self.specs[collaboration_id], self.headers[collaboration_id]
                    for name in [name for name in self.tasks if name[0] == collaboration_id]:
                        del self.tasks[name]
                case PutLock(lock):
                    self.locks[lock.resource, lock.claim_id] = lock._replace(revision=self.revision)
                    written[lock.claim_id] = LockWritten(lock.claim_id, self.revision)
                case DeleteLock(resource, claim_id):
                    self.locks.pop((resource, claim_id), None)
                case SaveLearned(learned, value):
                    if value is None:
                        self.learned.pop(learned, None)
                    else:
                        self.learned[learned] = value
                case _:
                    pass
        return [*written.values()]

    def recovered(self, foreign: tuple[ForeignLock, ...] = ()) -> Recovered:
        """Return what a new leader reads."""
        return Recovered(
            "recovery",
            tuple(
                StoredCollaboration(
                    self.specs[collaboration_id],
                    header,
                    tuple(row for name, row in self.tasks.items() if name[0] == collaboration_id),
                )
                for collaboration_id, header in self.headers.items()
            ),
            tuple(self.locks.values()),
            foreign,
            tuple(self.learned.items()),
        )


class Stage:
    """One leadership after another over one store; every batch ends with the invariants checked."""

    def __init__(self, settings: Settings | None = None, *, validate: bool = True) -> None:
        self.settings = settings or Settings()
        self.now = START
        self.epoch = 7
        self.state = SchedulerState(self.settings, self.epoch)
        self.store = MemoryRecords()
        self.entries: list[EntryDraft] = []
        self.agents: dict[str, AgentView] = {}
        #: Other programs' older keys, by resource: met by the next grant there.
        self.foreign: dict[str, ForeignLock] = {}
        self._validate = validate
        self._streams = 0
        self._replies = 0

    # The driver.

    def batch(self, *events: Event) -> list[Effect]:
        """Step events as one batch, commit it, and return all that follows."""
        effects: list[Effect] = []
        for event in events:
            effects += self.state.handle(event, self.now)
        effects += self.state.handle(PlacementDue("place"), self.now)
        carried = effects
        while carried:
            written = [self._meet_foreign(lock) for lock in self.store.commit(carried)]
            carried = []
            if written:
                carried += self.state.handle(LocksWritten("commit", tuple(written)), self.now)
                carried += self.state.handle(PlacementDue("place"), self.now)
            effects += carried
        self.entries += [effect for effect in effects if isinstance(effect, EntryDraft)]
        if self._validate:
            self.state.validate()
        return effects

    def torn_batch(self, reached: Callable[[str], int], *events: Event) -> None:
        """Step a batch whose commit is cut short: nothing of it is told to anybody.

        The writes of one collaboration, and those of locks outside of attempts, are committed in order and in
        parts; `reached` says how many of a part's writes arrived: it is given the part's name.
        """
        effects: list[Effect] = []
        for event in events:
            effects += self.state.handle(event, self.now)
        effects += self.state.handle(PlacementDue("place"), self.now)
        parts: dict[str, list[Effect]] = {}
        for effect in effects:
            match effect:
                case SaveSpecs(collaboration) | SaveCollaboration(collaboration):
                    parts.setdefault(collaboration.collaboration_id, []).append(effect)
                case SaveTask(saved):
                    parts.setdefault(saved.key.collaboration_id, []).append(effect)
                case Forget(collaboration_id):
                    parts[collaboration_id] = [effect]
                case PutLock() | DeleteLock():
                    parts.setdefault("locks", []).append(effect)
                case _:
                    pass
        for name, part in parts.items():
            # The collaboration's own record is its commit point, and comes last.
            part.sort(key=lambda effect: isinstance(effect, SaveCollaboration))
            self.store.commit(part[: reached(name)])

    def _meet_foreign(self, lock: LockWritten) -> LockWritten:
        names = {name for name, claim_id in self.store.locks if claim_id == lock.claim_id}
        return lock._replace(beaten_by=tuple(self.foreign[name] for name in names if name in self.foreign))

    def ticks(self, ms: int) -> Iterator[list[Effect]]:
        """Let time pass; yield what follows at each instant at which something is due."""
        end = Instant(self.now + ms)
        while (due := self.state.next_due()) <= end:
            self.now = max(self.now, due)
            yield self.batch(Ticked("tick", 0.5))
        self.now = end

    def pass_time(self, ms: int) -> list[Effect]:
        """Let time pass, and return all that follows."""
        return [effect for effects in self.ticks(ms) for effect in effects]

    def take_over(self) -> list[Effect]:
        """Let another leader begin from the store; streams are gone with the old one."""
        self.epoch += 10
        self.state = SchedulerState(self.settings, self.epoch)
        self.state.handle(AgentsChanged("agents", 0.5, tuple(self.agents.values()), snapshot=True), self.now)
        return self.batch(self.store.recovered())

    # Requesters.

    def submit(
        self, *tasks: TaskSpec, request_id: str = "r1", requester: str = "operator/admin", **spec: Any
    ) -> list[Effect]:
        return self.batch(self.submission(*tasks, request_id=request_id, requester=requester, **spec))

    def submission(
        self, *tasks: TaskSpec, request_id: str = "r1", requester: str = "operator/admin", **spec: Any
    ) -> Submitted:
        self._replies += 1
        content = CollaborationSpec(tasks, **spec)
        digest = hashlib.sha256(repr(content).encode()).digest()
        submission = Submission(requester, RequestId(request_id), content, digest)
        return Submitted(request_id, submission, CollaborationId(f"c-{request_id}"), ReplyId(self._replies))

    def cancel(self, request_id: str = "r1", reason: str = "enough") -> list[Effect]:
        self._replies += 1
        return self.batch(
            CancelRequested(
                "cancel", CollaborationId(f"c-{request_id}"), "operator/admin", reason, ReplyId(self._replies)
            )
        )

    def collaboration(self, request_id: str = "r1") -> Collaboration:
        return self.state.book.collaborations[CollaborationId(f"c-{request_id}")]

    def task(self, task_id: str, request_id: str = "r1") -> Task:
        return self.collaboration(request_id).tasks[TaskId(task_id)]

    # Agents.

    def know(
        self,
        agent: str,
        *skills: str,
        level: float = 1.0,
        incarnation: int = 1,
        gone: bool = False,
        instances: tuple[str, ...] = ("0",),
        capacities: tuple[tuple[str, int], ...] = (),
    ) -> list[Effect]:
        """Let the registry tell of an agent."""
        levels = tuple((Skill(name), level) for name in skills)
        view = AgentView(
            AgentId(agent),
            frozenset(Skill(name) for name in skills),
            tuple(
                InstanceView(InstanceId(name), incarnation, gone, levels, capacities) for name in instances
            ),
        )
        self.agents[agent] = view
        return self.batch(AgentsChanged("agents", 0.5, (view,)))

    def link(
        self,
        agent: str,
        slots: int = 1,
        *,
        instance: str = "0",
        incarnation: int = 1,
        held: tuple[AttemptRef, ...] = (),
        held_locks: tuple[HeldLock, ...] = (),
        suspendable: bool = True,
    ) -> StreamId:
        """Open a Work stream and grant credits; return the stream."""
        self._streams += 1
        stream = StreamId(self._streams)
        name = key(agent, instance)
        self.batch(WorkOpened("hello", stream, name, incarnation, held, held_locks, suspendable))
        if slots:
            self.frame(stream, credits=slots)
        return stream

    def agent(self, agent: str, *skills: str, slots: int = 1, level: float = 1.0) -> StreamId:
        """Make an agent known and link it."""
        self.know(agent, *(skills or ("work",)), level=level)
        return self.link(agent, slots)

    def frame(self, stream: StreamId, **items: Any) -> list[Effect]:
        return self.batch(WorkFrame("frame", stream, 0.5, **items))

    def unlink(self, stream: StreamId) -> list[Effect]:
        return self.batch(WorkClosed("gone", stream))

    def ref(self, task_id: str, request_id: str = "r1") -> AttemptRef:
        """Return the name of a task's newest attempt."""
        subject = self.task(task_id, request_id)
        return subject.ref(subject.attempts[-1])

    def finish(
        self, stream: StreamId, *task_ids: str, request_id: str = "r1", slots: int = 1
    ) -> list[Effect]:
        """Let an agent report results, and free the slots."""
        results = tuple(
            ResultReport(self.ref(task_id, request_id), Payload("text/plain", task_id.encode()))
            for task_id in task_ids
        )
        return self.frame(stream, results=results, credits=slots * len(task_ids))


def only(effects: Iterable[Effect], kind: type[E]) -> list[E]:
    """Return the effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def assigned(effects: Iterable[Effect]) -> list[str]:
    """Return the ids of the tasks that were handed over, in order."""
    return [effect.task.key.task_id for effect in only(effects, Assign)]


def answer(effects: Iterable[Effect]) -> Accepted | Collaboration | PolicyCell | ServiceError:
    """Return the one answer."""
    [found] = only(effects, Answer)
    return found.value


def ack_errors(effects: Iterable[Effect]) -> list[ServiceError | None]:
    """Return what the acks say."""
    return [ack.error for ack in only(effects, AckResult)]


def token(ref: AttemptRef, *, epoch: int = 0, number: int = 0) -> AttemptRef:
    """Return `ref` under another token."""
    return ref._replace(token=FencingToken(epoch or ref.token.epoch, number or ref.token.number))


LOW, NORMAL, HIGH, EMERGENCY = Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.EMERGENCY
