"""kill -9 under load, with a real process: nothing acknowledged is lost, reordered or doubled."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from muster.broker.v1 import broker_service_pb2 as pb

from services.common.core.errors import Reason
from tests.conftest import Certificates, Eventually
from tests.integration.broker.broker_client import MailboxClient, envelope
from tests.integration.broker.broker_load import AWAY, break_under_load
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
    async def harm(_: int) -> None:
        process.kill()
        process.start()

    def story() -> str:
        return process.log_path.read_text()[-4_000:]

    await break_under_load(process.address, certificates, eventually, kills, harm, story)
    # All may have been answered before the last kill, and only who has started can be stopped well.
    await eventually(lambda: _serves(process, certificates), timeout=60)
    assert process.stop() == 0


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
    await beta.stub.Subscribe(pb.SubscribeRequest(pattern="roads.*"))
    assert process.stop() == 0
    error = await beta.wait_end()
    assert error is not None
    assert error.reason is Reason.SHUTTING_DOWN
    await beta.close()
    process.start()
    await eventually(lambda: _serves(process, certificates))
    # It knows its mailboxes although the registry never answered.
    alpha = await MailboxClient.open(
        process.address, certificates.tls("agent/alpha"), send_only=True, features=["routes"]
    )
    sent, published = await alpha.send(envelope("m-1", "beta"), envelope("m-2", "topic/roads.open"))
    assert (sent.sequence_number, published.receiver_count) == (1, 1)
    await alpha.close()
