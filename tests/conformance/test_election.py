"""One suite for every `Election`: in memory and on a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest

from services.common.clock import SystemClock
from services.common.election import Election, Leader, Leadership
from services.common.etcd.client import EtcdClient
from services.common.etcd.election import EtcdElection
from services.common.etcd.ops import Compare, Put
from services.common.testing.election import MemoryBallot
from tests.harness.etcd import EtcdHarness

PATIENCE_S = 10.0


class Rig(Protocol):
    """What the suite needs besides candidates."""

    def candidate(self) -> Election: ...

    async def passes(self, guard: Compare) -> bool:
        """Whether a write under `guard` would happen."""
        ...

    async def epochs(self) -> list[int]:
        """Everybody in the queue, the leader first."""
        ...

    async def expire(self, epoch: int) -> None:
        """End the lease of a candidate, as if it had not been renewed."""
        ...

    async def depose(self, epoch: int) -> None:
        """Take a candidate's key away, as an operator may."""
        ...


class MemoryRig:
    def __init__(self) -> None:
        self._ballot = MemoryBallot()

    def candidate(self) -> Election:
        return self._ballot.candidate()

    async def passes(self, guard: Compare) -> bool:
        return self._ballot.holds(guard)

    async def epochs(self) -> list[int]:
        return self._ballot.epochs()

    async def expire(self, epoch: int) -> None:
        await self._ballot.remove(epoch)

    async def depose(self, epoch: int) -> None:
        await self._ballot.remove(epoch)


class EtcdRig:
    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._client = client
        self._prefix = f"{prefix}/election/"
        self._scratch = f"{prefix}/scratch"
        self._clock = SystemClock()
        self.candidates: list[EtcdElection] = []

    def candidate(self) -> Election:
        self.candidates.append(EtcdElection(self._client, self._clock, self._prefix))
        return self.candidates[-1]

    async def passes(self, guard: Compare) -> bool:
        return (await self._client.txn([guard], [Put(self._scratch, b"")])).succeeded

    async def epochs(self) -> list[int]:
        return sorted(await self._keys())

    async def expire(self, epoch: int) -> None:
        key = (await self._keys())[epoch]
        await self._client.lease_revoke(int(key.rpartition("/")[2], 16))

    async def depose(self, epoch: int) -> None:
        await self._client.delete((await self._keys())[epoch])

    async def _keys(self) -> dict[int, str]:
        rows = await self._client.get_prefix(self._prefix)
        return {kv.create_revision: kv.key for kv in rows.kvs}


@pytest.fixture(params=["memory", "etcd"])
async def rig(request: pytest.FixtureRequest, etcd: EtcdHarness, etcd_prefix: str) -> AsyncIterator[Rig]:
    if request.param == "memory":
        yield MemoryRig()
        return
    async with etcd.client() as client:
        made = EtcdRig(client, etcd_prefix)
        yield made
        for candidate in made.candidates:
            await candidate.resign()


async def soon(awaited: asyncio.Task[Leadership]) -> Leadership:
    return await asyncio.wait_for(awaited, PATIENCE_S)


Queue = Callable[[Election, bytes, int], Awaitable[asyncio.Task[Leadership]]]
Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
def queue(rig: Rig, eventually: Eventually) -> Queue:
    """Return a function that starts a campaign and waits until it has its place (1 is the leader's)."""

    async def stand(candidate: Election, value: bytes, place: int) -> asyncio.Task[Leadership]:
        async def placed() -> bool:
            return len(await rig.epochs()) >= place

        campaign = asyncio.create_task(candidate.campaign(value))
        await eventually(placed)
        return campaign

    return stand


async def withdraw(*campaigns: asyncio.Task[Leadership]) -> None:
    for campaign in campaigns:
        campaign.cancel()
    await asyncio.gather(*campaigns, return_exceptions=True)


async def test_the_first_candidate_leads_and_may_write(rig: Rig) -> None:
    leadership = await asyncio.wait_for(rig.candidate().campaign(b"a"), PATIENCE_S)
    assert leadership.held
    assert await rig.epochs() == [leadership.epoch]
    assert await rig.passes(leadership.guard)


async def test_the_second_leads_when_the_first_resigns(rig: Rig, queue: Queue) -> None:
    first, second = rig.candidate(), rig.candidate()
    old = await first.campaign(b"a")
    waiting = await queue(second, b"b", 2)
    assert not waiting.done()

    await first.resign()
    new = await soon(waiting)
    assert new.epoch > old.epoch
    assert new.held
    assert not old.held
    assert await rig.passes(new.guard)
    assert not await rig.passes(old.guard)
    await asyncio.wait_for(old.wait_lost(), PATIENCE_S)


async def test_candidates_lead_in_the_order_in_which_they_came(rig: Rig, queue: Queue) -> None:
    candidates = [rig.candidate() for _ in range(4)]
    leader = await candidates[0].campaign(b"0")
    waiting = [
        await queue(candidate, str(place).encode(), place + 1)
        for place, candidate in enumerate(candidates[1:], start=1)
    ]
    for place in range(3):
        await candidates[place].resign()
        leader = await soon(waiting[place])
        assert await rig.passes(leader.guard)
        assert not any(later.done() for later in waiting[place + 1 :])


