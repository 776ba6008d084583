"""The running copies of agents as the scheduler sees them: link, credits and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from services.common.core.ids import Skill
from services.common.core.instants import Instant
from services.scheduler.core.course import Task
from services.scheduler.core.events import StreamId
from services.scheduler.core.locking.queue import LockId
from services.scheduler.core.model import InstanceKey, TaskKey
from services.scheduler.core.timers import Timer

#: Skill to declared level.
Levels = Mapping[Skill, float]
NO_SKILLS: Levels = MappingProxyType({})
NO_CAPACITIES: Mapping[str, int] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Instance:
    """One running copy of an agent, from its first sign until nothing depends on it any more."""

    key: InstanceKey
    #: The newest that was seen; an older one is fenced.
    incarnation: int
    #: Its Work stream; None while the link is down.
    stream: StreamId | None = None
    #: Attempts that it will accept beyond those it holds.
    credits: int = 0
    #: Known from the store only: it has not been linked since this leadership began.
    recovered: bool = False
    #: It heeds the request to suspend an attempt.
    suspendable: bool = False
    #: It takes nothing new.
    draining: bool = False
    #: Tasks whose open attempt it holds.
    held: dict[TaskKey, Task] = field(default_factory=dict)
    #: Locks that its code asked for, by request: waiting or held.
    lock_ids: dict[LockId, None] = field(default_factory=dict)
    #: Those asked for on the present stream, by the agent's number.
    lock_requests: dict[int, LockId] = field(default_factory=dict)
    #: From the registry; empty until it has told.
    levels: Levels = field(default_factory=lambda: NO_SKILLS)
    #: The registry says that its session is over.
    gone: bool = False
    #: When the last frame came; None while the link is down.
    heard: Instant | None = None
    #: The newest probe; 0 when none is unanswered.
    probe_nonce: int = 0
    #: PROBE while the stream is open, GRACE while it is not.
    timer: Timer | None = None
    #: Urgent tasks that a slot is kept for while attempts that make room for them save.
    kept: dict[TaskKey, Task] = field(default_factory=dict)
    #: What its capacities are, by name, and what is taken of them: by what it holds, and by what is kept.
    capacities: Mapping[str, int] = field(default_factory=lambda: NO_CAPACITIES)
    used: dict[str, int] = field(default_factory=dict)
    #: What a slot costs for an hour, in whatever unit its operators agreed on; 0 when nobody said.
    cost: float = 0.0
    #: When it last got an attempt, as a number that only grows.
    turn: int = 0
    #: Attempts that it got since one that had waited beyond its age: see `core.ageing`.
    fresh_starts: int = 0
    #: Owned by the placement index: its row in the fleet's columns, -1 when it has none.
    row: int = -1

    def __repr__(self) -> str:
        link = "linked" if self.stream is not None else "unlinked"
        return f"<Instance {self.key}@{self.incarnation} {link} held {len(self.held)} credits {self.credits}>"

    def keep(self, task: Task) -> None:
        """Keep one of its slots, and what a task needs, for that task; nobody else gets it."""
        self.kept[task.key] = task
        for name, amount in task.spec.needs:
            self.used[name] = self.used.get(name, 0) + amount

    def let_go(self, task: Task) -> None:
        """Keep nothing for a task any more."""
        del self.kept[task.key]
        for name, amount in task.spec.needs:
            self.used[name] -= amount

    def hold(self, task: Task) -> None:
        """Take in a task of which it now has an open attempt."""
        self.held[task.key] = task
        needs = task.spec.needs
        task.account.take(needs)
        for name, amount in needs:
            self.used[name] = self.used.get(name, 0) + amount

    def drop(self, task: Task) -> None:
        """Let go of a task whose attempt here is over; one that it does not hold is passed over."""
        if self.held.pop(task.key, None) is None:
            return
        needs = task.spec.needs
        task.account.give(needs)
        for name, amount in needs:
            self.used[name] -= amount

    @property
    def free(self) -> int:
        """Attempts that may be assigned to it now, those left out that are kept for somebody."""
        if self.stream is None or self.draining:
            return 0
        return max(0, self.credits - len(self.kept)) if self.kept else self.credits

    @property
    def load(self) -> float:
        """Share of its slots in use, 0 to 1; a slot is an attempt that it holds or would accept."""
        slots = len(self.held) + self.credits
        return len(self.held) / slots if slots else 1.0
