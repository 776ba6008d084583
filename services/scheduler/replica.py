"""One replica of the scheduler: it campaigns, leads with a driver of its own, loses, and campaigns again."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import NoReturn

from services.common.candidate import Candidate
from services.common.core.entries import EntryDraft
from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId
from services.common.election import Election, Leadership
from services.scheduler.core.events import AgentsChanged, AgentView
from services.scheduler.driver import Driver, DriverParts
from services.scheduler.peers import AgentFeed

#: How long a request waits for a leader that is still loading.
_LOADING_S_MAX = 10.0


class Replica:
    """Runs two loops, `lead` and `hear`; servicers ask for the `driver`.

    `coordinator` tells the address of whoever leads, empty when that is not known.
    """

    def __init__(
        self, election: Election, feed: AgentFeed, parts: DriverParts, coordinator: Callable[[], str]
    ) -> None:
        self._candidate, self._feed, self._parts = Candidate(election), feed, parts
        self._coordinator = coordinator
        #: Where this replica is found by others; set before it leads.
        self.address = ""
        self._driver: Driver | None = None
        #: The registry's newest view, kept by standbys, too: a takeover does not wait for it.
        self._agents: dict[AgentId, AgentView] = {}
        self._heard = asyncio.Event()

    @property
    def leads(self) -> bool:
        """Whether this replica leads and serves."""
        return self._driver is not None and self._driver.serving.is_set() and not self._driver.ended.is_set()

    async def driver(self) -> Driver:
        """Return the driver of this replica's leadership; raises NOT_COORDINATOR with "coordinator"."""
        driver = self._driver
        if driver is None:
            self._refuse()
        if not driver.serving.is_set():
            # We won and are loading: whoever followed the election here need not come back.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOADING_S_MAX):
                    await driver.serving.wait()
        if driver.ended.is_set() or not driver.serving.is_set():
            self._refuse()
        return driver

    def not_coordinator(self) -> ServiceError:
        """Return the error of a standby: who leads, if that is known."""
        address = self._coordinator()
        if address == self.address:
            # What is known of the election is from a moment ago, when we still led.
            address = ""
        return ServiceError(
            Reason.NOT_COORDINATOR,
            f"this replica does not lead: ask {address or 'the registry who does'}",
            metadata={"coordinator": address},
            retry_after_ms=None if address else 500,
        )

    async def lead(self, value: bytes, registry_wait_ms: int) -> None:
        """Campaign and lead, again and again, until `resign` or cancelled. Raises what is a defect."""

        async def lead(leadership: Leadership) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(registry_wait_ms / 1_000):
                    await self._heard.wait()
            if not self._candidate.withdrawn:
                await self._lead(leadership)

        await self._candidate.run(value, lead)

    async def _lead(self, leadership: Leadership) -> None:
        driver = self._driver = Driver(leadership, self._parts)
        try:
            await driver.run(self._all_agents)
        finally:
            self._driver = None
            driver.end(self.not_coordinator())
            await self._parts.outbox.record([self._lost(leadership)])

    async def resign(self) -> None:
        """Give up the lead, if this replica has it, and do not campaign again."""
        self._candidate.withdraw()
        if self._driver is not None:
            self._driver.stop()
        await self._candidate.wait_idle()

    async def hear(self) -> None:
        """Follow what the registry says, until cancelled."""
        await self._feed.run(self._take)

    def _take(self, event: AgentsChanged) -> None:
        if event.snapshot:
            self._agents.clear()
        self._agents.update((agent.agent_id, agent) for agent in event.agents)
        self._heard.set()
        if self._driver is not None:
            self._driver.put(event)

    def _all_agents(self) -> AgentsChanged:
        return AgentsChanged("takeover", random.random(), tuple(self._agents.values()), snapshot=True)

    def _refuse(self) -> NoReturn:
        raise self.not_coordinator()

    def _lost(self, leadership: Leadership) -> EntryDraft:
        return EntryDraft(
            self._parts.clock.now(),
            "service/scheduler",
            "leadership.lose",
            f"replica/{self._parts.replica_id}",
            attributes={"epoch": str(leadership.epoch)},
        )
