"""What only a Redis can do wrong: two writers, lost connections, a full memory, settings that lose data."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.broker.config import RedisSettings
from services.broker.core.model import Batch, DomainRecord
from services.broker.store import Retention
from services.broker.stores import ledger
from services.broker.stores.redis import RedisStore
from services.common.core.errors import Reason, ServiceError
from tests.conformance.store_broker_course import KEY, LATER, NOW, Course, a_batch, an_envelope
from tests.conftest import Certificates
from tests.harness.redis import RedisServer, running_redis

Make = Callable[..., RedisStore]


@pytest_asyncio.fixture
async def make(own_redis: RedisServer) -> AsyncIterator[Make]:
    """A function that gives a store of an epoch on the test's own Redis."""
    made: list[RedisStore] = []

    def one(epoch: int, **settings: object) -> RedisStore:
        made.append(RedisStore(replace(own_redis.settings, **settings), epoch))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for store in made:
        await store.close()


async def ask(server: RedisServer, *command: object) -> object:
    """Run one command on a server."""
    async with Redis(host="127.0.0.1", port=server.settings.port) as client:
        return await client.execute_command(*command)  # type: ignore[no-untyped-call]


# -- one writer


async def test_who_was_replaced_writes_and_reads_nothing(make: Make) -> None:
    course = Course(1)
    old, new = make(7), make(8)
    await old.load(NOW)
    await old.commit(course.batch())
    course.check(await new.load(NOW))
    for late in (
        lambda: old.commit(Batch(2, agents_known=["late"])),
        lambda: old.load(NOW),
    ):
        with pytest.raises(ServiceError) as refusal:
            await late()
        assert refusal.value.reason is Reason.NOT_COORDINATOR
        assert refusal.value.row.definite
    await new.commit(course.batch())
    found = await make(9).load(NOW)
    course.check(found)
    assert found.agents == frozenset()


async def test_compaction_by_who_was_replaced_removes_nothing(make: Make) -> None:
    old, new = make(1), make(2)
    await old.load(NOW)
    await old.commit(a_batch(1, [an_envelope(1)], DomainRecord(KEY, 2, 0)))
    await old.commit(a_batch(2, [], DomainRecord(KEY, 2, 1)))
    await new.load(NOW)
    with pytest.raises(ServiceError) as refusal:
        await old.compact(LATER, Retention())
    assert refusal.value.reason is Reason.NOT_COORDINATOR
    assert len((await make(3).load(NOW)).remembered) == 1


async def test_a_commit_from_before_a_load_that_arrives_late_is_refused(make: Make) -> None:
    """A leader that lost touch loads again: what it had sent before must not come in behind its back."""
    before, after = make(5), make(5)
    assert (await before.load(NOW)).life == 1
    assert (await after.load(NOW)).life == 2
    with pytest.raises(ServiceError) as refusal:
        await before.commit(a_batch(1, [an_envelope(1)], DomainRecord(KEY, 2, 0)))
    assert refusal.value.reason is Reason.NOT_COORDINATOR
    assert (await make(5).load(NOW)).envelopes == ()


# -- a server that goes away


@pytest.mark.parametrize("seed", range(2))
async def test_kill_9_loses_nothing_that_was_committed(
    make: Make, own_redis: RedisServer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "REWRITE_BYTES_MIN", 1)
    monkeypatch.setattr(ledger, "REWRITE_YOUNG_BLOCKS", 2)
    course = Course(seed)
    store = make(1)
    await store.load(NOW)
    for step in range(24):
        await store.commit(course.batch())
        if step % 3 == 0:
            await store.compact(NOW, Retention())
        if step % 6 == 5:
            own_redis.kill()
            with pytest.raises(ServiceError) as away:
                await store.commit(Batch(0, agents_known=["nobody"]))
            assert away.value.reason is Reason.STORE_UNAVAILABLE
            own_redis.start()
            course.check(await store.load(NOW))
    course.check(await make(2).load(NOW))


async def test_a_server_that_forgot_the_scripts_is_told_them_again(
    make: Make, own_redis: RedisServer
) -> None:
    store = make(1)
    await store.load(NOW)
    await store.commit(a_batch(1, [an_envelope(1)], DomainRecord(KEY, 2, 0)))
    await ask(own_redis, "SCRIPT FLUSH")
    await store.commit(a_batch(2, [an_envelope(2)], DomainRecord(KEY, 3, 0)))
    assert len((await make(2).load(NOW)).envelopes) == 2