async def test_a_cancelled_campaign_leaves_the_queue(rig: Rig, queue: Queue) -> None:
    first, second, third = rig.candidate(), rig.candidate(), rig.candidate()
    await first.campaign(b"a")
    leaving = await queue(second, b"b", 2)
    staying = await queue(third, b"c", 3)
    await withdraw(leaving)
    assert len(await rig.epochs()) == 2

    await first.resign()
    assert (await soon(staying)).held
    # And it may come back.
    await third.resign()
    assert (await asyncio.wait_for(second.campaign(b"b"), PATIENCE_S)).held


@pytest.mark.parametrize("how", ["expire", "depose"])
async def test_a_leader_that_loses_its_key_is_told_and_followed(rig: Rig, queue: Queue, how: str) -> None:
    first, second = rig.candidate(), rig.candidate()
    old = await first.campaign(b"a")
    waiting = await queue(second, b"b", 2)
    await getattr(rig, how)(old.epoch)
    new = await soon(waiting)
    await asyncio.wait_for(old.wait_lost(), PATIENCE_S)
    assert not old.held
    assert not await rig.passes(old.guard)
    assert await rig.passes(new.guard)

    # The old leader stands again, behind the new one, with a larger epoch.
    again = await queue(first, b"a", 2)
    await second.resign()
    third = await soon(again)
    assert third.epoch > new.epoch > old.epoch


@pytest.mark.parametrize("how", ["expire", "depose"])
async def test_a_candidate_that_loses_its_place_queues_again(
    rig: Rig, queue: Queue, eventually: Eventually, how: str
) -> None:
    first, second = rig.candidate(), rig.candidate()
    old = await first.campaign(b"a")
    waiting = await queue(second, b"b", 2)
    place = (await rig.epochs())[1]
    await getattr(rig, how)(place)

    async def queued_again() -> bool:
        return (await rig.epochs())[1:] not in ([], [place])

    await eventually(queued_again)
    assert not waiting.done()
    assert old.held

    await first.resign()
    new = await soon(waiting)
    assert new.epoch > place
    assert await rig.passes(new.guard)


async def test_a_leader_whose_process_is_gone_is_deposed_and_followed(rig: Rig, queue: Queue) -> None:
    first, second = rig.candidate(), rig.candidate()
    old = await first.campaign(b"a")
    waiting = await queue(second, b"b", 2)
    await second.depose(Leader(b"a", old.epoch))
    new = await soon(waiting)
    await asyncio.wait_for(old.wait_lost(), PATIENCE_S)
    assert not await rig.passes(old.guard)
    # Whoever is late deposes nobody else: it is that one leadership that ends.
    await first.depose(Leader(b"a", old.epoch))
    assert await rig.passes(new.guard)
    assert new.held


async def test_observers_see_who_leads(rig: Rig, queue: Queue) -> None:
    first, second = rig.candidate(), rig.candidate()
    seen: asyncio.Queue[Leader | None] = asyncio.Queue()

    async def watch() -> None:
        async with contextlib.aclosing(rig.candidate().observe()) as leaders:
            async for leader in leaders:
                seen.put_nowait(leader)

    async def next_seen() -> Leader | None:
        return await asyncio.wait_for(seen.get(), PATIENCE_S)

    watching = asyncio.create_task(watch())
    try:
        assert await next_seen() is None
        old = await first.campaign(b"a")
        assert await next_seen() == Leader(b"a", old.epoch)
        waiting = await queue(second, b"b", 2)
        await first.resign()
        new = await soon(waiting)
        assert await next_seen() == Leader(b"b", new.epoch)
        await second.resign()
        assert await next_seen() is None
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_candidate_stands_once_at_a_time(rig: Rig, queue: Queue) -> None:
    first, second = rig.candidate(), rig.candidate()
    await first.campaign(b"a")
    with pytest.raises(RuntimeError):
        await first.campaign(b"a")
    waiting = await queue(second, b"b", 2)
    with pytest.raises(RuntimeError):
        await second.campaign(b"b")
    assert len(await rig.epochs()) == 2
    await withdraw(waiting)


async def test_resigning_without_leadership_does_nothing(rig: Rig) -> None:
    candidate = rig.candidate()
    await candidate.resign()
    assert (await asyncio.wait_for(candidate.campaign(b"a"), PATIENCE_S)).held
    await candidate.resign()
    await candidate.resign()
    assert await rig.epochs() == []


async def test_many_candidates_never_lead_two_at_once(rig: Rig) -> None:
    led: list[int] = []

    async def stand(candidate: Election) -> None:
        leadership = await candidate.campaign(b"")
        assert await rig.passes(leadership.guard)
        assert (await rig.epochs())[0] == leadership.epoch
        led.append(leadership.epoch)
        await candidate.resign()

    async with asyncio.timeout(3 * PATIENCE_S):
        await asyncio.gather(*(stand(rig.candidate()) for _ in range(12)))
    assert led == sorted(led)
    assert len(set(led)) == 12
