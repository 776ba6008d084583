"""The etcd client on a real etcd: what it promises about transactions, reads, watches and errors."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.core.errors import Reason, ServiceError
from services.common.etcd.client import EtcdClient
from services.common.etcd.errors import CompactedError, LeaseGoneError
from services.common.etcd.ops import (
    TXN_OPERATIONS_MAX,
    Compare,
    Delete,
    Done,
    Get,
    Operation,
    Put,
)
from services.common.etcd.watch import Watch
from services.local.certs import PlaneCertificates
from tests.harness.etcd import EtcdHarness


async def test_transaction_runs_the_branch_that_its_conditions_choose(
    etcd_client: EtcdClient, etcd_prefix: str
) -> None:
    key = f"{etcd_prefix}/a"
    first = await etcd_client.txn([Compare.absent(key)], [Put(key, b"1")], [Get(key)])
    assert first.succeeded
    assert first.answers == (Done(),)

    second = await etcd_client.txn([Compare.absent(key)], [Put(key, b"2")], [Get(key)])
    assert not second.succeeded
    row = second.rows(0).first
    assert row is not None
    assert (row.value, row.create_revision, row.version) == (b"1", first.revision, 1)


async def test_every_condition_means_what_it_says(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    key = f"{etcd_prefix}/a"
    created = await etcd_client.put(key, b"1")
    changed = await etcd_client.put(key, b"2")
    holds = [
        Compare.exists(key),
        Compare.created_at(key, created),
        Compare.unchanged_since(key, changed),
        Compare.value_is(key, b"2"),
        Compare(key, "version", "=", 2),
        Compare(key, "lease", "=", 0),
        Compare(key, "mod", ">", created),
        Compare(key, "mod", "<", changed + 1),
        Compare(key, "value", "!=", b"1"),
    ]
    fails = [
        Compare.absent(key),
        Compare.created_at(key, changed),
        Compare.unchanged_since(key, created),
        Compare.value_is(key, b"1"),
    ]
    assert (await etcd_client.txn(holds, [])).succeeded
    for compare in fails:
        assert not (await etcd_client.txn([compare], [])).succeeded, compare


async def test_answers_come_in_the_order_of_the_operations(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    await etcd_client.put(f"{etcd_prefix}/old/1", b"")
    await etcd_client.put(f"{etcd_prefix}/old/2", b"")
    result = await etcd_client.txn(
        [],
        [
            Put(f"{etcd_prefix}/new", b"x"),
            Get(f"{etcd_prefix}/old/", prefix=True),
            Delete(f"{etcd_prefix}/old/", prefix=True),
            Get(f"{etcd_prefix}/", prefix=True),
        ],
    )
    assert result.answers[0] == Done()
    assert [kv.key for kv in result.rows(1).kvs] == [f"{etcd_prefix}/old/1", f"{etcd_prefix}/old/2"]
    assert result.answers[2] == Done()
    assert [kv.key for kv in result.rows(3).kvs] == [f"{etcd_prefix}/new"]
    with pytest.raises(TypeError, match="not a Get"):
        result.rows(0)


async def test_too_many_operations_are_the_callers_mistake(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    puts = [Put(f"{etcd_prefix}/{index}", b"") for index in range(TXN_OPERATIONS_MAX + 1)]
    assert (await etcd_client.txn([], puts[:-1])).succeeded
    with pytest.raises(ValueError, match="128"):
        await etcd_client.txn([], puts)


async def test_too_large_a_value_is_refused_for_certain(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    for size in (2_000_000, 5_000_000):
        with pytest.raises(ServiceError) as caught:
            await etcd_client.put(f"{etcd_prefix}/a", bytes(size))
        assert caught.value.reason is Reason.PAYLOAD_TOO_LARGE
        assert caught.value.row.definite
    assert await etcd_client.get(f"{etcd_prefix}/a") is None


async def test_pages_show_one_revision_while_others_write(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    puts: list[Operation] = [Put(f"{etcd_prefix}/{index:03}", b"old") for index in range(100)]
    await etcd_client.txn([], puts)
    seen: list[tuple[str, bytes]] = []
    async for page in etcd_client.pages(f"{etcd_prefix}/", page_keys=7):
        assert len(page.kvs) <= 7
        seen += [(kv.key, kv.value) for kv in page.kvs]
        await etcd_client.put(f"{etcd_prefix}/099", b"new")
        await etcd_client.put(f"{etcd_prefix}/zzz", b"new")
    assert seen == [(f"{etcd_prefix}/{index:03}", b"old") for index in range(100)]


async def test_an_empty_prefix_gives_one_empty_page(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    assert [page.kvs async for page in etcd_client.pages(f"{etcd_prefix}/")] == [()]
    assert (await etcd_client.get_prefix(f"{etcd_prefix}/")).kvs == ()


async def test_keys_that_are_no_text_survive(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    key = f"{etcd_prefix}/\udcff\udc80"
    await etcd_client.put(key, b"\xff")
    assert [kv.key for kv in (await etcd_client.get_prefix(f"{etcd_prefix}/")).kvs] == [key]


async def test_oldest_and_newest_sort_by_creation(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    revisions = [await etcd_client.put(f"{etcd_prefix}/{name}", b"") for name in ("c", "a", "b")]
    await etcd_client.put(f"{etcd_prefix}/c", b"again")

    async def first(**options: object) -> str:
        rows = await etcd_client.read(Get(f"{etcd_prefix}/", prefix=True, limit=1, **options))  # type: ignore[arg-type]
        assert rows.first is not None
        return rows.first.key[-1]

    assert await first(order="oldest") == "c"
    assert await first(order="newest") == "b"
    assert await first(order="newest", create_revision_max=revisions[1]) == "a"


async def test_a_watch_starts_in_the_past_and_goes_on(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    start = await etcd_client.put(f"{etcd_prefix}/a", b"1")
    result = await etcd_client.txn([], [Put(f"{etcd_prefix}/a", b"2"), Put(f"{etcd_prefix}/b", b"2")])
    async with etcd_client.watch(f"{etcd_prefix}/", from_revision=start) as watch:
        seen = await _events(watch, 3)
        assert [(kv, value) for kv, value, _ in seen] == [("a", b"1"), ("a", b"2"), ("b", b"2")]
        assert watch.next_revision == result.revision + 1
        await etcd_client.delete(f"{etcd_prefix}/", prefix=True)
        assert {(name, gone) for name, _, gone in await _events(watch, 2)} == {("a", True), ("b", True)}


async def test_a_cancelled_step_of_a_watch_loses_nothing(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    start = await etcd_client.put(f"{etcd_prefix}/a", b"1")
    async with etcd_client.watch(f"{etcd_prefix}/", from_revision=start + 1) as watch:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.05)
        await etcd_client.put(f"{etcd_prefix}/a", b"2")
        assert await _events(watch, 1) == [("a", b"2", False)]


async def test_compacted_history_is_said(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    start = await etcd_client.put(f"{etcd_prefix}/a", b"1")
    newest = await etcd_client.put(f"{etcd_prefix}/a", b"2")
    await etcd_client.compact(newest)
    async with etcd_client.watch(f"{etcd_prefix}/", from_revision=start) as watch:
        with pytest.raises(CompactedError) as caught:
            await anext(watch)
    assert caught.value.compact_revision == newest
    with pytest.raises(CompactedError):
        await etcd_client.get_prefix(f"{etcd_prefix}/", revision=start)


async def test_a_batch_larger_than_a_request_arrives_whole(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    start = await etcd_client.put(f"{etcd_prefix}/a", b"1")
    for index in range(8):
        await etcd_client.put(f"{etcd_prefix}/{index}", bytes(1_000_000))
    async with etcd_client.watch(f"{etcd_prefix}/", from_revision=start + 1) as watch:
        assert [name for name, _, _ in await _events(watch, 8)] == [str(index) for index in range(8)]


async def test_a_lease_takes_its_keys_along(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    lease = await etcd_client.lease_grant(60)
    await etcd_client.put(f"{etcd_prefix}/a", b"", lease_id=lease.lease_id)
    state = await etcd_client.lease_state(lease.lease_id)
    assert state.granted_s == 60
    assert 0 < state.remaining_s <= 60
    assert state.keys == (f"{etcd_prefix}/a",)
    with etcd_client.keep_alive(lease.lease_id) as stream:
        assert await stream.renew(5) == 60
        await etcd_client.lease_revoke(lease.lease_id)
        with pytest.raises(LeaseGoneError):
            await stream.renew(5)
    assert await etcd_client.get(f"{etcd_prefix}/a") is None
    assert (await etcd_client.lease_state(lease.lease_id)).remaining_s == -1
    with pytest.raises(LeaseGoneError) as caught:
        await etcd_client.put(f"{etcd_prefix}/a", b"", lease_id=lease.lease_id)
    assert caught.value.row.definite


async def test_a_foreign_certificate_opens_nothing(etcd: EtcdHarness, tmp_path: Path) -> None:
    foreign = PlaneCertificates(tmp_path)
    foreign.prepare(())
    theirs = replace(foreign.etcd_client(), ca=etcd.tls.ca)
    # Nor is a foreign etcd spoken to.
    for tls in (
        theirs,
        replace(etcd.tls, ca=foreign.etcd_client().ca),
        replace(etcd.tls, server_name="other"),
    ):
        async with EtcdClient(etcd.endpoints, tls, request_timeout_s=0.5) as client:
            with pytest.raises(ServiceError) as caught:
                await client.get("/a")
            assert caught.value.reason is Reason.STORE_UNAVAILABLE


async def test_the_state_names_the_version(etcd_client: EtcdClient) -> None:
    state = await etcd_client.state()
    assert state.version.startswith("3.")
    assert state.leader_id


async def _events(watch: Watch, count: int) -> list[tuple[str, bytes, bool]]:
    """Return the last part of the key, the value and "deleted" of the next `count` events."""
    seen: list[tuple[str, bytes, bool]] = []
    while len(seen) < count:
        batch = await asyncio.wait_for(anext(watch), 10)
        seen += [(event.kv.key.rpartition("/")[2], event.kv.value, event.deleted) for event in batch.events]
    return seen
