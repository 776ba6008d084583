"""What the log needs of a disk and of an index, as protocols; their docstrings are the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.audit.core.checkpoint import Signer
from services.audit.core.model import Batch, Producer, Recovered
from services.audit.core.query import EntryFilter, IndexRow
from services.audit.core.tiles import TilePath
from services.audit.core.tree import Growth


class LogUnusableError(Exception):
    """There is no log to continue and none may be made, or another process has it; the message says why."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open log."""

    # The log's private key.
    signer: Signer
    recovered: Recovered


class LogStore(Protocol):
    """The log on its disk.

    Consistency: one process at a time has the log open.
    Threads:     every call blocks. `commit` and `release` are made by one thread, `integrate` by another,
                 `read` by any.
    Durability:  when `commit` returns, the batch survives power loss; when `integrate` returns, so do all
                 files of the growth and the checkpoint, and at no moment was a checkpoint visible whose tiles
                 were not durable.
    Failure:     a `commit` that raised counts as not done: the next one starts at the same index, and what
                 may be left of the first is never read again once the next succeeded. DISK_FULL is definite:
                 nothing was kept. STORE_UNAVAILABLE is indefinite until the next `commit` or `open`.
                 An `integrate` that raised may be repeated, with the same leaves or more.
    """

    def open(self, *, first_start: bool) -> Opened:
        """Take the log and return it as it was left, or make a new one where there never was any.

        `first_start` allows a new log although a key is there. Raises `LogUnusableError`, or
        `ContradictionError` when what is there is not one whole log.
        """
        ...

    def commit(self, batch: Batch, standing: Mapping[Producer, int]) -> None:
        """Make `batch` durable; `standing` is where every producer stood before it. Raises ServiceError."""
        ...

    def integrate(self, growth: Growth, checkpoint: bytes) -> None:
        """Make the tiles of `growth` durable, then `checkpoint`. Raises ServiceError."""
        ...

    def release(self, size: int) -> None:
        """Forget pending leaves before index `size`, which a checkpoint covers. Raises ServiceError."""
        ...

    def read(self, path: TilePath) -> bytes:
        """Return the content of a tile or bundle that was integrated, also of a width that it once had.

        Raises ServiceError: ENTRY_NOT_FOUND, or STORE_UNAVAILABLE.
        """
        ...

    def close(self) -> None:
        """Let others open the log; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class IndexState:
    """How far an index is, and of which log."""

    # The verifier key of the log; empty when nothing was ever indexed.
    log: str = ""
    # Leaves 0 to `size` - 1 are in the index.
    size: int = 0
    # The leaf hash of the last of them; empty when there is none.
    last_hash: bytes = b""


@dataclass(frozen=True, slots=True)
class Found:
    """An answer of the index: no others before `end` match.

    These do, but for entries with a group: whether one of its operations is wanted, the entry itself tells.
    """

    indices: tuple[int, ...]
    # The first leaf index that was not looked at.
    end: int


class EntryIndex(Protocol):
    """Finds leaves by what their entries say. Derived: all of it can be made again from the log.

    Consistency: `add` is atomic; `find` sees whole additions only.
    Durability:  as far as `state` says, also after power loss.
    Errors:      ServiceError (DISK_FULL, STORE_UNAVAILABLE).
    """

    async def state(self) -> IndexState:
        """Return how far the index is."""
        ...

    async def add(self, rows: Sequence[IndexRow], state: IndexState) -> None:
        """Add the rows of the next leaves; afterwards the index is at `state`."""
        ...

    async def clear(self) -> None:
        """Forget everything."""
        ...

    async def find(self, wanted: EntryFilter, begin: int, end: int, limit: int) -> Found:
        """Return leaf indices that may match from `begin` on, at most `limit`, none from `end` on.

        May stop earlier than that when a search would take long; `Found.end` says how far it came.
        """
        ...

    async def close(self) -> None:
        """Release the file; safe to call twice."""
        ...
