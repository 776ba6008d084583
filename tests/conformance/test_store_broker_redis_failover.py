"""A primary Redis dies and a replica is promoted: what WAIT said yes to is there, other things may not be.

The promotion is what an operator or a sentinel does: REPLICAOF NO ONE at a replica that has the most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.broker.core.model import Batch, DomainRecord
from services.broker.stores.redis import RedisStore
from services.common.core.errors import Reason, ServiceError
from tests.conformance.store_broker_course import KEY, NOW, Course, a_batch, an_envelope
from tests.conftest import Eventually
from tests.harness.redis import RedisServer, running_redis

FAILOVERS = 3
# Further replicas are not waited for, so that a new one is in step at once.
AT_ONCE = ("--repl-diskless-sync-delay", "0")

Start = Callable[..., RedisServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a Redis of its own, as a replica of another one if that is given."""
    with contextlib.ExitStack() as running:
        count = 0

        def one(primary: RedisServer | None = None) -> RedisServer:
            nonlocal count
            count += 1
            of = () if primary is None else ("--replicaof", "127.0.0.1", str(primary.settings.port))
            return running.enter_context(running_redis(tmp_path / f"redis-{count}", *AT_ONCE, *of))

        yield one


async def ask(server: RedisServer, *command: object) -> object:
    async with Redis(host="127.0.0.1", port=server.settings.port) as client:
        return await client.execute_command(*command)  # type: ignore[no-untyped-call]


async def promote(replica: RedisServer) -> None:
    await ask(replica, "REPLICAOF", "NO", "ONE")


async def lose_touch(replica: RedisServer) -> None:
    """Have a replica look for its primary where nobody is; it keeps what it has."""
    await ask(replica, "REPLICAOF", "127.0.0.1", "1")


async def in_step(primary: RedisServer, count: int = 1) -> bool:
    """Whether `count` replicas have everything."""
    return await ask(primary, "WAIT", count, 100) == count


def store_on(server: RedisServer, epoch: int, *, wait_replicas: int) -> RedisStore:
    return RedisStore(
        replace(server.settings, wait_replicas=wait_replicas, wait_ms=20_000, timeout_ms=30_000), epoch
    )


async def test_what_wait_said_yes_to_survives_the_primary(start: Start, eventually: Eventually) -> None:
    """Killed right behind the answer, again and again; each promoted replica gets a new one."""
    course = Course(11)
    primary, replica = (first := start()), start(first)
    for epoch in range(1, FAILOVERS + 1):
        await eventually(lambda primary=primary: in_step(primary), timeout=30)
        store = store_on(primary, epoch, wait_replicas=1)
        recovered = await store.load(NOW)
        if epoch > 1:
            course.check(recovered)
        for _ in range(8):
            await store.commit(course.batch())
        primary.kill()
        await store.close()
        await promote(replica)
        primary, replica = replica, start(replica)
    # Also for one that asks nobody any more.
    last = store_on(primary, FAILOVERS + 1, wait_replicas=0)
    course.check(await last.load(NOW))
    await last.close()


async def test_without_wait_a_promotion_may_lose_what_was_acknowledged(
    start: Start, eventually: Eventually
) -> None:
    """Why there is `redis_wait_replicas`."""
    primary = start()
    replica = start(primary)
    await eventually(lambda: in_step(primary), timeout=30)
    careless = store_on(primary, 1, wait_replicas=0)
    await careless.load(NOW)
    await careless.commit(a_batch(1, [an_envelope(1)], DomainRecord(KEY, 2, 0)))
    await eventually(lambda: in_step(primary), timeout=30)
    await lose_touch(replica)
    await careless.commit(a_batch(2, [an_envelope(2)], DomainRecord(KEY, 3, 0)))
    await careless.close()
    primary.kill()
    await promote(replica)
    survivor = store_on(replica, 2, wait_replicas=0)
    assert [one.sequence for one in (await survivor.load(NOW)).envelopes] == [1]
    await survivor.close()


async def test_a_commit_that_wait_said_no_to_is_found_by_the_next_load(
    start: Start, eventually: Eventually
) -> None:
    """It is no promise and no refusal; once it was read under WAIT it survives the primary, too."""
    primary = start()
    replica = start(primary)
    await eventually(lambda: in_step(primary), timeout=30)
    store = RedisStore(replace(primary.settings, wait_replicas=1, wait_ms=1_000), 1)

    async def loaded() -> bool:
        with contextlib.suppress(ServiceError):
            await store.load(NOW)
            return True
        return False

    await eventually(loaded, timeout=30)
    replica.kill()
    with pytest.raises(ServiceError) as unknown:
        await store.commit(Batch(1, agents_known=["beta"]))
    assert unknown.value.reason is Reason.STORE_UNAVAILABLE
    assert not unknown.value.row.definite
    replica.start()
    await eventually(loaded, timeout=30)
    primary.kill()
    await promote(replica)
    survivor = store_on(replica, 2, wait_replicas=0)
    assert (await survivor.load(NOW)).agents == frozenset({"beta"})
    for one in (store, survivor):
        await one.close()