async def test_a_link_that_is_reset_while_it_is_opened_is_a_link_that_ended(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop says so with an error of its own, which the library passes through."""
    store = make(1)
    await store.load(NOW)

    async def reset(*_: object, **__: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    with monkeypatch.context() as patch:
        patch.setattr("redis.asyncio.connection.AbstractConnection.send_packed_command", reset)
        for call in (lambda: store.commit(Batch(1, agents_known=["beta"])), lambda: store.load(NOW)):
            with pytest.raises(ServiceError) as away:
                await call()
            assert away.value.reason is Reason.STORE_UNAVAILABLE
    await store.load(NOW)
    await store.commit(Batch(1, agents_known=["beta"]))


async def test_a_commit_waits_for_replicas(make: Make, own_redis: RedisServer, tmp_path: Path) -> None:
    alone = make(1, wait_replicas=1, wait_ms=50)
    with pytest.raises(ServiceError) as lacking:
        await alone.load(NOW)
    assert lacking.value.reason is Reason.STORE_UNAVAILABLE
    assert "0 of 1 Redis replicas" in lacking.value.message
    # It would wait a while for further replicas.
    await ask(own_redis, "CONFIG", "SET", "repl-diskless-sync-delay", 0)
    of = ("--replicaof", "127.0.0.1", str(own_redis.settings.port))
    with running_redis(tmp_path / "replica", *of) as replica:
        store = make(2, wait_replicas=1, wait_ms=20_000, timeout_ms=30_000)
        await store.load(NOW)
        await store.commit(Batch(1, agents_known=["beta"]))
        assert await ask(replica, "SMEMBERS", "{muster}:agents") == {b"beta"}
        # Nobody can write there by mistake.
        reader = RedisStore(replica.settings, 3)
        with pytest.raises(ServiceError, match="it is a replica"):
            await reader.load(NOW)
        await reader.close()


# -- memory


async def test_a_full_memory_keeps_nothing_of_the_batch_and_lets_receivers_make_room(
    make: Make, own_redis: RedisServer
) -> None:
    store = make(1)
    await store.load(NOW)
    large = b"x" * 60_000
    await store.commit(
        a_batch(1, [an_envelope(n, body=large) for n in range(1, 51)], DomainRecord(KEY, 51, 0))
    )
    used = await ask(own_redis, "INFO", "memory")
    assert isinstance(used, dict)
    await ask(own_redis, "CONFIG", "SET", "maxmemory", used["used_memory"] - 1_000_000)
    with pytest.raises(ServiceError) as full:
        await store.commit(a_batch(2, [an_envelope(51, body=large)], DomainRecord(KEY, 52, 50)))
    assert full.value.reason is Reason.DISK_FULL
    assert full.value.row.definite
    # Acks and the removal of what they settled are taken all the same.
    await store.commit(a_batch(3, [], DomainRecord(KEY, 51, 50)))
    assert (await store.compact(NOW, Retention())).blocks_dropped == 1
    await store.commit(a_batch(4, [an_envelope(51)], DomainRecord(KEY, 52, 50)))
    found = await make(2).load(NOW)
    assert [one.sequence for one in found.envelopes] == [51]


async def test_memory_comes_back(make: Make, own_redis: RedisServer) -> None:
    store = make(1)
    await store.load(NOW)
    sizes = []
    for number in range(1, 300):
        fresh = [an_envelope(number, body=b"x" * 20_000)]
        await store.commit(a_batch(number, fresh, DomainRecord(KEY, number + 1, number - 1)))
        if number % 20 == 0:
            # One look drops what is settled, the next the heads that nobody needs to remember.
            await store.compact(LATER, Retention())
            await store.compact(LATER, Retention())
            keys = [f"{{muster}}:{name}" for name in ("heads", "bodies", "domains")]
            sizes.append(sum([int(await ask(own_redis, "MEMORY", "USAGE", key)) for key in keys]))  # type: ignore[call-overload]
    assert max(sizes[3:]) <= max(sizes[:3])


# -- settings


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--appendonly", "no"], "append-only file"),
        (["--appendfsync", "everysec"], "appendfsync"),
        (["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"], "noeviction"),
    ],
)
async def test_a_server_that_may_lose_data_is_refused(tmp_path: Path, options: list[str], says: str) -> None:
    with running_redis(tmp_path, *options) as server:
        store = RedisStore(server.settings, 1)
        with pytest.raises(ServiceError, match=says) as refusal:
            await store.load(NOW)
        await store.close()
        assert refusal.value.reason is Reason.STORE_UNAVAILABLE
        # Nothing was written there, not even the claim.
        assert await ask(server, "DBSIZE") == 0
        if says != "noeviction":
            accepting = RedisStore(replace(server.settings, must_sync=False), 1)
            assert (await accepting.load(NOW)).life == 1
            await accepting.close()


async def test_tls_and_a_password(tmp_path: Path, certificates: Certificates) -> None:
    server_certificate, server_key = certificates.issue("service/redis")
    certificate, key = certificates.issue("service/broker")
    password_file = tmp_path / "password"
    password_file.write_text("correct horse\n")
    settings = RedisSettings(
        ca=certificates.ca_path, certificate=certificate, key=key, password_file=password_file
    )
    options = [
        *("--tls-cert-file", str(server_certificate), "--tls-key-file", str(server_key)),
        *("--tls-ca-cert-file", str(certificates.ca_path), "--tls-auth-clients", "yes"),
        *("--requirepass", "correct horse"),
    ]
    with running_redis(tmp_path / "redis", *options, settings=settings) as server:
        course = Course(3)
        store = RedisStore(server.settings, 1)
        await store.load(NOW)
        await store.commit(course.batch())
        course.check(await store.load(NOW))
        await store.close()
        for wrong in (
            {"certificate": None, "key": None},
            {"password_file": None},
            {"ca": None, "certificate": None, "key": None},
        ):
            stranger = RedisStore(replace(server.settings, timeout_ms=2_000, **wrong), 2)  # type: ignore[arg-type]
            with pytest.raises(ServiceError) as refusal:
                await stranger.load(NOW)
            await stranger.close()
            assert refusal.value.reason is Reason.STORE_UNAVAILABLE
        password_file.write_text("battery staple\n")
        stranger = RedisStore(server.settings, 2)
        with pytest.raises(ServiceError) as refusal:
            await stranger.load(NOW)
        await stranger.close()
        assert "battery" not in str(refusal.value)
        assert "battery" not in repr(refusal.value.__cause__)
