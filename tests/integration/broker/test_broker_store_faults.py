"""A store that fails in both ways: nothing acknowledged is lost, and the broker recovers unaided."""

from __future__ import annotations

from services.broker.core.model import Batch, Recovered
from services.broker.store import Compaction, Retention, StoredDeadLetter
from services.broker.stores.sqlite import SqliteStore
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant
from tests.integration.broker.broker_client import envelope, error_of
from tests.integration.broker.conftest import House


class FaultyStore:
    """Fails the next commits as told, before or after they are on disk."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.fail_before: list[Reason] = []
        self.fail_after: list[Reason] = []
        self.fail_load = 0

    async def load(self, now: Instant) -> Recovered:
        if self.fail_load:
            self.fail_load -= 1
            raise ServiceError(Reason.STORE_UNAVAILABLE, "the disk does not answer")
        return await self.store.load(now)

    async def commit(self, batch: Batch) -> None:
        if self.fail_before and batch:
            raise ServiceError(self.fail_before.pop(0), "not kept", retry_after_ms=1_000)
        await self.store.commit(batch)
        if self.fail_after and batch:
            raise ServiceError(self.fail_after.pop(0), "kept, and nobody knows")

    async def compact(self, now: Instant, retention: Retention) -> Compaction:
        return await self.store.compact(now, retention)

    async def list_dead_letters(self, receiver: str, after: int, limit: int) -> list[StoredDeadLetter]:
        return await self.store.list_dead_letters(receiver, after, limit)

    async def count_dead_letters(self, receiver: str) -> int:
        return await self.store.count_dead_letters(receiver)

    async def close(self) -> None:
        await self.store.close()


async def start(house: House) -> FaultyStore:
    store = FaultyStore(SqliteStore.open(house.folder / "mailboxes.sqlite"))
    await house.start(store)
    return store


async def test_a_full_disk_refuses_and_loses_nothing(house: House) -> None:
    store = await start(house)
    alpha, beta = await house.open("agent/alpha"), await house.open("agent/beta")
    await alpha.send(envelope("m-1", "beta"))
    (held,) = await beta.take(1)
    store.fail_before = [Reason.DISK_FULL]
    (refused,) = await alpha.send(envelope("m-2", "beta"))
    assert error_of(refused).reason is Reason.DISK_FULL
    (again,) = await alpha.send(envelope("m-2", "beta"))
    assert again.sequence_number == 2
    store.fail_before = [Reason.DISK_FULL]
    (second,) = await beta.take(1)
    await beta.write(acks=[{"ack_token": held.ack_token}])
    await beta.wait(lambda: beta.refusals)
    assert error_of(beta.refusals[0]).reason is Reason.DISK_FULL
    # It was not settled: the same token still holds it.
    await beta.ack([held, second])


async def test_a_store_that_may_have_kept_it_is_read_again(house: House) -> None:
    store = await start(house)
    alpha = await house.open("agent/alpha")
    await alpha.send(envelope("m-1", "beta"))
    store.fail_after, store.fail_load = [Reason.STORE_UNAVAILABLE], 2
    await alpha.write(sends=[envelope("m-2", "beta")])
    error = await alpha.wait_end()
    assert error is not None
    assert error.reason is Reason.STORE_UNAVAILABLE
    # Indefinite: the sender repeats on a new stream, and the disk knows that it was accepted.
    alpha = await house.open("agent/alpha")
    repeated, fresh = await alpha.send(envelope("m-2", "beta"), envelope("m-3", "beta"))
    assert (repeated.sequence_number, fresh.sequence_number) == (2, 3)
    beta = await house.open("agent/beta")
    assert [one.envelope.sequence_number for one in await beta.take(3)] == [1, 2, 3]


async def test_a_store_that_did_not_keep_it_is_read_again(house: House) -> None:
    store = await start(house)
    alpha = await house.open("agent/alpha")
    await alpha.send(envelope("m-1", "beta"))
    store.fail_before = [Reason.STORE_UNAVAILABLE]
    await alpha.write(sends=[envelope("m-2", "beta")])
    assert await alpha.wait_end() is not None
    alpha = await house.open("agent/alpha")
    (outcome,) = await alpha.send(envelope("m-2", "beta"))
    assert outcome.sequence_number == 2
