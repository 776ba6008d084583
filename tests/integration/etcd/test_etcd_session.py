"""A session lives as long as its owner, and its owner knows first when it might have ended."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.common.clock import SystemClock
from services.common.etcd.client import EtcdClient
from services.common.etcd.session import EtcdSession, sessions
from services.common.testing.clock import FakeClock
from tests.harness.etcd import EtcdHarness

# etcd's shortest, with its defaults.
TTL_S = 2


async def test_a_session_outlives_its_time_to_live(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    async with await EtcdSession.open(etcd_client, SystemClock(), ttl_s=TTL_S) as session:
        await etcd_client.put(f"{etcd_prefix}/a", b"", lease_id=session.lease_id)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.lost.wait(), 1.5 * TTL_S)
        assert session.live
        assert (await etcd_client.lease_state(session.lease_id)).remaining_s >= 0
    assert await etcd_client.get(f"{etcd_prefix}/a") is None


async def test_closing_frees_the_keys_at_once_and_for_good(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    session = await EtcdSession.open(etcd_client, SystemClock(), ttl_s=600)
    await etcd_client.put(f"{etcd_prefix}/a", b"", lease_id=session.lease_id)
    await session.close()
    assert session.lost.is_set()
    assert not session.live
    assert await etcd_client.get(f"{etcd_prefix}/a") is None
    await session.close()


async def test_a_revoked_lease_is_noticed_at_the_next_renewal(etcd_client: EtcdClient) -> None:
    async with await EtcdSession.open(etcd_client, SystemClock(), ttl_s=TTL_S) as session:
        await etcd_client.lease_revoke(session.lease_id)
        await asyncio.wait_for(session.lost.wait(), TTL_S)
        assert not session.live


async def test_a_pause_is_noticed_before_anything_else_runs(etcd_client: EtcdClient) -> None:
    clock = FakeClock()
    async with await EtcdSession.open(etcd_client, clock, ttl_s=TTL_S) as session:
        live = []
        for passed_ms in (900 * TTL_S - 1, 1):
            # No turn of the event loop in between: as after SIGCONT.
            clock.advance(passed_ms)
            live.append(session.live)
        assert live == [True, False]
        await asyncio.wait_for(session.lost.wait(), 10)


async def test_once_doubted_a_session_is_lost_even_if_etcd_still_has_it(etcd_client: EtcdClient) -> None:
    clock = FakeClock()
    async with await EtcdSession.open(etcd_client, clock, ttl_s=TTL_S) as session:
        clock.advance(1_000 * TTL_S)
        await asyncio.wait_for(session.lost.wait(), 10)
        assert not session.live


async def test_an_etcd_that_is_gone_ends_the_session_before_its_time(own_etcd: EtcdHarness) -> None:
    clock = SystemClock()
    async with own_etcd.client(request_timeout_s=0.5) as client:
        session = await EtcdSession.open(client, clock, ttl_s=3)
        own_etcd.kill()
        killed_ms = clock.monotonic_ms()
        await session.lost.wait()
        # The newest renewal was sent before the kill, so that etcd's count ends after this.
        assert clock.monotonic_ms() - killed_ms <= 3_000
        assert not session.live
        await session.close()


async def test_a_stalled_etcd_ends_the_session_too(own_etcd: EtcdHarness) -> None:
    clock = SystemClock()
    async with own_etcd.client(request_timeout_s=0.5) as client:
        session = await EtcdSession.open(client, clock, ttl_s=3)
        own_etcd.pause()
        paused_ms = clock.monotonic_ms()
        await session.lost.wait()
        assert clock.monotonic_ms() - paused_ms <= 3_000
        own_etcd.resume()
        await session.close()
        async with await EtcdSession.open(client, clock) as another:
            assert another.live


async def test_a_short_restart_of_etcd_costs_no_session(own_etcd: EtcdHarness) -> None:
    async with (
        own_etcd.client() as client,
        await EtcdSession.open(client, SystemClock(), ttl_s=20) as session,
    ):
        await client.put("/a", b"", lease_id=session.lease_id)
        own_etcd.kill()
        await own_etcd.restart()
        assert (await client.lease_state(session.lease_id)).keys == ("/a",)
        assert session.live


async def test_sessions_gives_a_new_one_after_each_loss(own_etcd: EtcdHarness) -> None:
    async with own_etcd.client(request_timeout_s=0.5) as client:
        async with contextlib.aclosing(sessions(client, SystemClock(), ttl_s=TTL_S)) as live:
            first = await anext(live)
            assert first.live
            own_etcd.kill()
            await first.lost.wait()
            following = asyncio.ensure_future(anext(live))
            await own_etcd.restart()
            second = await asyncio.wait_for(following, 20)
            assert second.live
            assert second.lease_id != first.lease_id
        assert (await client.lease_state(second.lease_id)).remaining_s == -1
