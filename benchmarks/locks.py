"""P9: locks taken and given back, alone and with 100 that wait, beside bare transactions of the same etcd."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from agent_client import Agent
from benchmarks.figures import Figure
from benchmarks.plane import running_plane
from benchmarks.turns import Contender, Measured, take_turns
from services.common.etcd.client import EtcdClient
from services.common.etcd.ops import Compare, Delete, Put
from services.local.certs import PlaneCertificates

WAITERS = 100
SECONDS = 3.0
_PLANE = "Muster"
_PREFIX = "/bench/locks/"


async def _pairs(takers: Sequence[Callable[[], Awaitable[None]]]) -> float:
    """Return how many times per second all of `takers` together take a lock and give it back."""
    await takers[0]()
    done = 0
    begin = time.monotonic()

    async def work(once: Callable[[], Awaitable[None]]) -> None:
        nonlocal done
        while time.monotonic() - begin < SECONDS:
            await once()
            done += 1

    await asyncio.gather(*(work(once) for once in takers))
    return done / (time.monotonic() - begin)


def _taker(agent: Agent) -> Callable[[], Awaitable[None]]:
    async def once() -> None:
        async with agent.lock("bridge-3"):
            pass

    return once


class _BareLock:
    """etcd's lock recipe and nothing else: a key under a lease, the oldest one holds, one watch for all."""

    def __init__(self, client: EtcdClient, lease_id: int) -> None:
        self._client, self._lease_id = client, lease_id
        self._count = 0
        self._waiting: dict[str, asyncio.Event] = {}

    async def once(self) -> None:
        """Take the lock and give it back: one guarded transaction each."""
        self._count += 1
        key = f"{_PREFIX}{self._count}"
        mine = asyncio.Event()
        self._waiting[key] = mine
        put = await self._client.txn([Compare.absent(key)], [Put(key, b"", self._lease_id)])
        assert put.succeeded
        if next(iter(self._waiting)) == key:
            mine.set()
        await mine.wait()
        gone = await self._client.txn([Compare.exists(key)], [Delete(key)])
        assert gone.succeeded
        del self._waiting[key]
        # Who comes next is told by the watch in the recipe; here it costs nothing, to the peer's advantage.
        if self._waiting:
            self._waiting[next(iter(self._waiting))].set()


async def locks(folder: Path) -> Measured:
    """Measure both, ours first, on one plane: one agent alone, then as many as want the lock."""
    names = [f"locker-{number}" for number in range(WAITERS)]
    async with running_plane(folder, names) as plane:
        async with AsyncExitStack() as stack:
            agents = [Agent(name, ["lock"], home=plane.home) for name in names]
            for agent in agents:
                await stack.enter_async_context(agent)
            for agent in agents:
                await agent.wait_ready()
            takers = [_taker(agent) for agent in agents]
            alone = await _pairs(takers[:1])
            crowded = await _pairs(takers)
        made = PlaneCertificates(plane.home)
        async with EtcdClient([plane.etcd], made.etcd_client()) as client:
            lease = await client.lease_grant(60)
            bare = _BareLock(client, lease.lease_id)
            return {
                "alone": alone,
                "crowded": crowded,
                "bare_alone": await _pairs([bare.once]),
                "bare_crowded": await _pairs([bare.once] * WAITERS),
            }


async def run(runs: int, directory: Path) -> list[Figure]:
    """Measure."""
    outcome = await take_turns([Contender(_PLANE, locks)], runs, directory)
    return [
        Figure(
            "P9",
            f"locks taken and given back through agent_client, {name}",
            outcome.of(_PLANE, quantity).median,
            "pairs/s",
            "bare guarded transactions of the same etcd",
            outcome.of(_PLANE, f"bare_{quantity}").median,
            params=outcome.params(_PLANE, quantity, workers=workers, seconds=SECONDS),
        )
        for quantity, workers, name in (
            ("alone", 1, "nobody else wants it"),
            ("crowded", WAITERS, f"{WAITERS} want the same one"),
        )
    ]
