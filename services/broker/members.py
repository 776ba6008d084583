"""Who belongs to a collaboration, asked of the scheduler whenever somebody writes to it.

The scheduler decides membership, so it is asked each time, before the envelopes come to the core: an agent
that was assigned a moment ago is a member already. While the scheduler can not be asked, the core goes on
with what it said last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from services.broker.core.events import MembersSeen
from services.common import logs
from services.common.clock import Clock
from services.common.core.errors import ServiceError

# Pause before the scheduler is asked again after it could not be, in milliseconds.
PAUSE_MS = 500

_log = logs.get("broker.members")


class MembershipSource(Protocol):
    """Knows who belongs to which collaboration."""

    async def members(self, collaboration_id: str, timeout_ms: int) -> frozenset[str] | None:
        """Return the members' mailboxes; None when there is no such collaboration.

        Raises ServiceError when it can not be known now.
        """
        ...


class Memberships:
    """Brings answers to the core. Owned by the event loop."""

    def __init__(
        self,
        source: MembershipSource | None,
        clock: Clock,
        take: Callable[[MembersSeen], None],
        timeout_ms: int,
    ) -> None:
        self._source, self._clock, self._take, self._timeout_ms = source, clock, take, timeout_ms
        self._ask_again_at_ms = 0

    async def learn(self, collaboration_ids: Iterable[str]) -> None:
        """Return when the core knows what can be known now."""
        await asyncio.gather(*(self._learn(one) for one in collaboration_ids))

    async def _learn(self, collaboration_id: str) -> None:
        if self._source is None or self._clock.monotonic_ms() < self._ask_again_at_ms:
            return
        try:
            members = await self._source.members(collaboration_id, self._timeout_ms)
        except ServiceError as error:
            self._ask_again_at_ms = self._clock.monotonic_ms() + PAUSE_MS
            _log.warning("the scheduler was not reached; members stay as they were", why=str(error))
            return
        self._take(MembersSeen(collaboration_id, members))
