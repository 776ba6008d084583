"""The reference implementation of both protocols: everything in this process, gone with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.audit.core.checkpoint import TreeHead, open_own, sign
from services.audit.core.journal import Segment
from services.audit.core.merkle import EMPTY_ROOT
from services.audit.core.model import Batch, Producer
from services.audit.core.query import EntryFilter, IndexRow
from services.audit.core.recovery import recover
from services.audit.core.tiles import TilePath, cut
from services.audit.core.tree import Growth
from services.audit.store import Found, IndexState, LogUnusableError, Opened
from services.audit.stores.key import Ed25519Signer
from services.common.core.errors import Reason, ServiceError


class MemoryLog:
    """A `LogStore` that survives `close`, as a disk survives a process."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._signer = Ed25519Signer(Ed25519PrivateKey.generate())
        self._checkpoint = sign(origin, TreeHead(0, EMPTY_ROOT), self._signer)
        self._tiles: dict[TilePath, bytes] = {}
        self._segment = Segment(0, {}, (), torn=False)
        self._open = False

    def open(self, *, first_start: bool) -> Opened:
        """See `LogStore.open`; there always is a log."""
        del first_start
        if self._open:
            raise LogUnusableError("the log is open already")
        head = open_own(self._checkpoint, self._origin, self._signer)
        recovered = recover(self._checkpoint, head, [("memory", self._segment)], self._tiles.__getitem__)
        self._open = True
        return Opened(self._signer, recovered)

    def commit(self, batch: Batch, standing: Mapping[Producer, int]) -> None:
        """See `LogStore.commit`."""
        del standing
        segment = self._segment
        self._segment = Segment(segment.first_index, segment.cursors, (*segment.batches, batch), torn=False)

    def integrate(self, growth: Growth, checkpoint: bytes) -> None:
        """See `LogStore.integrate`."""
        self._tiles.update(growth.files)
        self._checkpoint = checkpoint

    def release(self, size: int) -> None:
        """See `LogStore.release`."""
        cursors, kept = dict(self._segment.cursors), list(self._segment.batches)
        while kept and kept[0].end_index <= size:
            for producer, sequence in kept.pop(0).cursors.items():
                cursors.pop(producer, None)
                cursors[producer] = sequence
        first_index = kept[0].first_index if kept else self._segment.end_index
        self._segment = Segment(first_index, cursors, tuple(kept), torn=False)

    def read(self, path: TilePath) -> bytes:
        """See `LogStore.read`."""
        if path in self._tiles:
            return self._tiles[path]
        if path.full in self._tiles:
            return cut(path.full, self._tiles[path.full], path.width)
        raise ServiceError(Reason.ENTRY_NOT_FOUND, f"{path} is not in the log")

    def close(self) -> None:
        """See `LogStore.close`."""
        self._open = False


class MemoryIndex:
    """An `EntryIndex` that looks at every row."""

    def __init__(self) -> None:
        self._rows: list[IndexRow] = []
        self._state = IndexState()

    async def state(self) -> IndexState:
        """See `EntryIndex.state`."""
        return self._state

    async def add(self, rows: Sequence[IndexRow], state: IndexState) -> None:
        """See `EntryIndex.add`."""
        self._rows += rows
        self._state = state

    async def clear(self) -> None:
        """See `EntryIndex.clear`."""
        self._rows, self._state = [], IndexState()

    async def find(self, wanted: EntryFilter, begin: int, end: int, limit: int) -> Found:
        """See `EntryIndex.find`."""
        found: list[int] = []
        for index in range(begin, min(end, len(self._rows))):
            if len(found) == limit:
                return Found(tuple(found), index)
            if wanted.matches(self._rows[index]):
                found.append(index)
        return Found(tuple(found), end)

    async def close(self) -> None:
        """See `EntryIndex.close`."""
