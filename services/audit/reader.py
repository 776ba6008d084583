"""Reads the published log: entries, tiles, proofs, and the index, which it keeps up to date.

Only what a durable checkpoint covers is ever shown, so that everything a reader gets can be proved to it.
A reader is served from the files at its own pace: a slow one costs no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from services.audit.core.merkle import HASH_BYTES, leaf_hash
from services.audit.core.model import Leaf
from services.audit.core.proofs import Run, consistency_runs, hash_runs, inclusion_runs, tiles_of
from services.audit.core.query import EntryFilter, IndexRow, PageStart
from services.audit.core.tiles import TILE_WIDTH, TilePath, bundle_at, cut, decode_bundle, tile_at
from services.audit.driver import Driver
from services.audit.metrics import AuditMetrics
from services.audit.store import EntryIndex, IndexState, LogStore
from services.common import logs
from services.common.core.backoff import backoff_ms
from services.common.core.errors import Reason, ServiceError

T = TypeVar("T")

# Leaves of one answer together; the message holds each twice, as bytes and as fields.
ANSWER_BYTES_MAX = 2**20
# Entries that are indexed in one transaction.
_INDEX_BATCH = 16 * TILE_WIDTH
# Their leaves' bytes beyond which a transaction takes no further bundle: entries with a group are large.
_INDEX_BYTES = 8 * 2**20
# How long entries gather before they are indexed while nobody asks for them: one row among thousands costs a
# third of what it costs among tens.
_REST_S = 0.5
_READ_THREADS = 2
_RETRY_MS_MIN = 100
_RETRY_MS_MAX = 5_000

_log = logs.get("audit.reader")


@dataclass(frozen=True, slots=True)
class Page:
    """Leaves that a query found."""

    leaves: tuple[Leaf, ...]
    # Where the next page begins; None when this was the last.
    following: PageStart | None
    # The tree size that was searched.
    tree_size: int


class LogReader:
    """Owned by the event loop; `follow` runs supervised."""

    def __init__(
        self,
        store: LogStore,
        index: EntryIndex,
        driver: Driver,
        row_of: Callable[[bytes], IndexRow],
        metrics: AuditMetrics,
    ) -> None:
        self._store, self._index, self._driver = store, index, driver
        # How an entry's facts come out of its leaf.
        self._row_of = row_of
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(_READ_THREADS, "audit-read")
        # Leaves that the index has.
        self._indexed = 0
        self._index_grown = asyncio.Event()
        # How many wait for the index to grow, and whether anybody does.
        self._waiting = 0
        self._asked = asyncio.Event()

    def __repr__(self) -> str:
        return f"LogReader(indexed={self._indexed})"

    async def tile(self, path: TilePath) -> bytes:
        """Return a tile or bundle of the published tree; ENTRY_NOT_FOUND when it has none such."""
        size = self._driver.published.size
        if path.size_min > size:
            raise ServiceError(Reason.ENTRY_NOT_FOUND, f"{path} is beyond the log's {size} entries")
        return await self._on_thread(self._read, path)

    async def leaves(self, begin: int, end: int) -> list[Leaf]:
        """Return leaves from index `begin` on, at least one if begin < end, none from `end` on.

        They are of one bundle, and of `ANSWER_BYTES_MAX` bytes unless the first alone is larger.
        """
        end = min(end, self._driver.published.size, begin - begin % TILE_WIDTH + TILE_WIDTH)
        return await self._on_thread(self._pick, range(begin, end))

    async def inclusion(self, index: int, size: int) -> tuple[Leaf, list[bytes]]:
        """Return leaf `index` and its audit path in the published tree of `size` leaves; index < size."""
        (leaf,) = await self._on_thread(self._pick, [index])
        return leaf, await self._on_thread(self._prove, inclusion_runs(index, size), size)

    async def consistency(self, old_size: int, new_size: int) -> list[bytes]:
        """Return the proof that the first `old_size` of `new_size` published leaves are unchanged."""
        return await self._on_thread(self._prove, consistency_runs(old_size, new_size), new_size)

    async def query(self, wanted: EntryFilter, start: PageStart | None, limit: int, wait_ms: int) -> Page:
        """Return the page of matching entries that begins at `start`; the first page when None.

        Waits until all that is durable now is published and indexed, so that a producer finds what was acked
        to it, but at most `wait_ms` milliseconds; then it searches what there is. A page may be short, or
        empty, and still have a following one.
        """
        if start is None:
            start = PageStart(await self._indexed_size(wait_ms), 0)
        found = await self._index.find(wanted, start.leaf_index, start.tree_size, limit)
        leaves = await self._on_thread(self._pick, found.indices)
        # Leaves that did not fit into the answer are the next page's.
        end = leaves[-1].index + 1 if len(leaves) < len(found.indices) else found.end
        following = PageStart(start.tree_size, end) if end < start.tree_size else None
        if wanted.tells_operations_apart:
            leaves = await self._on_thread(self._matching, wanted, leaves)
        return Page(tuple(leaves), following, start.tree_size)

    async def find_next(self, wanted: EntryFilter, begin: int, limit: int) -> tuple[list[Leaf], int]:
        """Wait until something from `begin` on is indexed; return what matches in it, and where it ends."""
        while self._indexed <= begin:
            await self._wait_indexed()
        size = self._indexed
        page = await self.query(wanted, PageStart(size, begin), limit, 0)
        return list(page.leaves), page.following.leaf_index if page.following else size

    async def follow(self) -> None:
        """Keep the index up to date, for ever; what can be tried again is."""
        failures = 0
        while True:
            try:
                state = await self._fitting_state()
                while True:
                    self._show_indexed(state.size)
                    await self._driver.wait_grown(state.size)
                    await self._rest(state.size)
                    state = await self._index_more(state.size)
                    failures = 0
            except ServiceError as error:
                failures += 1
                self._metrics.index_failures.inc()
                if failures == 1:
                    _log.warning("the index does not grow; trying again", why=str(error))
                delay_ms = backoff_ms(failures, base_ms=_RETRY_MS_MIN, max_ms=_RETRY_MS_MAX)
                await asyncio.sleep(delay_ms / 1000)

    async def close(self) -> None:
        """End the threads and close the index; stop `follow` first."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        await self._index.close()

    async def _indexed_size(self, wait_ms: int) -> int:
        wanted = self._driver.durable_size
        try:
            async with asyncio.timeout(wait_ms / 1000):
                while self._indexed < wanted:
                    await self._wait_indexed()
        except TimeoutError:
            # The answer says which tree size was searched.
            pass
        return self._indexed

    async def _wait_indexed(self) -> None:
        """Return when the index has grown; it does not rest meanwhile."""
        self._waiting += 1
        self._asked.set()
        try:
            await self._index_grown.wait()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._asked.clear()

    async def _rest(self, indexed: int) -> None:
        """Let entries gather, unless somebody waits for them or there are enough for one transaction."""
        if self._driver.published.size - indexed >= _INDEX_BATCH:
            return
        try:
            async with asyncio.timeout(_REST_S):
                await self._asked.wait()
        except TimeoutError:
            # Nobody asked.
            pass

    async def _fitting_state(self) -> IndexState:
        """Return the index's state, or clear it when it is of another log or further than this one."""
        state = await self._index.state()
        if state == IndexState():
            return state
        size = self._driver.published.size
        fits = state.log == self._driver.verifier_key and 0 < state.size <= size
        if fits:
            at = state.size - 1
            tile = await self.tile(tile_at(0, at // TILE_WIDTH, size))
            start = at % TILE_WIDTH * HASH_BYTES
            fits = tile[start : start + HASH_BYTES] == state.last_hash
        if not fits:
            _log.warning("the index is not of this log; making it again", indexed=state.size, tree_size=size)
            await self._index.clear()
            return IndexState()
        return state

    async def _index_more(self, begin: int) -> IndexState:
        end = min(self._driver.published.size, begin - begin % TILE_WIDTH + _INDEX_BATCH)
        rows, last = await self._on_thread(self._rows, begin, end)
        state = IndexState(self._driver.verifier_key, begin + len(rows), last)
        await self._index.add(rows, state)
        return state

    def _show_indexed(self, size: int) -> None:
        self._indexed = size
        self._metrics.indexed.set(size)
        grown, self._index_grown = self._index_grown, asyncio.Event()
        grown.set()

    async def _on_thread(self, work: Callable[..., T], *given: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    # On the threads.

    def _read(self, path: TilePath) -> bytes:
        """Return a tile out of its form in the published tree: no other width is certain to be stored."""
        size = self._driver.published.size
        stored = bundle_at(path.index, size) if path.level is None else tile_at(path.level, path.index, size)
        data = self._store.read(stored)
        return data if stored == path else cut(stored, data, path.width)

    def _bundle(self, index: int) -> list[bytes]:
        return decode_bundle(self._store.read(bundle_at(index, self._driver.published.size)))

    def _pick(self, indices: Iterable[int]) -> list[Leaf]:
        picked: list[Leaf] = []
        bundle, bundle_index, total = list[bytes](), -1, 0
        for index in indices:
            if index // TILE_WIDTH != bundle_index:
                bundle_index = index // TILE_WIDTH
                bundle = self._bundle(bundle_index)
            data = bundle[index % TILE_WIDTH]
            total += len(data)
            if picked and total > ANSWER_BYTES_MAX:
                break
            picked.append(Leaf(index, data))
        return picked

    def _matching(self, wanted: EntryFilter, leaves: Iterable[Leaf]) -> list[Leaf]:
        """Return those with an operation that is wanted, each with which ones those are."""
        rows = [(leaf, self._row_of(leaf.data)) for leaf in leaves]
        return [replace(leaf, positions=wanted.positions(row)) for leaf, row in rows if wanted.matches(row)]

    def _prove(self, runs: list[Run], size: int) -> list[bytes]:
        tiles = {path: self._read(path) for path in tiles_of(runs, size)}
        return hash_runs(runs, size, tiles.__getitem__)

    def _rows(self, begin: int, end: int) -> tuple[Sequence[IndexRow], bytes]:
        """Return rows of leaves from `begin` on, at least one, and the hash of the last of them."""
        leaves: list[bytes] = []
        skipped, total = begin % TILE_WIDTH, 0
        for at in range(begin // TILE_WIDTH, -(-end // TILE_WIDTH)):
            bundle = self._bundle(at)
            leaves += bundle
            total += sum(map(len, bundle))
            if total > _INDEX_BYTES:
                break
        leaves = leaves[skipped : skipped + end - begin]
        return [self._row_of(leaf) for leaf in leaves], leaf_hash(leaves[-1])
