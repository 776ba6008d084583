"""The mailboxes as one process has them: what app.py runs, and the simple kind of it."""

from __future__ import annotations

from typing import Protocol

from services.broker.core.events import AgentsSeen
from services.broker.driver import Driver


class Broker(Protocol):
    """Mailboxes that are served by this process, or reached through it."""

    # Where others find this process; set before `run`.
    address: str

    async def open(self) -> None:
        """Make ready to serve; raises STORE_UNAVAILABLE."""
        ...

    async def run(self) -> None:
        """Work until cancelled; a defect comes out."""
        ...

    def see_agents(self, seen: AgentsSeen) -> None:
        """Take the registry's news."""
        ...

    async def settle(self) -> None:
        """Take no new envelopes; return when what came is answered."""
        ...

    async def close(self) -> None:
        """Let go of the store; stop `run` first."""
        ...


class Sole:
    """A broker that shares its mailboxes with nobody."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.address = driver, ""

    async def open(self) -> None:
        """See `Broker`."""
        await self.driver.open()

    async def run(self) -> None:
        """See `Broker`."""
        await self.driver.run()

    def see_agents(self, seen: AgentsSeen) -> None:
        """See `Broker`."""
        self.driver.see_agents(seen)

    async def settle(self) -> None:
        """See `Broker`."""
        self.driver.begin_drain()
        await self.driver.wait_idle()

    async def close(self) -> None:
        """See `Broker`."""
        await self.driver.close()
