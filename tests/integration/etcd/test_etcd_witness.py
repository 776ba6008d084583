"""What Muster does in etcd, seen by clients that others wrote: `etcdctl` and the package `etcd3`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.common.clock import SystemClock
from services.common.election import Leader
from services.common.etcd.client import EtcdClient
from services.common.etcd.election import EtcdElection
from services.local.etcd_server import find_etcd
from tests.harness.etcd import EtcdHarness

Eventually = Callable[..., Awaitable[None]]
Etcdctl = Callable[..., contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]]
PATIENCE_S = 20.0


@pytest.fixture
def etcdctl(etcd: EtcdHarness) -> Etcdctl:
    """Return a function that runs etcdctl with these arguments for the length of an `async with`."""
    binary = find_etcd().with_name("etcdctl")
    if not binary.exists():
        pytest.skip("no etcdctl beside etcd")
    tls = etcd.tls
    connect = (
        *("--endpoints", ",".join(etcd.endpoints), "--cacert", str(tls.ca)),
        *("--cert", str(tls.certificate), "--key", str(tls.key)),
    )

    @contextlib.asynccontextmanager
    async def run(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            *(str(binary), *connect, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    return run


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode().strip()


async def test_etcdctl_stands_in_our_election(
    etcd_client: EtcdClient, etcd_prefix: str, etcdctl: Etcdctl, eventually: Eventually
) -> None:
    name = f"{etcd_prefix}/election"
    ours = EtcdElection(etcd_client, SystemClock(), f"{name}/")

    async def candidates() -> int:
        return len((await etcd_client.get_prefix(f"{name}/")).kvs)

    async def both() -> bool:
        return await candidates() == 2

    async with etcdctl("elect", name, "theirs") as theirs:
        # etcdctl leads; we wait behind it.
        key = await line(theirs)
        assert key.startswith(f"{name}/")
        assert await line(theirs) == "theirs"
        waiting = asyncio.create_task(ours.campaign(b"ours"))
        await eventually(both)
        async with contextlib.aclosing(ours.observe()) as leaders:
            leader = await anext(leaders)
        assert leader is not None
        assert leader.value == b"theirs"
        assert not waiting.done()
        theirs.send_signal(signal.SIGINT)
        leadership = await asyncio.wait_for(waiting, PATIENCE_S)
        assert leadership.epoch > leader.epoch

    # We lead; etcdctl sees it, and waits behind us.
    async with etcdctl("elect", "--listen", name) as listener, etcdctl("elect", name, "next") as following:
        assert await line(listener) == leadership.key
        assert await line(listener) == "ours"
        await eventually(both)
        await ours.resign()
        assert (await line(following)).startswith(f"{name}/")
        assert await line(following) == "next"
        following.send_signal(signal.SIGINT)
        await following.wait()

    async with contextlib.aclosing(ours.observe()) as leaders:
        assert await anext(leaders) is None


async def test_an_operator_deposes_a_leader_with_etcdctl(
    etcd_client: EtcdClient, etcd_prefix: str, etcdctl: Etcdctl
) -> None:
    election = EtcdElection(etcd_client, SystemClock(), f"{etcd_prefix}/election/")
    leadership = await election.campaign(b"")
    async with etcdctl("del", leadership.key) as deletion:
        assert await line(deletion) == "1"
    await asyncio.wait_for(leadership.wait_lost(), PATIENCE_S)
    again = await election.campaign(b"")
    assert again.epoch > leadership.epoch
    await election.resign()


ETCD3 = """
import json, sys, etcd3
host, _, port = sys.argv[1].partition(":")
client = etcd3.client(host, int(port), ca_cert=sys.argv[2], cert_cert=sys.argv[3], cert_key=sys.argv[4])
print(json.dumps([
    [meta.key.decode(), value.decode(), meta.create_revision, meta.lease_id]
    for value, meta in client.get_prefix(sys.argv[5])
]))
"""


async def test_the_package_etcd3_sees_the_same_leader(
    etcd: EtcdHarness, etcd_client: EtcdClient, etcd_prefix: str, tmp_path: Path
) -> None:
    election = EtcdElection(etcd_client, SystemClock(), f"{etcd_prefix}/election/")
    leadership = await election.campaign(b"ours")
    script = tmp_path / "look.py"
    script.write_text(ETCD3)
    tls = etcd.tls
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), etcd.endpoints[0], str(tls.ca), str(tls.certificate), str(tls.key)),
        etcd_prefix,
        stdout=asyncio.subprocess.PIPE,
        # Its generated code is older than today's protobuf; in pure Python it still loads.
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
    )
    seen, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    ((key, value, revision, lease_id),) = json.loads(seen)
    assert (key, Leader(value.encode(), revision)) == (leadership.key, Leader(b"ours", leadership.epoch))
    assert key.rpartition("/")[2] == f"{lease_id:x}"
    await election.resign()
