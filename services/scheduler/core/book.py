"""Everything that a leader knows, and the record of one step. Data only: the decisions are in the modules
that take a `Book` and a `Step`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.core.entries import EntryDraft, Outcome
from services.common.core.fencing import FencingToken
from services.common.core.ids import CollaborationId, ResourceName
from services.common.core.instants import Instant
from services.scheduler.core.analysis.classifier import Classifier
from services.scheduler.core.changes import Change, CollaborationView
from services.scheduler.core.course import Attempt, Collaboration, Task
from services.scheduler.core.directory import Directory
from services.scheduler.core.effects import Effect, Publish, SaveCollaboration, SaveTask
from services.scheduler.core.events import HeldLock, StreamId
from services.scheduler.core.foreseeing.foresight import Foresight
from services.scheduler.core.instances import Instance
from services.scheduler.core.locking.queue import LockId, LockRequest
from services.scheduler.core.locking.table import LockTable
from services.scheduler.core.model import (
    AttemptRef,
    InstanceKey,
    Limits,
    PolicyArm,
    Priority,
    SchedulingPolicy,
    TaskKey,
)
from services.scheduler.core.monitoring.observed import Observed
from services.scheduler.core.placing.fairness import Accounts
from services.scheduler.core.placing.index import PlacementIndex
from services.scheduler.core.placing.victims import Victims
from services.scheduler.core.policies.bandit import Bandit
from services.scheduler.core.prediction.predictor import Predictor
from services.scheduler.core.running.deadlines import DeadlineView
from services.scheduler.core.running.work_budget import WorkBudget
from services.scheduler.core.timers import Timer, Timers

_GOLDEN_RATIO = 0.6180339887498949


_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers that decisions depend on; `services.scheduler.config` explains them."""

    limits: Limits = _LIMITS
    reconnect_grace_ms: int = 2_000
    takeover_grace_ms: int = 20_000
    gone_grace_ms: int = 5_000
    probe_interval_ms: int = 5_000
    silence_ms_max: int = 15_000
    retention_ms: int = 600_000
    retained_max: int = 10_000
    retained_task_max: int = 100_000
    open_collaboration_max: int = 50_000
    open_task_max: int = 200_000
    open_bytes_max: int = 256 * 1024 * 1024
    input_bytes_max: int = 3 * 1024 * 1024
    history_max: int = 1_024
    credit_max: int = 1_024
    loss_max: int = 50
    wave_max: int = 8_192
    #: Policy of collaborations that name none.
    policy: SchedulingPolicy = SchedulingPolicy.PRIORITY
    #: Policies that are chosen from for these, the default first; none: `policy` is the one.
    arms: tuple[PolicyArm, ...] = ()
    #: Requester to weight; who is not named has 1.
    requester_weights: tuple[tuple[str, float], ...] = ()
    ageing_ms: int = 60_000
    ageing_share: int = 4
    lock_request_max: int = 1_024
    #: The least urgent class whose ready tasks may take the slot of a running attempt of a lower class.
    preempting_priority: Priority = Priority.EMERGENCY
    suspend_grace_ms: int = 2_000
    savepoint_interval_ms: int = 1_000
    #: Share of the work done lately that second attempts may take; 0 for none of them.
    speculation_share: float = 0.05
    #: Share of predicted durations after which an attempt counts as slow.
    straggle_quantile: float = 0.99
    speculation_window_ms: int = 3_600_000
    plan_interval_ms: int = 2_000
    #: How long a search for a better standing plan takes; 0 for none.
    plan_budget_ms: int = 300


