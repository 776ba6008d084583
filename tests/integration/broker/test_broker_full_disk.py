"""A disk that is really full: the broker's data on a small file system of its own (R7)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from muster.common.v1 import envelope_pb2

from services.common.core.errors import Reason
from tests.conftest import Certificates, Eventually
from tests.integration.broker.broker_client import MailboxClient, envelope, error_of
from tests.integration.broker.broker_load import AWAY
from tests.integration.broker.broker_process import BrokerProcess

DISK_BYTES = 24 * 1024 * 1024
BALLAST_BYTES = 12 * 1024 * 1024
FRAME = 8
PAYLOAD_BYTES = 60_000


def in_a_small_disk(folder: Path) -> list[str]:
    """Return what runs a command with a file system in memory on `folder`, which only that command sees."""
    script = f'mount -t tmpfs -o size={DISK_BYTES},mode=700 small "{folder}" && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]


@pytest.fixture
def process(
    tmp_path: Path, certificates: Certificates, free_port: Callable[[], int]
) -> Iterator[BrokerProcess]:
    """A broker's process on a small disk."""
    data = tmp_path / "broker" / "data"
    data.mkdir(parents=True)
    before = in_a_small_disk(data)
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a file system in a namespace of one's own")
    made = BrokerProcess(certificates, tmp_path / "broker", free_port())
    made.start(*before)
    yield made
    assert made.process is not None
    made.kill()


async def _open(process: BrokerProcess, certificates: Certificates, name: str) -> MailboxClient | None:
    try:
        return await MailboxClient.open(
            process.address, certificates.tls(name), credits_=0, send_only=name == "agent/alpha"
        )
    except AWAY:
        return None


async def test_a_full_disk_refuses_and_goes_on_when_there_is_room(
    process: BrokerProcess, certificates: Certificates, eventually: Eventually, tmp_path: Path
) -> None:
    clients: list[MailboxClient] = []

    async def opened(name: str) -> bool:
        client = await _open(process, certificates, name)
        clients.extend([client] if client is not None else [])
        return client is not None

    await eventually(lambda: opened("agent/beta"))
    await eventually(lambda: opened("agent/alpha"))
    beta, alpha = clients
    assert process.process is not None
    # The small disk as the broker sees it.
    data = Path(f"/proc/{process.process.pid}/root{tmp_path}/broker/data")
    ballast = data / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    accepted: list[str] = []
    made = 0

    async def send_some() -> Reason | None:
        """Send one frame of new envelopes; return why the first that was refused was."""
        nonlocal made
        ids = [f"m-{made + number}" for number in range(FRAME)]
        made += FRAME
        outcomes = await alpha.send(*(_large(message_id) for message_id in ids))
        accepted.extend(one.message_id for one in outcomes if not one.HasField("error"))
        errors = [error_of(one) for one in outcomes if one.HasField("error")]
        assert all(error.row.code == "RESOURCE_EXHAUSTED" and error.retry_after_ms for error in errors)
        return errors[0].reason if errors else None

    while (reason := await send_some()) is None:
        assert made < 10 * DISK_BYTES // PAYLOAD_BYTES, "the disk never filled up"
    assert reason is Reason.DISK_FULL
    # Again and again: it stays a refusal, and the broker stays.
    for _ in range(5):
        assert await send_some() in {None, Reason.DISK_FULL}
    assert process.process.poll() is None
    ballast.unlink()

    async def fits() -> bool:
        return await send_some() is None

    await eventually(fits)
    # Everything that was accepted is there, whole and in order, and nothing else.
    await beta.write(credits=60_000)
    deliveries = await beta.take(len(accepted))
    assert [one.envelope.message_id for one in deliveries] == accepted
    assert [one.envelope.payload.data for one in deliveries] == [_payload(one) for one in accepted]
    await beta.ack(deliveries)
    assert _check(process.process.pid, tmp_path / "broker" / "data" / "mailboxes.sqlite") == "ok"
    for client in clients:
        await client.close()
    log = process.log_path.read_text()
    assert "crashed" not in log, log[-3_000:]


def _check(pid: int, path: Path) -> str:
    """Let SQLite check a file that only the process `pid` sees."""
    there = ["nsenter", "--target", str(pid), "--user", "--preserve-credentials", "--mount"]
    look = "sqlite3.connect(sys.argv[1]).execute('PRAGMA integrity_check').fetchone()"
    done = subprocess.run(
        [*there, sys.executable, "-c", f"import sqlite3, sys; print(*{look})", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr


def _payload(message_id: str) -> bytes:
    return message_id.encode().ljust(PAYLOAD_BYTES, b".")


def _large(message_id: str) -> envelope_pb2.Envelope:
    return envelope(message_id, "beta", _payload(message_id), ttl_ms=3_600_000)
