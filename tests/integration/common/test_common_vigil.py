"""A leader whose process is gone is deposed at once; one that is only silent, or never reached, is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from services.common import logs
from services.common.metrics import Metrics
from services.common.rpc.channel import make_channel
from services.common.rpc.server import GrpcServer
from services.common.rpc.vigil import Vigil, is_gone
from services.common.testing.election import MemoryBallot
from services.common.tls import TlsIdentity
from tests.conftest import Certificates, Eventually


@pytest_asyncio.fixture
async def server(certificates: Certificates) -> AsyncIterator[tuple[GrpcServer, str]]:
    """A leader's server and its address."""
    tls = certificates.tls("service/scheduler")
    made = GrpcServer(tls, "127.0.0.1:0", {}, Metrics("scheduler"), logs.get("test"))
    yield made, await made.start()
    await made.drain(0)


@contextlib.asynccontextmanager
async def keeping_vigil(
    ballot: MemoryBallot, certificates: Certificates, own: str = ""
) -> AsyncIterator[Vigil]:
    """A replica that leads next, and its vigil until then."""
    candidate = ballot.candidate()
    campaign = asyncio.create_task(candidate.campaign(b""))
    tls = certificates.tls("service/scheduler")
    vigil = Vigil(candidate, tls, "scheduler", address_of=bytes.decode, own=lambda: own)
    watching = asyncio.create_task(vigil.run())
    try:
        yield vigil
        assert not watching.done()
    finally:
        for task in (campaign, watching):
            task.cancel()
        await asyncio.gather(campaign, watching, return_exceptions=True)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that vigils call, which they do without much of a pause."""
    addresses: list[str] = []

    def noted(address: str, tls: TlsIdentity, service: str) -> Any:
        addresses.append(address)
        return make_channel(address, tls, service)

    monkeypatch.setattr("services.common.rpc.vigil.make_channel", noted)
    monkeypatch.setattr("services.common.rpc.vigil._AGAIN_MS", 1)
    return addresses


async def test_a_leader_that_dies_is_deposed_before_its_lease_ends(
    certificates: Certificates, eventually: Eventually, server: tuple[GrpcServer, str]
) -> None:
    leader, address = server
    ballot = MemoryBallot()
    leadership = await ballot.candidate().campaign(address.encode())
    async with keeping_vigil(ballot, certificates) as vigil:
        await eventually(lambda: vigil.reached)
        assert leadership.held
        # What its peers see of a process that is killed: connections and listener are gone.
        await leader.drain(0)
        await eventually(lambda: ballot.leader is not None and ballot.leader.epoch > leadership.epoch)
    assert not leadership.held


async def test_a_leader_that_was_never_reached_keeps_its_lead(
    certificates: Certificates, eventually: Eventually, called: list[str], free_port: Callable[[], int]
) -> None:
    ballot = MemoryBallot()
    leadership = await ballot.candidate().campaign(f"127.0.0.1:{free_port()}".encode())
    async with keeping_vigil(ballot, certificates) as vigil:
        await eventually(lambda: len(called) > 3)
        assert not vigil.reached
        assert leadership.held


async def test_nobody_watches_himself(
    certificates: Certificates, eventually: Eventually, called: list[str], free_port: Callable[[], int]
) -> None:
    own, other = (f"127.0.0.1:{free_port()}" for _ in range(2))
    ballot = MemoryBallot()
    first = ballot.candidate()
    await first.campaign(own.encode())
    next_one = asyncio.create_task(ballot.candidate().campaign(other.encode()))
    await eventually(lambda: len(ballot.epochs()) == 2)
    async with keeping_vigil(ballot, certificates, own):
        await first.resign()
        await eventually(lambda: other in called)
    await next_one
    assert own not in called


async def test_only_refusals_say_that_a_process_is_gone(free_port: Callable[[], int]) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert not await is_gone(f"127.0.0.1:{port}"), "somebody listens"
    server.close()
    await server.wait_closed()
    assert await is_gone(f"127.0.0.1:{port}")
    assert not await is_gone(f"no-such-host.invalid:{port}"), "no name, no answer"
    assert not await is_gone("malformed")
