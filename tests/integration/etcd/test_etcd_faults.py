"""Killed, stopped and restarted: etcd's members, and those who lead by its grace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.common.clock import SystemClock
from services.common.core.errors import Reason, ServiceError
from services.common.etcd.client import EtcdClient
from services.common.etcd.follow import Mirror, follow
from services.common.etcd.ops import Compare, Put
from services.common.etcd.session import EtcdSession
from tests.harness.etcd import EtcdHarness

Eventually = Callable[..., Awaitable[None]]
PATIENCE_S = 20.0
TTL_S = 2


async def put_for_certain(client: EtcdClient, key: str, value: bytes) -> None:
    """Write until etcd says yes; the same write twice does no harm."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await client.put(key, value)
                return
            except ServiceError as error:
                if error.reason is not Reason.STORE_UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)  # sleeps: a client's pause between its tries


async def test_a_watch_misses_nothing_over_a_restart(own_etcd: EtcdHarness) -> None:
    async with own_etcd.client() as client, client.watch("/w/", from_revision=1) as watch:
        seen: list[str] = []

        async def see(count: int) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while len(seen) < count:
                    seen.extend(event.kv.key for event in (await anext(watch)).events)

        for round_number in range(3):
            await put_for_certain(client, f"/w/{round_number}-before", b"")
            await see(2 * round_number + 1)
            own_etcd.kill()
            await own_etcd.restart()
            await put_for_certain(client, f"/w/{round_number}-after", b"")
            await see(2 * round_number + 2)
        # In order, nothing twice, nothing missing.
        assert seen == [f"/w/{number}-{when}" for number in range(3) for when in ("before", "after")]


async def test_what_etcd_acknowledged_survives_kill_9(own_etcd: EtcdHarness, eventually: Eventually) -> None:
    async with own_etcd.client(request_timeout_s=1.0) as client:
        acknowledged: list[int] = []

        async def write() -> None:
            for number in range(100_000):
                try:
                    await client.txn([Compare.absent(f"/k/{number}")], [Put(f"/k/{number}", b"")])
                except ServiceError:
                    return
                acknowledged.append(number)

        writing = asyncio.create_task(write())
        await eventually(lambda: len(acknowledged) >= 50)
        own_etcd.kill()
        await writing
        await own_etcd.restart()
        kept = {int(kv.key.rpartition("/")[2]) for kv in (await client.get_prefix("/k/")).kvs}
        assert set(acknowledged) <= kept
        # At most the write under way is there without having been acknowledged.
        assert len(kept - set(acknowledged)) <= 1


async def test_follow_starts_anew_when_history_is_gone(own_etcd: EtcdHarness) -> None:
    async with own_etcd.client() as client, contextlib.aclosing(follow(client, "/f/")) as changes:
        mirror = Mirror()
        await client.put("/f/a", b"1")
        mirror.apply(await anext(changes))
        pending = asyncio.ensure_future(anext(changes))
        own_etcd.kill()
        await own_etcd.restart()
        async with own_etcd.client() as other:
            # The watch may have found the restarted member already; it then sees the changes one by one.
            await other.put("/f/a", b"2")
            await other.delete("/f/a")
            newest = await other.put("/f/b", b"3")
            await other.compact(newest)
        async with asyncio.timeout(PATIENCE_S):
            mirror.apply(await pending)
            while {key: kv.value for key, kv in mirror.kvs.items()} != {"/f/b": b"3"}:
                mirror.apply(await anext(changes))


async def test_any_one_of_three_members_may_die(own_etcd_trio: EtcdHarness) -> None:
    async with (
        own_etcd_trio.client(request_timeout_s=2.0) as client,
        await EtcdSession.open(client, SystemClock(), ttl_s=15) as session,
    ):
        for index in range(3):
            own_etcd_trio.kill(index)
            await put_for_certain(client, f"/k/{index}", b"")
            assert await client.get(f"/k/{index}") is not None
            await own_etcd_trio.restart()
        assert session.live


async def test_without_a_majority_nothing_is_promised(own_etcd_trio: EtcdHarness) -> None:
    async with own_etcd_trio.client(request_timeout_s=1.0) as client:
        await put_for_certain(client, "/k", b"1")
        own_etcd_trio.kill(0)
        own_etcd_trio.kill(1)
        with pytest.raises(ServiceError) as caught:
            await client.put("/k", b"2")
        assert caught.value.reason is Reason.STORE_UNAVAILABLE
        assert not caught.value.row.definite
        await own_etcd_trio.restart()
        await put_for_certain(client, "/k", b"3")


class Candidate:
    """A candidate in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def hear(self) -> dict[str, object]:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)
        said: dict[str, object] = json.loads(line)
        return said

    async def write(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"write\n")
        await self.process.stdin.drain()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextlib.asynccontextmanager
async def candidate(etcd: EtcdHarness, prefix: str, name: str) -> AsyncIterator[Candidate]:
    script = Path(__file__).parents[2] / "harness" / "candidate_process.py"
    tls = etcd.tls
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), ",".join(etcd.endpoints)),
        *(str(tls.ca), str(tls.certificate), str(tls.key), prefix, name, str(TTL_S)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Candidate(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def stop_a_leader_past_its_lease(etcd: EtcdHarness, prefix: str, client: EtcdClient) -> None:
    async with contextlib.AsyncExitStack() as stack:
        old = await stack.enter_async_context(candidate(etcd, prefix, "old"))
        old_epoch = (await old.hear())["leads"]
        new = await stack.enter_async_context(candidate(etcd, prefix, "new"))
        old.signal(signal.SIGSTOP)
        new_epoch = (await new.hear())["leads"]
        assert int(str(new_epoch)) > int(str(old_epoch))
        # The order to write waits in the old leader's pipe, so that it is the first thing that it sees.
        await old.write()
        old.signal(signal.SIGCONT)
        said = [await old.hear(), await old.hear()]
        assert {"held": False, "written": False} in said
        assert {"lost": old_epoch} in said
        assert await client.get(f"{prefix}/written-by") is None
        await new.write()
        assert await new.hear() == {"held": True, "written": True}


async def test_a_leader_stopped_past_its_lease_writes_nothing_when_it_wakes(
    etcd: EtcdHarness, etcd_prefix: str, etcd_client: EtcdClient
) -> None:
    await stop_a_leader_past_its_lease(etcd, etcd_prefix, etcd_client)


@pytest.mark.nightly
async def test_200_stopped_leaders_write_nothing(
    etcd: EtcdHarness, etcd_prefix: str, etcd_client: EtcdClient
) -> None:
    for batch in range(50):
        prefixes = [f"{etcd_prefix}/{batch}-{index}" for index in range(4)]
        await asyncio.gather(*(stop_a_leader_past_its_lease(etcd, one, etcd_client) for one in prefixes))


async def test_a_killed_leader_is_followed_within_its_lease(etcd: EtcdHarness, etcd_prefix: str) -> None:
    clock = SystemClock()
    async with candidate(etcd, etcd_prefix, "a") as a, candidate(etcd, etcd_prefix, "b") as b:
        hearing = {asyncio.ensure_future(one.hear()): one for one in (a, b)}
        done, waiting = await asyncio.wait(hearing, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
        leader, next_said = hearing[done.pop()], waiting.pop()
        leader.signal(signal.SIGKILL)
        killed_ms = clock.monotonic_ms()
        assert "leads" in await next_said
        # The lease, etcd's expiry tick of 0.5 s, and slack for a busy machine.
        assert clock.monotonic_ms() - killed_ms < 1_000 * TTL_S + 500 + 3_000
