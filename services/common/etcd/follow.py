"""A copy of a prefix that stays current: what is there, then every change, for ever.

The pattern that etcd asks for (list, watch from the next revision, list again after a compaction), written
once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from services.common.core.backoff import backoff_ms
from services.common.core.errors import ServiceError
from services.common.etcd.client import EtcdClient
from services.common.etcd.errors import CompactedError
from services.common.etcd.ops import KeyValue, Rows, WatchBatch

# Pause between tries to read the present state, in milliseconds.
_RETRY_BASE_MS = 50
_RETRY_MAX_MS = 1_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything under the prefix as of `revision`; replaces all that was known before."""

    revision: int
    kvs: tuple[KeyValue, ...]


async def follow(client: EtcdClient, prefix: str) -> AsyncGenerator[Snapshot | WatchBatch, None]:
    """Yield a snapshot of `prefix`, then every batch of changes after it; a snapshot again after a gap.

    Waits for as long as etcd is away. Close with `contextlib.aclosing`.
    """
    while True:
        rows = await _read_all(client, prefix)
        yield Snapshot(rows.revision, rows.kvs)
        async with client.watch(prefix, from_revision=rows.revision + 1) as watch:
            with contextlib.suppress(CompactedError):
                async for batch in watch:
                    yield batch


class Mirror:
    """The keys of a prefix by name, fed with what `follow` yields."""

    def __init__(self) -> None:
        self.kvs: dict[str, KeyValue] = {}

    def apply(self, change: Snapshot | WatchBatch) -> bool:
        """Take in one change; return whether any key changed."""
        match change:
            case Snapshot(kvs=kvs):
                self.kvs = {kv.key: kv for kv in kvs}
                return True
            case WatchBatch(events=events):
                for event in events:
                    if event.deleted:
                        self.kvs.pop(event.kv.key, None)
                    else:
                        self.kvs[event.kv.key] = event.kv
                return bool(events)


async def _read_all(client: EtcdClient, prefix: str) -> Rows:
    failures = 0
    while True:
        try:
            return await client.get_prefix(prefix)
        except ServiceError:
            failures += 1
            await asyncio.sleep(backoff_ms(failures, base_ms=_RETRY_BASE_MS, max_ms=_RETRY_MAX_MS) / 1_000)