@dataclass(slots=True, eq=False)
class LockUse:
    """One lock request with whom it serves, from asking until its last claim has ended."""

    request: LockRequest
    #: When it was first asked for, which gives its place in the line.
    asked: Instant
    #: True: claimed by the task's specification; False: by an agent's code.
    declared: bool
    #: Who acts; None while a task waits for its declared claims.
    instance: Instance | None
    #: The task on whose behalf; None when it was taken outside of attempts.
    task: Task | None
    attempt: AttemptRef | None = None
    #: Where the answer goes; None for declared claims.
    stream: StreamId | None = None
    lock_request_id: int = 0
    #: When its owner gives up; None waits without limit.
    wait_until: Instant | None = None
    #: LOCK_WAIT, while it waits.
    timer: Timer | None = None
    #: The lock table has granted it.
    proposed: bool = False
    #: Its keys are in the store or in this batch.
    written: bool = False
    #: Ended while its keys were on their way.
    abandoned: bool = False
    #: Set when it counts.
    token: FencingToken | None = None
    #: Claims that have ended before the others.
    ended: set[ResourceName] = field(default_factory=set)

    @property
    def held_locks(self) -> tuple[HeldLock, ...]:
        """The claims that are held, with their token; empty before it counts."""
        token = self.token
        if token is None:
            return ()
        names = (claim.resource for claim in self.request.claims)
        return tuple(HeldLock(name, token) for name in names if name not in self.ended)


class Room(NamedTuple):
    """Slots that are kept for an urgent task, or for all members of an urgent gang, while others save.

    In memory only: a new leader chooses anew, and counts what still saves as leaving.
    """

    #: Who waits, where it will start, and on which link: another link counts its slots anew.
    places: tuple[tuple[Task, Instance, StreamId], ...]
    #: Since when.
    since: Instant


@dataclass(slots=True)
class Book:
    """The state of one leadership. Owned by `SchedulerState`."""

    settings: Settings
    #: The leadership that issues tokens now.
    epoch: int
    collaborations: dict[CollaborationId, Collaboration] = field(default_factory=dict)
    instances: dict[InstanceKey, Instance] = field(default_factory=dict)
    streams: dict[StreamId, Instance] = field(default_factory=dict)
    directory: Directory = field(default_factory=Directory)
    index: PlacementIndex = field(init=False)
    accounts: Accounts = field(init=False)
    timers: Timers = field(default_factory=Timers)
    predictor: Predictor = field(default_factory=Predictor)
    #: Made when it is first needed: `analysing.classifier_of`.
    classifier: Classifier | None = None
    #: LEARNED, while something that was learned is not in the store.
    learned_timer: Timer | None = None
    observed: Observed = field(default_factory=Observed)
    locks: LockTable = field(default_factory=LockTable)
    lock_uses: dict[LockId, LockUse] = field(default_factory=dict)
    #: Tasks in the placement index whose declared claims are granted; the next placement empties it.
    reserved: dict[LockId, Task] = field(default_factory=dict)
    #: Tasks under PREDICTIVE that wait for the agent that will serve them best.
    foresight: Foresight = field(default_factory=Foresight)
    #: Running tasks whose attempt takes longer than predicted, and what helping them may cost.
    stragglers: dict[TaskKey, Task] = field(default_factory=dict)
    budget: WorkBudget = field(init=False)
    bandit: Bandit = field(init=False)
    #: Attempts that may make room for more urgent work.
    victims: Victims = field(default_factory=Victims)
    #: Tasks in the placement index that may take the slot of another, in the order in which they came.
    urgent: dict[TaskKey, Task] = field(default_factory=dict)
    #: What is kept for whom while others save, by the task or the gang.
    rooms: dict[TaskKey, Room] = field(default_factory=dict)
    #: Lock requests of agents' code so far: makes their ids unique.
    lock_serial: int = 0
    #: Ended collaborations, oldest end first, and their tasks together.
    ended: deque[CollaborationId] = field(default_factory=deque)
    retained_task_count: int = 0
    open_collaboration_count: int = 0
    #: Tasks that have not ended, and the bytes of their collaborations.
    open_task_count: int = 0
    open_bytes: int = 0
    #: Submissions accepted so far: gives every task its place in the order of arrival.
    arrival: int = 0
    probe_nonce: int = 0

    def __post_init__(self) -> None:
        """Make what depends on the settings."""
        self.index = PlacementIndex(self.settings.ageing_ms, self.settings.ageing_share)
        estimate = self.predictor.estimate
        self.index.pools.estimate = lambda agent, kind, ms, skill: estimate(agent, kind, ms, skill).mean_ms
        self.accounts = Accounts(dict(self.settings.requester_weights))
        self.bandit = Bandit(tuple(arm.name for arm in self.settings.arms))
        self.budget = WorkBudget(self.settings.speculation_share, self.settings.speculation_window_ms)

    def task(self, key: TaskKey | AttemptRef) -> Task | None:
        """Return the named task, None when it is not known."""
        collaboration = self.collaborations.get(key.collaboration_id)
        return None if collaboration is None else collaboration.tasks.get(key.task_id)

    def instance_of(self, attempt: Attempt) -> Instance | None:
        """Return the instance that holds an open attempt."""
        return self.instances.get(attempt.instance)

    def note_end(self, collaboration: Collaboration) -> None:
        """Count a collaboration among those that have ended."""
        self.open_collaboration_count -= 1
        self.open_bytes -= collaboration.size_bytes
        self.accounts.close(collaboration.account)
        self.ended.append(collaboration.collaboration_id)
        self.retained_task_count += len(collaboration.tasks)


