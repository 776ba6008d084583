"""Election of one leader among candidates: the protocol, and what a leader holds.

Implementations: `services.common.etcd.election` and, for tests, `services.common.testing.election`. One
suite, `tests/conformance/test_election.py`, runs on both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from services.common.etcd.ops import Compare


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads, as everybody sees it: its value (who it is, opaque here) and its epoch."""

    value: bytes
    epoch: int


class Tenure(Protocol):
    """How long a leadership lasts."""

    lost: asyncio.Event

    @property
    def live(self) -> bool:
        """Whether the leadership certainly stands now."""
        ...


@dataclass(frozen=True, slots=True)
class Leadership:
    """One won election. A condition, not a promise: put `guard` into every write.

    A leader that was stopped wakes in the belief that it leads. `held` then says no, unless the stop falls
    between asking and writing; the guard makes that write fail at the store.
    """

    # Grows with every leadership: the create revision of `key`.
    epoch: int
    key: str
    tenure: Tenure

    @property
    def guard(self) -> Compare:
        """The condition that this leadership stands still."""
        return Compare.created_at(self.key, self.epoch)

    @property
    def held(self) -> bool:
        """Whether this leadership certainly stands now; once false it stays false."""
        return self.tenure.live

    async def wait_lost(self) -> None:
        """Return when the leadership is lost, or may be lost."""
        await self.tenure.lost.wait()


class Election(Protocol):
    """One candidate's part in an election.

    Safety: of all leaderships only the one with the largest epoch so far can pass its guard.
    Liveness: a leader that crashes is followed within its lease plus etcd's expiry tick (0.5 s).
    Order: candidates lead in the order in which they began to campaign.
    """

    async def campaign(self, value: bytes) -> Leadership:
        """Wait until this candidate leads. Losing the lease while waiting means to queue again.

        Waits for as long as the store is away. Cancelling withdraws the candidacy. At most one campaign or
        leadership at a time for each candidate: RuntimeError otherwise.
        """
        ...

    def observe(self) -> AsyncGenerator[Leader | None, None]:
        """Yield the present leader (None: nobody), then again each time that it changes.

        A slow reader may miss leaders that came and went, never the newest. Close with
        `contextlib.aclosing`.
        """
        ...

    async def depose(self, leader: Leader) -> None:
        """Take the leadership of `leader` away if it still stands, as the end of its lease would.

        For those who know that its process is gone. Raises STORE_UNAVAILABLE: it may or may not stand then.
        """
        ...

    async def resign(self) -> None:
        """Give up leadership, so that the next candidate leads at once; nothing happens without one."""
        ...
