"""What every `MailboxStore` must do, on each of them, and what only a disk can do wrong."""

from __future__ import annotations

import itertools
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from services.broker.core.model import (
    Batch,
    DeadLetter,
    DeadReason,
    DomainKey,
    DomainRecord,
    IncarnationRecord,
    Lane,
    Recovered,
    RoutedId,
    Subscription,
    Tombstone,
)
from services.broker.store import MailboxStore, Retention
from services.broker.stores import ledger
from services.broker.stores.memory import MemoryStore
from services.broker.stores.redis import RedisStore
from services.broker.stores.sqlite import SqliteStore
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant
from tests.conformance.store_broker_course import KEY, LATER, NOW, OTHER, Course, a_batch, an_envelope
from tests.harness.redis import RedisServer

Reopen = Callable[[], Awaitable[MailboxStore]]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest_asyncio.fixture
async def reopen(kind: str, tmp_path: Path, redis: RedisServer) -> AsyncIterator[Reopen]:
    """A function that gives the store as the next start of the broker finds it."""
    memory = MemoryStore()
    opened: list[MailboxStore] = []
    epochs = itertools.count(1)
    prefix = uuid.uuid4().hex

    def make() -> MailboxStore:
        if kind == "redis":
            return RedisStore(replace(redis.settings, prefix=prefix), next(epochs))
        return memory if kind == "memory" else SqliteStore.open(tmp_path / "mailboxes.sqlite")

    async def again() -> MailboxStore:
        for store in opened:
            await store.close()
        opened.clear()
        opened.append(make())
        return opened[0]

    yield again
    for store in opened:
        await store.close()


async def test_a_new_store_is_empty_and_counts_its_lives(reopen: Reopen) -> None:
    assert await (await reopen()).load(NOW) == Recovered(1)
    assert await (await reopen()).load(NOW) == Recovered(2)


async def test_what_was_committed_is_there(reopen: Reopen) -> None:
    store = await reopen()
    await store.load(NOW)
    envelopes = [an_envelope(1), an_envelope(2, body=b""), an_envelope(1, OTHER, b"x" * 70_000)]
    record = DomainRecord(KEY, 3, 0, (), ((1, 2),), (Tombstone(1, 4, "", DeadReason.EXPIRED),))
    await store.commit(a_batch(1, envelopes, record, DomainRecord(OTHER, 2, 0)))
    found = await (await reopen()).load(NOW)
    assert set(found.domains) == {record, DomainRecord(OTHER, 2, 0)}
    assert found.envelopes == tuple(sorted(envelopes, key=lambda one: (one.key, one.sequence)))
    assert {(one.sender, one.message_id, one.sequence, one.fingerprint) for one in found.remembered} == {
        (one.key.sender, one.draft.message_id, one.sequence, one.draft.fingerprint) for one in envelopes
    }


async def test_what_is_settled_does_not_come_back(reopen: Reopen) -> None:
    store = await reopen()
    await store.load(NOW)
    await store.commit(a_batch(1, [an_envelope(n) for n in range(1, 9)], DomainRecord(KEY, 9, 0)))
    await store.commit(a_batch(2, [], DomainRecord(KEY, 9, 3, (5, 8))))
    found = await (await reopen()).load(NOW)
    assert [one.sequence for one in found.envelopes] == [4, 6, 7]
    assert found.domains == (DomainRecord(KEY, 9, 3, (5, 8)),)
    # Settled and still remembered: a repeat gets its first outcome.
    assert {one.sequence for one in found.remembered} == set(range(1, 9))


async def test_ids_are_remembered_until_their_time(reopen: Reopen) -> None:
    store = await reopen()
    await store.load(NOW)
    await store.commit(a_batch(1, [an_envelope(1)], DomainRecord(KEY, 2, 0)))
    await store.commit(a_batch(2, [], DomainRecord(KEY, 2, 1)))
    await store.compact(NOW, Retention())
    assert len((await (await reopen()).load(Instant(LATER - 1))).remembered) == 1
    store = await reopen()
    await store.load(LATER)
    await store.compact(LATER, Retention())
    found = await (await reopen()).load(LATER)
    assert found.remembered == ()
    # The numbering goes on for ever.
    assert found.domains == (DomainRecord(KEY, 2, 1),)


async def test_agents_and_incarnations(reopen: Reopen) -> None:
    store = await reopen()
    await store.load(NOW)
    first = IncarnationRecord("beta", "0", 3)
    await store.commit(Batch(1, agents_known=["beta", "gamma"], incarnations=[first]))
    await store.commit(Batch(2, agents_known=["beta"], agents_forgotten=["gamma"]))
    await store.commit(Batch(3, incarnations=[IncarnationRecord("beta", "0", 4)]))
    await store.commit(Batch(4, incarnations=[IncarnationRecord("beta", "1", 1)]))
    await store.commit(Batch(5, incarnations=[IncarnationRecord("beta", "1", 0)]))
    found = await (await reopen()).load(NOW)
    assert (found.agents, found.incarnations) == (
        frozenset({"beta"}),
        (IncarnationRecord("beta", "0", 4),),
    )


