"""Carries a spool's records to audit.Append: in order, resumed after any failure, for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from muster.audit.v1 import audit_service_pb2

from services.common import logs
from services.common.core.backoff import backoff_ms
from services.common.core.errors import Reason, ServiceError
from services.common.protobuf import tag, varint
from services.common.rpc.status import from_rpc_error, from_status
from services.common.spool import Spool, SpoolError
from services.common.worker import Worker

METHOD = "/muster.audit.v1.AuditService/Append"
# The proto's bounds of one frame, a little of the bytes kept for the frame's own fields.
FRAME_ENTRIES_MAX = 1_024
FRAME_BYTES_MAX = 1024 * 1024 - 4_096
# Entries on their way that audit has not confirmed; enough to keep its group commit busy.
UNCONFIRMED_MAX = 8 * FRAME_ENTRIES_MAX
# Least time between two frames of which the first took all there was. Nobody waits for them: the entries are
# durable where they are, and published by audit ten times a second. What a frame costs audit beside its
# entries (a sync, milliseconds of its processor) would be taken from whoever shares the machine.
PACE_S = 0.1
BACKOFF_MS_MIN = 100
BACKOFF_MS_MAX = 5_000

_ENTRIES = tag(audit_service_pb2.AppendRequest.ENTRIES_FIELD_NUMBER)

_log = logs.get("shipper")


class Shipper:
    """Owned by the event loop; reads the spool on a thread of the loop's pool, acks it on `writer`."""

    def __init__(self, spool: Spool, writer: Worker, on_confirmed: Callable[[], None]) -> None:
        self._spool, self._writer, self._on_confirmed = spool, writer, on_confirmed
        # Every number up to this one is confirmed. What an earlier run confirmed and did not delete is sent
        # again and confirmed at once.
        self.acked = spool.first_sequence - 1
        # Set when there may be something to do: a flush, an ack.
        self._stirred = asyncio.Event()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._failures = 0

    def stir(self) -> None:
        """Say that the spool has grown."""
        self._stirred.set()

    async def wait_acked(self, sequence: int) -> None:
        """Return when everything up to `sequence` is confirmed."""
        if self.acked >= sequence:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((sequence, waiter))
        await waiter

    async def run(self, connect: Callable[[], Awaitable[grpc.aio.Channel]]) -> None:
        """Ship for ever; a failure is said once and tried again with backoff and full jitter."""
        while True:
            try:
                channel = await connect()
                try:
                    await self._ship_over(channel)
                finally:
                    await channel.close(None)
            except (grpc.aio.AioRpcError, ServiceError, SpoolError, OSError) as error:
                why = from_rpc_error(error) if isinstance(error, grpc.aio.AioRpcError) else error
                self._failures += 1
                if self._failures == 1:
                    _log.warning("shipping to audit failed; entries stay in the spool", why=why)
            delay_ms = backoff_ms(
                self._failures, base_ms=BACKOFF_MS_MIN, max_ms=BACKOFF_MS_MAX, jitter=random.random()
            )
            await asyncio.sleep(delay_ms / 1000)

    async def _ship_over(self, channel: grpc.aio.Channel) -> None:
        """Ship over one stream until it fails; raises why."""
        # Frames are assembled from the stored bytes: nothing is parsed and serialized again.
        stream: Any = channel.stream_stream(METHOD, None, None)(None)
        halves = [
            asyncio.create_task(self._send(stream), name="shipper-send"),
            asyncio.create_task(self._receive(stream), name="shipper-receive"),
        ]
        try:
            # Each half ends with an error, but for a sender that finds the stream ended: then the other one
            # knows why.
            ended, _ = await asyncio.wait(halves, return_when=asyncio.FIRST_EXCEPTION)
            for half in ended:
                half.result()
        finally:
            for half in halves:
                half.cancel()
            stream.cancel()
            await asyncio.gather(*halves, return_exceptions=True)

    async def _send(self, stream: Any) -> None:
        loop = asyncio.get_running_loop()
        following = self.acked + 1
        while True:
            # What an earlier run had confirmed need not be sent.
            following = max(following, self.acked + 1)
            free = UNCONFIRMED_MAX - (following - 1 - self.acked)
            there = self._spool.next_sequence
            if following >= there or free <= 0:
                self._stirred.clear()
                await self._stirred.wait()
                continue
            records = await loop.run_in_executor(
                None, self._spool.read, following, min(free, FRAME_ENTRIES_MAX), FRAME_BYTES_MAX
            )
            try:
                await stream.write(_frame(self._spool.spool_id, following, records))
            except asyncio.InvalidStateError:
                # What grpc.aio raises once the call has its status.
                return
            following += len(records)
            if following == there:
                await asyncio.sleep(PACE_S)

    async def _receive(self, stream: Any) -> None:
        while (raw := await stream.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            try:
                response = audit_service_pb2.AppendResponse.FromString(raw)
            except DecodeError as error:
                raise ServiceError(Reason.MALFORMED_FRAME, "audit's answer can not be read") from error
            await self._confirm(response.durable_sequence_number)
            if response.HasField("error"):
                raise from_status(response.error)
        raise ServiceError(Reason.PEER_SILENT, "audit ended the stream")

    async def _confirm(self, sequence: int) -> None:
        if sequence >= self._spool.next_sequence:
            raise SpoolError(
                f"audit has entry {sequence} of spool {self._spool.spool_id}, which has only "
                f"{self._spool.next_sequence - 1}: it was restored from an old copy; move "
                f"{self._spool.directory} away so that a new spool starts"
            )
        if sequence <= self.acked:
            return
        self.acked = sequence
        if self._failures:
            _log.info("audit is back", after_failures=self._failures)
            self._failures = 0
        await self._writer.run(partial(self._spool.ack, sequence))
        self._stirred.set()
        still = []
        for wanted, waiter in self._waiting:
            if wanted > sequence:
                still.append((wanted, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        self._waiting = still
        self._on_confirmed()


def _frame(spool_id: str, first: int, records: list[bytes]) -> bytes:
    """Return an AppendRequest on the wire: its own two fields, then each record as a field `entries`.

    Concatenated encodings are the encoding of the merged message (protobuf, "Encoding": "Last One Wins").
    """
    request = audit_service_pb2.AppendRequest(first_sequence_number=first, spool_id=spool_id)
    parts = [request.SerializeToString()]
    for record in records:
        parts += (_ENTRIES, varint(len(record)), record)
    return b"".join(parts)
