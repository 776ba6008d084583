"""A replica's turns at leading, among others and on its way out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest_asyncio

from services.common.candidate import Candidate
from services.common.core.errors import Reason, ServiceError
from services.common.election import Leadership
from services.common.testing.election import MemoryBallot
from tests.conftest import Eventually


class Office:
    """A leadership's work, which the test begins, fails and ends."""

    def __init__(self, failures: int) -> None:
        self.epochs: list[int] = []
        self.over = asyncio.Event()
        self.failures = failures

    async def lead(self, leadership: Leadership) -> None:
        self.epochs.append(leadership.epoch)
        if self.failures:
            self.failures -= 1
            raise ServiceError(Reason.STORE_UNAVAILABLE, "no state to be had")
        over = asyncio.create_task(self.over.wait())
        lost = asyncio.create_task(leadership.wait_lost())
        try:
            await asyncio.wait((over, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            lost.cancel()
            await asyncio.gather(over, lost, return_exceptions=True)


class Runner:
    """One candidate that runs."""

    def __init__(self, ballot: MemoryBallot, value: bytes, *, failures: int = 0) -> None:
        self.office = Office(failures)
        self.candidate = Candidate(ballot.candidate())
        self.running = asyncio.create_task(self.candidate.run(value, self.office.lead))

    async def stop(self) -> None:
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running


@pytest_asyncio.fixture
async def ballot() -> MemoryBallot:
    return MemoryBallot()


@asynccontextmanager
async def running(ballot: MemoryBallot, value: bytes, *, failures: int = 0) -> AsyncIterator[Runner]:
    runner = Runner(ballot, value, failures=failures)
    try:
        yield runner
    finally:
        await runner.stop()


async def test_who_lost_the_lead_stands_again_behind_the_others(
    ballot: MemoryBallot, eventually: Eventually
) -> None:
    async with running(ballot, b"first") as first, running(ballot, b"second") as second:
        await eventually(lambda: first.office.epochs == [1] and ballot.epochs() == [1, 2])
        await ballot.remove(1)
        await eventually(lambda: second.office.epochs == [2])
        await eventually(lambda: ballot.epochs() == [2, 3])


async def test_a_leadership_that_could_not_begin_is_given_up_and_tried_again(
    ballot: MemoryBallot, eventually: Eventually
) -> None:
    async with running(ballot, b"first", failures=1) as first:
        await eventually(lambda: first.office.epochs == [1, 2])
        assert ballot.epochs() == [2]


async def test_who_withdraws_leads_to_the_end_and_not_again(
    ballot: MemoryBallot, eventually: Eventually
) -> None:
    async with running(ballot, b"first") as first:
        await eventually(lambda: first.office.epochs == [1])
        first.candidate.withdraw()
        leaving = asyncio.create_task(first.candidate.wait_idle())
        await asyncio.sleep(0)
        assert not leaving.done()
        first.office.over.set()
        await leaving
        assert ballot.leader is None
        await first.running
        assert first.office.epochs == [1]


async def test_who_withdraws_in_the_moment_of_winning_does_not_lead(
    ballot: MemoryBallot, eventually: Eventually
) -> None:
    other = ballot.candidate()
    await other.campaign(b"other")
    async with running(ballot, b"late") as late:
        await eventually(lambda: len(ballot.epochs()) == 2)
        await other.resign()
        # It has won, and does not know it yet.
        late.candidate.withdraw()
        await late.running
        await late.candidate.wait_idle()
        assert not late.office.epochs
        assert ballot.leader is None
