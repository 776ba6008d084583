"""kill -9 under load, with a real process: nothing acknowledged is lost, reordered or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from services.common.core.errors import Reason
from tests.conftest import Certificates, Eventually
from tests.integration.broker.broker_client import MailboxClient, envelope
from tests.integration.broker.broker_load import AWAY, SteadyReceiver, SteadySender, check_course
from tests.integration.broker.broker_process import BrokerProcess

KILLS = 5
NIGHTLY_KILLS = 200


@pytest_asyncio.fixture
async def process(
    tmp_path: Path, certificates: Certificates, free_port: Callable[[], int]
) -> AsyncIterator[BrokerProcess]:
    """A broker's process, running."""
    # Synced to the disk each time, as always; audit's own spool is not what is under test here.
    made = BrokerProcess(certificates, tmp_path / "broker", free_port(), audit_messages="none")
    made.start()
    yield made
    if made.process is not None:
        made.kill()


async def test_killed_under_load(
    process: BrokerProcess, certificates: Certificates, eventually: Eventually
) -> None:
    await _kill_under_load(process, certificates, eventually, KILLS)


@pytest.mark.nightly
async def test_killed_very_often_under_load(
    process: BrokerProcess, certificates: Certificates, eventually: Eventually
) -> None:
    await _kill_under_load(process, certificates, eventually, NIGHTLY_KILLS)


async def _kill_under_load(
    process: BrokerProcess, certificates: Certificates, eventually: Eventually, kills: int
) -> None:
    rng = random.Random(kills)
    sender = SteadySender(process.address, certificates.tls("agent/alpha"))
    receiver = SteadyReceiver(process.address, certificates.tls("agent/beta"))
    running = [asyncio.create_task(receiver.run())]
    # From its first stream on the receiver is known, also to later runs of the broker.
    await eventually(lambda: receiver.opened)
    running.append(asyncio.create_task(sender.run()))
    for number in range(kills):
        before = len(receiver.effects)
        more = rng.randint(100, 1_500)
        try:
            await eventually(
                lambda before=before, more=more: len(receiver.effects) > before + more, timeout=60
            )
        except AssertionError as stalled:
            raise AssertionError(f"kill {number}: stalled with {sender!r}, {receiver!r}") from stalled
        process.kill()
        process.start()
    sender.stop()
    await asyncio.wait_for(running[1], 60)
    await eventually(lambda: len(receiver.effects) >= len(sender.sequences), timeout=60)
    receiver.stop()
    await asyncio.wait_for(running[0], 60)
    assert process.stop() == 0
    check_course(sender, receiver)


async def _serves(process: BrokerProcess, certificates: Certificates) -> bool:
    with contextlib.suppress(*AWAY):
        client = await MailboxClient.open(process.address, certificates.tls("agent/gamma"), send_only=True)
        await client.close()
        return True
    return False


async def test_stopped_well_it_says_goodbye_and_comes_back(
    process: BrokerProcess, certificates: Certificates, eventually: Eventually
) -> None:
    await eventually(lambda: _serves(process, certificates))
    beta = await MailboxClient.open(process.address, certificates.tls("agent/beta"))
    assert process.stop() == 0
    error = await beta.wait_end()
    assert error is not None
    assert error.reason is Reason.SHUTTING_DOWN
    await beta.close()
    process.start()
    await eventually(lambda: _serves(process, certificates))
    # It knows its mailboxes although the registry never answered.
    alpha = await MailboxClient.open(process.address, certificates.tls("agent/alpha"), send_only=True)
    (outcome,) = await alpha.send(envelope("m-1", "beta"))
    assert outcome.sequence_number == 1
    await alpha.close()
