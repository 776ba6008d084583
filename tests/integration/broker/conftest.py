"""A real broker on real sockets and a real file, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.broker.app import BrokerApp
from services.broker.config import BrokerConfig
from services.broker.peers import AgentsView
from services.broker.store import MailboxStore
from services.broker.stores.sqlite import SqliteStore
from services.common.core.errors import Reason, ServiceError
from services.common.testing.outbox import MemoryOutbox
from tests.conftest import Certificates
from tests.integration.broker.broker_client import MailboxClient

AGENTS = frozenset({"alpha", "beta", "gamma"})


class KnownAgents:
    """A registry that knows a few agents; more can be told later."""

    def __init__(self, names: frozenset[str] = AGENTS) -> None:
        self.names = names
        self.news: asyncio.Queue[AgentsView] = asyncio.Queue()

    async def watch(self) -> AsyncGenerator[AgentsView, None]:
        """See `peers.AgentDirectory`."""
        yield AgentsView(self.names, complete=True)
        while True:
            yield await self.news.get()


class KnownMembers:
    """A scheduler that knows a few collaborations, and can be away."""

    def __init__(self) -> None:
        self.teams: dict[str, frozenset[str]] = {}
        self.away = False
        self.asked = 0

    async def members(self, collaboration_id: str, timeout_ms: int) -> frozenset[str] | None:
        """See `members.MembershipSource`."""
        del timeout_ms
        self.asked += 1
        if self.away:
            raise ServiceError(Reason.NOT_COORDINATOR, "nobody leads")
        return self.teams.get(collaboration_id)


class House:
    """One broker's folder and whoever runs in it; can be stopped and started again."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self.folder, self.certificates = folder, certificates
        self.outbox = MemoryOutbox()
        self.agents = KnownAgents()
        self.members = KnownMembers()
        self.app: BrokerApp | None = None
        self.clients: list[MailboxClient] = []

    def config(self, **changes: Any) -> BrokerConfig:
        """Return settings for tests: short times, everything on a free port."""
        certificate, key = self.certificates.issue("service/broker")
        settings: dict[str, Any] = {
            "replica_id": "broker-1",
            "listen": "127.0.0.1:0",
            "ca": self.certificates.ca_path,
            "certificate": certificate,
            "key": key,
            "etcd_endpoints": ("127.0.0.1:1",),
            "etcd_ca": self.certificates.ca_path,
            "etcd_certificate": certificate,
            "etcd_key": key,
            "data_directory": self.folder,
            "redelivery_base_ms": 20,
        }
        return BrokerConfig(**settings | changes)

    async def start(self, store: MailboxStore | None = None, **changes: Any) -> BrokerApp:
        """Start a broker on what the folder holds."""
        store = store or SqliteStore.open(self.folder / "mailboxes.sqlite")
        self.app = BrokerApp(
            self.config(**changes), store, self.outbox, agents=self.agents, collaborations=self.members
        )
        await self.app.start()
        return self.app

    async def stop(self) -> None:
        """Drain the broker."""
        if self.app is not None:
            app, self.app = self.app, None
            await app.drain()

    async def open(self, principal: str, **hello: Any) -> MailboxClient:
        """Open a Mailbox stream of "agent/alpha", "operator/admin", …"""
        assert self.app is not None
        client = await MailboxClient.open(self.app.address, self.certificates.tls(principal), **hello)
        self.clients.append(client)
        return client

    async def close(self) -> None:
        """End everything."""
        for client in self.clients:
            await client.close()
        await self.stop()


@pytest_asyncio.fixture
async def house(tmp_path: Path, certificates: Certificates) -> AsyncIterator[House]:
    """A house without a broker yet."""
    made = House(tmp_path, certificates)
    yield made
    await made.close()


Open = Callable[..., Awaitable[MailboxClient]]


@pytest_asyncio.fixture
async def opened(house: House) -> House:
    """A house with a broker."""
    await house.start()
    return house


@pytest.fixture
def agent_names() -> frozenset[str]:
    """Whom the registry knows."""
    return AGENTS
