"""What the registry needs of a store: atomic changes of one agent, and to see everybody's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.core.errors import ServiceError
from services.common.core.ids import AgentId
from services.registry.core.effects import Change
from services.registry.core.events import AgentSnapshot, PresenceSeen, RecordSeen
from services.registry.core.model import LeaseId


@dataclass(frozen=True, slots=True)
class Applied:
    """The change is durable; `revision` is that of its writes."""

    revision: int


# Applied; refused by its conditions, with the agent as it was then; or failed, see `FleetStore.commit`.
Outcome = Applied | AgentSnapshot | ServiceError


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """Every agent as of `revision`."""

    revision: int
    agents: tuple[AgentSnapshot, ...]


@dataclass(frozen=True, slots=True)
class FleetChanges:
    """What was written up to and including `revision` since what was yielded before; whole revisions."""

    revision: int
    changes: tuple[RecordSeen | PresenceSeen, ...]


class FleetStore(Protocol):
    """Durable agents, and presence that ends with its replica.

    Consistency: changes are serializable; each takes place as a whole if its conditions hold then, else not
    at all. Reads see every change that returned before they began. One revision counts all changes.
    Durability: what `commit` answers with `Applied` survives power loss, except presence keys: they go when
    their lease ends.
    Retry: a change that failed may have happened; read the agent before trying anything else.
    """

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        """Try to make each change, at most one per agent; return one outcome for each, in order.

        Never raises for the store's sake: an outcome that is a `ServiceError` leaves open whether the change
        happened. A change whose lease has ended fails.
        """
        ...

    async def load(self, agent_id: AgentId) -> AgentSnapshot:
        """Return one agent as it is now. Raises STORE_UNAVAILABLE."""
        ...

    def follow(self) -> AsyncGenerator[FleetSnapshot | FleetChanges, None]:
        """Yield everything, then every change after it; everything again after a gap.

        Waits for as long as the store is away. Close with `contextlib.aclosing`.
        """
        ...

    def leases(self) -> AsyncGenerator[LeaseId, None]:
        """Yield a live lease, `NO_LEASE` as soon as it may have ended, then the next one, for ever.

        Closing it (`contextlib.aclosing`) ends the last lease and its presence keys at once.
        """
        ...