async def test_copies_of_one_envelope_and_the_ids_that_were_routed(reopen: Reopen) -> None:
    store = await reopen()
    await store.load(NOW)
    third = DomainKey("alpha", "delta", Lane.NORMAL)
    copies = [an_envelope(1), an_envelope(1, third)]
    many = RoutedId("alpha", "alpha-1", b"%08d" % 1, "", 0, 2, LATER)
    one = RoutedId("gamma", "any-1", b"%08d" % 2, "beta", 7, 1, Instant(NOW + 10))
    none = RoutedId("gamma", "any-2", b"%08d" % 3, "", 0, 0, LATER)
    batch = a_batch(1, copies, DomainRecord(KEY, 2, 0), DomainRecord(third, 2, 0))
    batch.routed = [many, one]
    await store.commit(batch)
    await store.commit(Batch(2, routed=[none]))
    found = await (await reopen()).load(NOW)
    assert found.envelopes == tuple(sorted(copies, key=lambda copy: (copy.key, copy.sequence)))
    assert set(found.routed) == {many, one, none}
    store = await reopen()
    await store.load(Instant(NOW + 10))
    await store.compact(Instant(NOW + 10), Retention())
    # The id may be used again, for something else.
    again = one._replace(receiver="delta", keep_until=LATER)
    await store.commit(Batch(3, routed=[again]))
    assert set((await (await reopen()).load(NOW)).routed) == {many, none, again}
    store = await reopen()
    await store.load(LATER)
    await store.compact(LATER, Retention())
    assert (await (await reopen()).load(LATER)).routed == ()


async def test_subscriptions_stay_until_they_are_given_up(reopen: Reopen) -> None:
    store = await reopen()
    await store.load(NOW)
    first, second = Subscription("beta", "roads.*"), Subscription("beta", "roads.closed")
    other = Subscription("gamma", "roads.*")
    await store.commit(Batch(1, subscribed=[first, second]))
    await store.commit(Batch(2, subscribed=[first, other], unsubscribed=[second]))
    assert (await (await reopen()).load(NOW)).subscriptions == {first, other}
    store = await reopen()
    await store.load(NOW)
    await store.compact(LATER, Retention())
    # Giving up what is not there changes nothing.
    await store.commit(Batch(3, unsubscribed=[second, other]))
    assert (await (await reopen()).load(NOW)).subscriptions == {first}


async def test_dead_letters_come_oldest_first_and_in_parts(reopen: Reopen) -> None:
    store = await reopen()
    await store.load(NOW)
    letters = [
        DeadLetter(an_envelope(n), DeadReason.REJECTED, f"no {n}", Instant(NOW + n), n) for n in range(1, 8)
    ]
    await store.commit(Batch(1, dead_letters=letters[:4]))
    await store.commit(Batch(2, dead_letters=letters[4:]))
    other = DeadLetter(
        an_envelope(1)._replace(key=KEY._replace(receiver="delta")), DeadReason.EXPIRED, "", NOW, 0
    )
    await store.commit(Batch(3, dead_letters=[other]))
    store = await reopen()
    first = await store.list_dead_letters("beta", 0, 5)
    rest = await store.list_dead_letters("beta", first[-1].number, 5)
    assert [one.letter for one in (*first, *rest)] == letters
    assert await store.count_dead_letters("beta") == 7
    assert await store.count_dead_letters("nobody") == 0


async def test_dead_letters_are_found_by_number_and_go_with_a_batch(reopen: Reopen) -> None:
    store = await reopen()
    await store.load(NOW)
    letters = [DeadLetter(an_envelope(n), DeadReason.REJECTED, "", NOW, 1) for n in range(1, 5)]
    await store.commit(Batch(1, dead_letters=letters))
    first, second, third, _ = [one.number for one in await store.list_dead_letters("beta", 0, 9)]
    found = await store.find_dead_letters("beta", [third, first, 10**9])
    assert sorted(one.number for one in found) == [first, third]
    assert await store.find_dead_letters("gamma", [first]) == []
    replayed = a_batch(2, [an_envelope(5)], DomainRecord(KEY, 6, 4))
    replayed.dead_letters_gone = [first, third]
    await store.commit(replayed)
    store = await reopen()
    assert [one.sequence for one in (await store.load(NOW)).envelopes] == [5]
    left = await store.list_dead_letters("beta", 0, 9)
    assert (left[0].number, len(left)) == (second, 2)


