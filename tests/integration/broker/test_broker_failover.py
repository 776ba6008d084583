"""A broker whose Redis dies for good: a replica of it takes over, and nothing acknowledged is missing.

Where Redis is does not change for the broker: a proxy stands for the address that an operator, a sentinel or
a load balancer moves to the promoted replica.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.conftest import Certificates, Eventually
from tests.harness.etcd import EtcdHarness
from tests.harness.redis import RedisServer, running_redis
from tests.integration.broker.broker_load import break_under_load
from tests.integration.broker.broker_process import BrokerProcess
from tests.integration.broker.broker_proxy import Proxy

FAILOVERS = 1
NIGHTLY_FAILOVERS = 20


class Redises:
    """A primary, its replica, and the address under which the primary is known."""

    def __init__(self, folder: Path, running: contextlib.ExitStack) -> None:
        self._folder, self._running = folder, running
        self._count = 0
        self.primary = self._start()
        self.replica = self._start(self.primary)
        self.proxy = Proxy(self.primary.address)

    def _start(self, primary: RedisServer | None = None) -> RedisServer:
        self._count += 1
        of = () if primary is None else ("--replicaof", "127.0.0.1", str(primary.settings.port))
        made = running_redis(self._folder / f"redis-{self._count}", "--repl-diskless-sync-delay", "0", *of)
        return self._running.enter_context(made)

    async def in_step(self) -> bool:
        """Whether the replica has everything."""
        with contextlib.suppress(RedisError):
            return await _ask(self.primary, "WAIT", 1, 100) == 1
        return False

    async def lose_touch(self) -> int:
        """Have the replica look for its primary where nobody is; return up to where it has come."""
        await _ask(self.replica, "REPLICAOF", "127.0.0.1", "1")
        return await _offset(self.replica)

    async def is_ahead(self, of: int) -> bool:
        """Whether the primary has something that the replica will never have."""
        return await _offset(self.primary) > of

    async def fail_over(self) -> None:
        """Kill the primary, promote its replica, move the address, give the new primary a replica."""
        self.primary.kill()
        await _ask(self.replica, "REPLICAOF", "NO", "ONE")
        self.primary = self.replica
        self.proxy.lead_to(self.primary.address)
        await self.proxy.cut()
        self.replica = await asyncio.to_thread(self._start, self.primary)


async def _ask(server: RedisServer, *command: object) -> object:
    async with Redis(host="127.0.0.1", port=server.settings.port) as client:
        return await client.execute_command(*command)  # type: ignore[no-untyped-call]


async def _offset(server: RedisServer) -> int:
    facts = await _ask(server, "INFO", "replication")
    assert isinstance(facts, dict)
    return int(facts["master_repl_offset"])


@pytest.fixture
def redises(tmp_path: Path) -> Iterator[Redises]:
    """A primary with a replica."""
    with contextlib.ExitStack() as running:
        yield Redises(tmp_path, running)


@pytest_asyncio.fixture
async def broker(
    tmp_path: Path,
    certificates: Certificates,
    free_port: Callable[[], int],
    etcd: EtcdHarness,
    etcd_prefix: str,
    redises: Redises,
) -> AsyncIterator[BrokerProcess]:
    """A broker that acknowledges what a replica has."""
    made = BrokerProcess(
        certificates,
        tmp_path / "broker",
        free_port(),
        audit_messages="none",
        store="redis",
        redis_address=await redises.proxy.start(),
        redis_wait_replicas=1,
        key_prefix=etcd_prefix,
        etcd_endpoints=list(etcd.endpoints),
        etcd_ca=str(etcd.tls.ca),
        etcd_certificate=str(etcd.tls.certificate),
        etcd_key=str(etcd.tls.key),
    )
    made.start()
    yield made
    if made.process is not None:
        made.kill()
    await redises.proxy.stop()


async def _fail_over(
    broker: BrokerProcess,
    redises: Redises,
    certificates: Certificates,
    eventually: Eventually,
    times: int,
) -> None:
    async def harm(_: int) -> None:
        await eventually(redises.in_step, timeout=60)
        reached = await redises.lose_touch()
        # A commit is under way that only the primary has when it dies: nobody may have been told of it.
        await eventually(lambda: redises.is_ahead(reached), timeout=60)
        await redises.fail_over()

    def story() -> str:
        return broker.log_path.read_text()[-4_000:]

    await break_under_load(broker.address, certificates, eventually, times, harm, story)


async def test_a_replica_of_redis_is_promoted_under_load(
    broker: BrokerProcess, redises: Redises, certificates: Certificates, eventually: Eventually
) -> None:
    await _fail_over(broker, redises, certificates, eventually, FAILOVERS)


@pytest.mark.nightly
async def test_replicas_of_redis_are_promoted_very_often_under_load(
    broker: BrokerProcess, redises: Redises, certificates: Certificates, eventually: Eventually
) -> None:
    await _fail_over(broker, redises, certificates, eventually, NIGHTLY_FAILOVERS)
