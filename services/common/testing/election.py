"""An election in memory, whose leadership tests can take away in every way that etcd's can be lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from services.common.election import Leader, Leadership
from services.common.etcd.ops import Compare


@dataclass(eq=False)
class _Candidacy:
    """One place in the queue."""

    epoch: int
    value: bytes
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def live(self) -> bool:
        return not self.lost.is_set()

    @property
    def key(self) -> str:
        return f"/election/{self.epoch:x}"


class MemoryBallot:
    """The place where candidates meet; what etcd is to `EtcdElection`."""

    def __init__(self) -> None:
        self._queue: list[_Candidacy] = []
        self._epoch = 0
        self._changed = asyncio.Condition()

    def candidate(self) -> MemoryElection:
        """Return a new candidate."""
        return MemoryElection(self)

    @property
    def leader(self) -> Leader | None:
        """Who leads now."""
        return Leader(self._queue[0].value, self._queue[0].epoch) if self._queue else None

    def epochs(self) -> list[int]:
        """Return the epochs of everybody in the queue, the leader's first."""
        return [one.epoch for one in self._queue]

    def holds(self, guard: Compare) -> bool:
        """Return whether a leadership's guard would let a write pass now."""
        return any(guard == Compare.created_at(one.key, one.epoch) for one in self._queue)

    async def remove(self, epoch: int, *, told: bool = True) -> None:
        """End the candidacy or leadership of `epoch`, as a lost lease or a deleted key does.

        With `told` false its owner does not notice, like a process that is stopped (SIGSTOP).
        """
        for one in [one for one in self._queue if one.epoch == epoch]:
            await self._leave(one, told=told)

    async def _join(self, value: bytes) -> _Candidacy:
        self._epoch += 1
        candidacy = _Candidacy(self._epoch, value)
        self._queue.append(candidacy)
        async with self._changed:
            self._changed.notify_all()
        return candidacy

    async def _leave(self, candidacy: _Candidacy, *, told: bool = True) -> None:
        if told:
            candidacy.lost.set()
        if candidacy in self._queue:
            self._queue.remove(candidacy)
            async with self._changed:
                self._changed.notify_all()

    async def _wait_turn(self, candidacy: _Candidacy) -> None:
        """Return when `candidacy` leads or is gone."""
        async with self._changed:
            await self._changed.wait_for(lambda: candidacy not in self._queue or self._queue[0] is candidacy)

    async def _wait_other(self, than: Leader | None) -> Leader | None:
        """Return the next leader that is not `than`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.leader != than)
            return self.leader


class MemoryElection:
    """One candidate; `services.common.election.Election` is the contract."""

    def __init__(self, ballot: MemoryBallot) -> None:
        self._ballot = ballot
        self._candidacy: _Candidacy | None = None
        self._campaigning = False

    async def campaign(self, value: bytes) -> Leadership:
        """Wait until this candidate leads."""
        if self._campaigning or (self._candidacy is not None and self._candidacy.live):
            raise RuntimeError("this candidate campaigns or leads already")
        self._campaigning = True
        try:
            while True:
                candidacy = await self._ballot._join(value)
                try:
                    await self._ballot._wait_turn(candidacy)
                except asyncio.CancelledError:
                    await self._ballot._leave(candidacy)
                    raise
                if self._ballot.holds(Compare.created_at(candidacy.key, candidacy.epoch)):
                    self._candidacy = candidacy
                    return Leadership(candidacy.epoch, candidacy.key, candidacy)
        finally:
            self._campaigning = False

    async def observe(self) -> AsyncGenerator[Leader | None, None]:
        """Yield the present leader, then every new one."""
        leader = self._ballot.leader
        while True:
            yield leader
            leader = await self._ballot._wait_other(leader)

    async def depose(self, leader: Leader) -> None:
        """Take the leadership of `leader` away."""
        await self._ballot.remove(leader.epoch)

    async def resign(self) -> None:
        """Give up leadership."""
        candidacy, self._candidacy = self._candidacy, None
        if candidacy is not None:
            await self._ballot._leave(candidacy)