async def test_dead_letters_are_kept_by_number_and_by_age(reopen: Reopen) -> None:
    store = await reopen()
    await store.load(NOW)
    letters = [DeadLetter(an_envelope(n), DeadReason.EXPIRED, "", Instant(NOW + n), 0) for n in range(1, 11)]
    await store.commit(Batch(1, dead_letters=letters))
    done = await store.compact(NOW, Retention(dead_letters_max_per_mailbox=6))
    assert done.dead_letters_dropped == {"beta": 4}
    done = await store.compact(
        Instant(NOW + 107), Retention(dead_letters_max_per_mailbox=6, dead_letter_age_ms_max=100)
    )
    assert done.dead_letters_dropped == {"beta": 3}
    left = await store.list_dead_letters("beta", 0, 100)
    assert [one.letter.envelope.sequence for one in left] == [8, 9, 10]


@pytest.mark.parametrize("seed", range(6))
async def test_a_long_course_with_restarts_and_compactions(
    reopen: Reopen, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small blocks count as large and old here, so that they are rewritten.
    monkeypatch.setattr(ledger, "REWRITE_BYTES_MIN", 1)
    monkeypatch.setattr(ledger, "REWRITE_YOUNG_BLOCKS", 2)
    course = Course(seed)
    store = await reopen()
    await store.load(NOW)
    rewritten = 0
    for step in range(40):
        await store.commit(course.batch())
        if step % 3 == 0:
            rewritten += (await store.compact(NOW, Retention())).blocks_rewritten
        if step % 7 == 0:
            store = await reopen()
            course.check(await store.load(NOW))
    course.check(await (await reopen()).load(NOW))
    assert rewritten or isinstance(store, MemoryStore)


# -- what only a disk can do wrong


async def test_the_file_holds_everything_at_every_moment(tmp_path: Path) -> None:
    """A copy of the files taken while the store is open is what a crash leaves behind."""
    course = Course(99)
    store = SqliteStore.open(tmp_path / "mailboxes.sqlite")
    await store.load(NOW)
    for step in range(12):
        await store.commit(course.batch())
        crashed = tmp_path / f"crash-{step}"
        crashed.mkdir()
        for file in tmp_path.glob("mailboxes.sqlite*"):
            shutil.copy(file, crashed)
        copy = SqliteStore.open(crashed / "mailboxes.sqlite")
        course.check(await copy.load(NOW))
        await copy.close()
    await store.close()


async def bound_pages(store: SqliteStore, count: int) -> None:
    await store._database.write(lambda db: db.execute(f"PRAGMA max_page_count = {count}").fetchall())


async def test_a_full_disk_keeps_nothing_of_the_batch_and_all_before(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "mailboxes.sqlite")
    await store.load(NOW)
    await store.commit(a_batch(1, [an_envelope(1)], DomainRecord(KEY, 2, 0)))
    # SQLite's own bound on the file is met by the same error as the disk's end.
    await store._database.write(
        lambda connection: connection.execute("PRAGMA max_page_count = 30").fetchall()
    )
    with pytest.raises(ServiceError) as full:
        await store.commit(a_batch(2, [an_envelope(2, body=b"x" * 500_000)], DomainRecord(KEY, 3, 1)))
    assert full.value.reason is Reason.DISK_FULL
    await bound_pages(store, 100_000)
    await store.commit(a_batch(3, [an_envelope(2)], DomainRecord(KEY, 3, 1)))
    await store.close()
    store = SqliteStore.open(tmp_path / "mailboxes.sqlite")
    found = await store.load(NOW)
    assert [one.sequence for one in found.envelopes] == [2]
    assert found.envelopes[0].draft.body == b"body"
    await store.close()


async def test_space_comes_back(tmp_path: Path) -> None:
    """What is settled is deleted, and its place is used again: the file does not grow with the traffic."""
    path = tmp_path / "mailboxes.sqlite"
    store = SqliteStore.open(path)
    await store.load(NOW)
    sizes = []
    for number in range(1, 400):
        fresh = [an_envelope(number, body=b"x" * 20_000)]
        await store.commit(a_batch(number, fresh, DomainRecord(KEY, number + 1, number - 1)))
        if number % 20 == 0:
            await store.compact(LATER, Retention())
            await store._database.checkpoint()
            sizes.append(path.stat().st_size)
    await store.close()
    assert sizes[-1] <= sizes[4]


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mailboxes.sqlite"
    path.write_bytes(b"this is no database, and never was one; it only has the name of one. " * 100)
    with pytest.raises(ServiceError) as damaged:
        SqliteStore.open(path)
    assert damaged.value.reason is Reason.STORE_UNAVAILABLE
