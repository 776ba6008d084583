"""Links that break, stall and lie: resumed without loss, repeat or reordering."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.conftest import Certificates, Eventually
from tests.integration.broker.broker_load import SteadyReceiver, SteadySender, check_course
from tests.integration.broker.broker_proxy import Proxy
from tests.integration.broker.conftest import House

ROUNDS = 6


@pytest_asyncio.fixture
async def proxy(opened: House) -> AsyncIterator[Proxy]:
    """A proxy in front of a broker."""
    assert opened.app is not None
    made = Proxy(opened.app.address)
    yield made
    await made.stop()


async def _run(
    proxy: Proxy,
    certificates: Certificates,
    eventually: Eventually,
    trouble: Callable[[Proxy, random.Random], Awaitable[None]],
) -> SteadyReceiver:
    address = await proxy.start()
    rng = random.Random(11)
    sender = SteadySender(address, certificates.tls("agent/alpha"))
    receiver = SteadyReceiver(address, certificates.tls("agent/beta"))
    running = [asyncio.create_task(receiver.run()), asyncio.create_task(sender.run())]
    for _ in range(ROUNDS):
        before = len(receiver.effects)
        await eventually(lambda before=before: len(receiver.effects) > before + 200)
        await trouble(proxy, rng)
    sender.stop()
    await asyncio.wait_for(running[1], 60)
    await eventually(lambda: len(receiver.effects) >= len(sender.sequences))
    receiver.stop()
    await asyncio.wait_for(running[0], 60)
    check_course(sender, receiver)
    return receiver


async def test_links_that_are_cut(proxy: Proxy, certificates: Certificates, eventually: Eventually) -> None:
    async def cut(proxy: Proxy, _: random.Random) -> None:
        await proxy.cut()

    await _run(proxy, certificates, eventually, cut)
    # Each break cost both of them a new connection.
    assert proxy.count >= 2 + ROUNDS


async def test_links_that_only_the_client_knows_to_be_broken(
    proxy: Proxy, certificates: Certificates, eventually: Eventually
) -> None:
    async def half_open(proxy: Proxy, _: random.Random) -> None:
        await proxy.cut_clients()

    await _run(proxy, certificates, eventually, half_open)


async def test_links_that_stall_and_go_on(
    proxy: Proxy, certificates: Certificates, eventually: Eventually
) -> None:
    async def stall(proxy: Proxy, rng: random.Random) -> None:
        proxy.freeze()
        await asyncio.sleep(rng.uniform(0.05, 0.3))  # sleeps: the stall is what is under test
        proxy.thaw()

    receiver = await _run(proxy, certificates, eventually, stall)
    # Nothing broke, so nothing had to be repeated.
    assert receiver.repeats == 0


@pytest.mark.parametrize("delay_s", [0.01])
async def test_links_that_are_slow_and_are_cut(
    proxy: Proxy, certificates: Certificates, eventually: Eventually, delay_s: float
) -> None:
    proxy.delay_s = delay_s

    async def cut(proxy: Proxy, rng: random.Random) -> None:
        await (proxy.cut() if rng.random() < 0.5 else proxy.cut_clients())

    await _run(proxy, certificates, eventually, cut)
