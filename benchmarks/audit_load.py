"""A producer that fills the audit log over one Append stream, with the identity of the broker.

Run: python -m benchmarks.audit_load --help.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from pathlib import Path
from typing import Any

import uvloop
from muster.audit.v1.audit_service_pb2 import AppendRequest, AppendResponse
from muster.audit.v1.audit_service_pb2_grpc import AuditServiceStub

from benchmarks.programs import tell
from services.common.core.entries import EntryDraft
from services.common.core.instants import Instant
from services.common.outbox import encode_entry
from services.common.rpc.channel import make_channel
from services.common.tls import TlsIdentity
from services.local.certs import PlaneCertificates

FRAME_ENTRIES = 1_024
# Frames that audit has not confirmed.
WINDOW_FRAMES = 8
_REPLICA = "load-1"


async def fill(options: argparse.Namespace) -> None:
    """Append `count` entries; tell how long it took until the last one was confirmed as durable."""
    certificates = PlaneCertificates(options.home)
    tls = TlsIdentity(certificates.ca, *certificates.service_pair("broker"))
    frames = _frames(options.count)
    async with make_channel(options.address, tls, "audit") as channel:
        stub: Any = AuditServiceStub(channel)
        stream: Any = stub.Append()
        free = asyncio.Semaphore(WINDOW_FRAMES)
        begin = time.monotonic()
        receiving = asyncio.create_task(_receive(stream, free, options.count))
        for frame in frames:
            await free.acquire()
            await stream.write(frame)
        await receiving
        rate = options.count / (time.monotonic() - begin)
        stream.cancel()
    tell("done", rate=rate, entry_bytes=len(frames[0].entries[0].SerializeToString()))


async def _receive(stream: Any, free: asyncio.Semaphore, count: int) -> None:
    confirmed = 0
    while confirmed < count:
        response: AppendResponse = await stream.read()
        if response.HasField("error"):
            raise RuntimeError(f"audit refused: {response.error}")
        # One answer may confirm several frames.
        newly = response.durable_sequence_number - confirmed
        confirmed = response.durable_sequence_number
        for _ in range(-(-newly // FRAME_ENTRIES)):
            free.release()


def _frames(count: int) -> list[AppendRequest]:
    spool_id = secrets.token_hex(8)
    now = Instant(int(time.time() * 1_000))
    frames = []
    for first in range(1, count + 1, FRAME_ENTRIES):
        request = AppendRequest(first_sequence_number=first, spool_id=spool_id)
        for number in range(first, min(first + FRAME_ENTRIES, count + 1)):
            draft = EntryDraft(
                now,
                "agent/worker",
                "task.assign",
                f"task/c-{number:016x}/t",
                cause_id=f"b{number}",
                collaboration_id=f"c-{number:016x}",
                attributes={"token": "5.1", "instance": "worker/0"},
            )
            request.entries.add().ParseFromString(
                encode_entry(draft, f"broker/{_REPLICA}/{spool_id}.{number}", _REPLICA)
            )
        frames.append(request)
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_load", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the plane's folder")
    parser.add_argument("--address", required=True, help="host:port of audit")
    parser.add_argument("--count", type=int, required=True, help="entries")
    uvloop.run(fill(parser.parse_args()))


if __name__ == "__main__":
    main()