class Step:
    """One event being handled: on which state, what time it is, why, and the effects so far."""

    __slots__ = ("_jitter", "book", "cause_id", "classified", "effects", "now")

    def __init__(self, book: Book, now: Instant, cause_id: str, jitter: float = 0.0) -> None:
        self.book = book
        self.now = now
        self.cause_id = cause_id
        self.effects: list[Effect] = []
        #: Texts whose type was read in this step.
        self.classified = 0
        self._jitter = jitter

    def draw(self) -> float:
        """Return a number in [0, 1): the event's jitter first, then a sequence spread evenly from there.

        Method: additive recurrence with the golden ratio (Kronecker sequence): many retries that one event
        causes are as far from each other as can be.
        """
        jitter = self._jitter
        self._jitter = (jitter + _GOLDEN_RATIO) % 1.0
        return jitter

    def task_changed(self, task: Task) -> None:
        """Make the change of a task durable and known: one generation, one event (guarantee T6)."""
        collaboration = task.collaboration
        collaboration.generation += 1
        task.generation += 1
        task.collaboration_generation = collaboration.generation
        change = Change(collaboration.collaboration_id, collaboration.generation, self.now, task.view())
        collaboration.history.append(change)
        self.effects += (SaveTask(task), Publish(change))

    def collaboration_changed(self, collaboration: Collaboration) -> None:
        """Make the change of a collaboration durable and known: one generation, one event (guarantee T6)."""
        collaboration.generation += 1
        self._tell(collaboration, collaboration.view())

    def deadline_changed(self, collaboration: Collaboration, view: DeadlineView) -> None:
        """Make a warning, or its end, durable and known: one generation, one event (guarantee T6)."""
        collaboration.generation += 1
        self._tell(collaboration, view)

    def _tell(self, collaboration: Collaboration, subject: CollaborationView | DeadlineView) -> None:
        change = Change(collaboration.collaboration_id, collaboration.generation, self.now, subject)
        collaboration.history.append(change)
        self.effects += (SaveCollaboration(collaboration), Publish(change))

    def entry(
        self,
        operation: str,
        subject: str,
        actor: str,
        *,
        outcome: Outcome = Outcome.OK,
        reason: str = "",
        collaboration_id: str = "",
        cause_id: str = "",
        attributes: dict[str, str] | None = None,
    ) -> None:
        """Have an operation recorded in the audit log."""
        self.effects.append(
            EntryDraft(
                self.now,
                actor,
                operation,
                subject,
                outcome,
                reason,
                cause_id or self.cause_id,
                collaboration_id,
                attributes or {},
            )
        )
