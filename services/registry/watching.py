"""One WatchAgents stream: which agents it still has to be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice

from services.common.core.ids import AgentId


class AgentWatch:
    """Agents that changed since they were sent last, each once: a slow reader gets fewer, newer frames.

    Bounded by the number of agents, however slow the reader. Owned by the event loop.
    """

    def __init__(self, known: Iterable[AgentId]) -> None:
        # In the order in which they are sent.
        self._changed = dict.fromkeys(known)
        # Agents of the snapshot that were not sent; None when it is complete.
        self._snapshot_left: int | None = len(self._changed)
        self._wake = asyncio.Event()

    def mark(self, agent_id: AgentId) -> None:
        """Say that an agent changed."""
        self._changed[agent_id] = None
        self._wake.set()

    async def take(self, count_max: int) -> tuple[list[AgentId], bool]:
        """Wait for agents to send and return at most `count_max` of them.

        The flag is true once: with these everything known at the start has been taken.
        """
        while not self._changed and self._snapshot_left is None:
            self._wake.clear()
            await self._wake.wait()
        taken = list(islice(self._changed, count_max))
        for agent_id in taken:
            del self._changed[agent_id]
        if self._snapshot_left is None:
            return taken, False
        # What is known at the start comes first in the order, whatever changes meanwhile.
        self._snapshot_left -= len(taken)
        if self._snapshot_left > 0:
            return taken, False
        self._snapshot_left = None
        return taken, True
