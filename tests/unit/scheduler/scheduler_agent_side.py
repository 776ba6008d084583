"""An agent of the random world: what it knows, and what its handlers bring."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.scheduler.core.effects import Assign
from services.scheduler.core.events import Cancelled, HeldLock, ResultReport, StreamId
from services.scheduler.core.model import AttemptRef, Failure, FailureKind, Payload, ResourceClaim


@dataclass
class AgentSide:
    """What one agent instance knows."""

    name: str
    incarnation: int = 1
    stream: StreamId | None = None
    credits: int = 0
    drained: bool = False
    probe: int = 0
    #: Attempts that its handlers run.
    held: dict[AttemptRef, Assign] = field(default_factory=dict)
    #: Results that were not acked yet; sent again after every new link.
    unacked: dict[AttemptRef, ResultReport] = field(default_factory=dict)
    #: Those of `held` that it is asked to suspend, and when their grace ends.
    suspending: dict[AttemptRef, int] = field(default_factory=dict)
    #: The savepoint of each attempt that is on its way.
    saving: dict[AttemptRef, bytes] = field(default_factory=dict)
    #: Everything that it ever had: replayed by a confused agent.
    past: list[AttemptRef] = field(default_factory=list)
    #: Locks that its code holds, by request, and requests that wait.
    locks: dict[int, tuple[HeldLock, ...]] = field(default_factory=dict)
    waiting: dict[int, tuple[ResourceClaim, ...]] = field(default_factory=dict)
    requests: int = 0
    #: What it ran when its link broke: until then nobody else may be given that.
    safe: frozenset[AttemptRef] = frozenset()
    safe_until: int = 0


def restart(agent: AgentSide) -> None:
    agent.incarnation += 1
    agent.held.clear()
    agent.unacked.clear()
    agent.locks.clear()
    agent.suspending.clear()
    agent.saving.clear()


def outcome_of(end: str, ref: AttemptRef) -> Payload | Failure | Cancelled:
    match end:
        case "transient":
            return Failure(FailureKind.TRANSIENT, "HANDLER_RAISED")
        case "permanent":
            return Failure(FailureKind.PERMANENT, "HANDLER_REFUSED")
        case "cancelled":
            return Cancelled()
        case _:
            return Payload("", str(ref).encode())


def drop_lock(agent: AgentSide, lock: HeldLock) -> None:
    for number, locks in [*agent.locks.items()]:
        left = tuple(each for each in locks if each != lock)
        if left:
            agent.locks[number] = left
        else:
            del agent.locks[number]
