"""Changes of a range of keys as they happen, without a gap, over lost links."""

from __future__ import annotations

import asyncio
import random
from types import TracebackType
from typing import Any, Self

from aetcd import rpc
from grpc.aio import AioRpcError, UsageError

from services.common import logs
from services.common.core.backoff import backoff_ms
from services.common.core.errors import ServiceError
from services.common.etcd import messages
from services.common.etcd.channel import END_OF_STREAM, METADATA, cancelled_from_outside
from services.common.etcd.errors import CompactedError, closed, from_rpc_error, unavailable
from services.common.etcd.ops import KeyEvent, WatchBatch

_log = logs.get("etcd.watch")
# Delay before the link is opened anew: short, because a takeover waits on a watch.
_RECONNECT_BASE_MS = 25
_RECONNECT_MAX_MS = 1_000


class Watch:
    """An async iterator of `WatchBatch`; `next_revision` is where it would resume.

    One consumer at a time. Cancelling a pending step loses nothing: the next step resumes.
    """

    def __init__(self, stub: Any, key: bytes, range_end: bytes, from_revision: int) -> None:
        self._stub = stub
        self._key, self._range_end = key, range_end
        self.next_revision = from_revision
        self._call: Any = None
        self._failures = 0
        # Fragments of a batch that is not complete yet; etcd splits what is larger than a request may be.
        self._fragments: list[KeyEvent] = []

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the stream."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._fragments.clear()

    async def __anext__(self) -> WatchBatch:
        while True:
            try:
                if self._call is None:
                    await self._open()
                response = await self._call.read()
                if response is END_OF_STREAM:
                    raise unavailable("etcd: watch: the member closed the stream")
                batch = self._take(response)
            except AioRpcError as error:
                await self._pause(from_rpc_error(error, doing="watch"))
            except (ServiceError, asyncio.InvalidStateError) as error:
                # InvalidStateError: gRPC refuses to use a stream that has ended in the meantime.
                await self._pause(error)
            except UsageError as error:
                raise closed("watch") from error
            except asyncio.CancelledError as error:
                # gRPC cancels the whole call with the read; fragments read so far will come again.
                await self.aclose()
                if cancelled_from_outside():
                    raise
                raise closed("watch") from error
            else:
                if batch is not None:
                    return batch

    async def _open(self) -> None:
        self._call = self._stub.Watch(metadata=METADATA, wait_for_ready=True)
        create = rpc.WatchCreateRequest(
            key=self._key,
            range_end=self._range_end,
            start_revision=self.next_revision,
            progress_notify=True,
            fragment=True,
        )
        await self._call.write(rpc.WatchRequest(create_request=create))

    def _take(self, response: Any) -> WatchBatch | None:
        """Return the batch that `response` completes, or None."""
        if response.compact_revision:
            raise CompactedError(response.compact_revision)
        if response.canceled:
            raise unavailable(f"etcd: watch: cancelled by the member: {response.cancel_reason}")
        self._failures = 0
        if response.created:
            return None
        self._fragments.extend(messages.key_event(event) for event in response.events)
        if response.fragment:
            return None
        events, self._fragments = tuple(self._fragments), []
        # A batch ends at a revision's end, so the header's revision, or the last event's, is complete.
        revision = events[-1].kv.mod_revision if events else response.header.revision
        self.next_revision = max(self.next_revision, revision + 1)
        return WatchBatch(revision, events)

    async def _pause(self, error: Exception) -> None:
        """End the stream and wait before the next try; an error that etcd means for good is raised."""
        await self.aclose()
        if isinstance(error, ServiceError) and error.row.definite:
            raise error
        if self._failures == 0:
            _log.warning("lost the watch on etcd; resuming", revision=self.next_revision, why=str(error))
        self._failures += 1
        delay_ms = backoff_ms(
            self._failures, base_ms=_RECONNECT_BASE_MS, max_ms=_RECONNECT_MAX_MS, jitter=random.random()
        )
        await asyncio.sleep(delay_ms / 1_000)
