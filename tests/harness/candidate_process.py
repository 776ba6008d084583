"""A candidate in a process of its own, to be killed and stopped by signals.

Arguments: endpoints (comma separated), ca, certificate, key, key prefix, name, TTL in seconds. It says
{"leads": epoch} when it leads and {"lost": epoch} when it notices that it does not; a line "write" on
standard input makes it try a write under its guard: {"held": ..., "written": ...}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from services.common.clock import SystemClock
from services.common.election import Leadership
from services.common.etcd.channel import EtcdTls
from services.common.etcd.client import EtcdClient
from services.common.etcd.election import EtcdElection
from services.common.etcd.ops import Put


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def tell_loss(leadership: Leadership) -> None:
    await leadership.wait_lost()
    say(lost=leadership.epoch)


async def main(endpoints: str, ca: str, certificate: str, key: str, prefix: str, name: str, ttl: str) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tls = EtcdTls(Path(ca), Path(certificate), Path(key))
    async with EtcdClient(endpoints.split(","), tls) as client:
        election = EtcdElection(client, SystemClock(), f"{prefix}/election/", ttl_s=int(ttl))
        leadership = await election.campaign(name.encode())
        say(leads=leadership.epoch)
        telling = asyncio.create_task(tell_loss(leadership))
        while await reader.readline():
            held = leadership.held
            result = await client.txn([leadership.guard], [Put(f"{prefix}/written-by", name.encode())])
            say(held=held, written=result.succeeded)
        telling.cancel()
        await election.resign()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
