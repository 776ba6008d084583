"""The index in a SQLite file: derived from the log, and thrown away whenever it does not fit to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from services.audit.core.query import EntryFilter, IndexRow, is_prefix, prefix_end
from services.audit.store import Found, IndexState
from services.common.core.errors import Reason, ServiceError
from services.common.sqlite import Database, open_database

# A row is found by leaf_index, or by one of the texts; each of these indexes has the leaf index as its last
# column by itself (it is the rowid), so that answers come out of it in log order without sorting.
_MIGRATIONS = (
    """
    CREATE TABLE entries (
        leaf_index INTEGER PRIMARY KEY,
        event_time_ms INTEGER NOT NULL,
        service TEXT NOT NULL,
        actor TEXT NOT NULL,
        operation TEXT NOT NULL,
        subject TEXT NOT NULL,
        outcome INTEGER NOT NULL,
        collaboration_id TEXT NOT NULL,
        cause_id TEXT NOT NULL
    );
    CREATE INDEX by_actor ON entries (actor);
    CREATE INDEX by_operation ON entries (operation);
    CREATE INDEX by_subject ON entries (subject);
    CREATE INDEX by_collaboration ON entries (collaboration_id) WHERE collaboration_id <> '';
    CREATE INDEX by_cause ON entries (cause_id) WHERE cause_id <> '';
    CREATE TABLE state (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        log TEXT NOT NULL,
        size INTEGER NOT NULL,
        last_hash BLOB NOT NULL
    );
    """,
)
_INSERT = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FILES = ("", "-wal", "-shm")
# Its texts are hashes as often as not, so that every row goes to five places: of 2 MiB of pages most would be
# read again and again, and moved out of the WAL thousands of times.
_CACHE_BYTES = 64 * 1024 * 1024
_CHECKPOINT_PAGES = 8_000
# Columns whose index leads to the entries of one text.
_EXACT = ("actor", "collaboration_id", "cause_id")
# A filter that no index helps with looks at this many entries for one page; about 0.1 s.
SCAN_ROWS_MAX = 500_000


class SqliteIndex:
    """An `EntryIndex` in one database file."""

    def __init__(self, path: Path) -> None:
        self._database = _open(path)

    def __repr__(self) -> str:
        return f"SqliteIndex({self._database.path})"

    async def state(self) -> IndexState:
        """See `EntryIndex.state`."""
        return await self._database.read(_state)

    async def add(self, rows: Sequence[IndexRow], state: IndexState) -> None:
        """See `EntryIndex.add`."""
        first = state.size - len(rows)

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(_INSERT, ((at, *row) for at, row in enumerate(rows, first)))
            connection.execute(
                "INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?)", (state.log, state.size, state.last_hash)
            )

        await self._database.write(work)

    async def clear(self) -> None:
        """See `EntryIndex.clear`."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM entries")
            connection.execute("DELETE FROM state")

        await self._database.write(work)

    async def find(self, wanted: EntryFilter, begin: int, end: int, limit: int) -> Found:
        """See `EntryIndex.find`."""
        clauses, values = _where(wanted)
        table = "entries"
        if not any(getattr(wanted, column) for column in _EXACT) and not _is_exact(wanted.operation):
            if wanted.subject:
                # Else SQLite would rather walk through the log in order than sort what it finds.
                table = "entries INDEXED BY by_subject"
            else:
                end = min(end, begin + SCAN_ROWS_MAX)
        clauses = ["leaf_index >= ?", "leaf_index < ?", *clauses]
        # Put together of fixed texts only; what the caller wrote travels as values.
        statement = (
            f"SELECT leaf_index FROM {table} WHERE {' AND '.join(clauses)} ORDER BY leaf_index LIMIT ?"  # noqa: S608
        )

        def work(connection: sqlite3.Connection) -> Found:
            rows = connection.execute(statement, (begin, end, *values, limit)).fetchall()
            indices = tuple(index for (index,) in rows)
            return Found(indices, indices[-1] + 1 if len(indices) == limit else end)

        return await self._database.read(work)

    async def close(self) -> None:
        """See `EntryIndex.close`."""
        await self._database.close()


def _open(path: Path) -> Database:
    try:
        return _open_file(path)
    except ServiceError as error:
        if error.reason is not Reason.STORE_UNAVAILABLE:
            raise
    # Damaged, or of a newer version: the log has all of it, so it is made again instead of repaired.
    for suffix in _FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return _open_file(path)


def _open_file(path: Path) -> Database:
    return open_database(
        path, _MIGRATIONS, checkpoint_pages=_CHECKPOINT_PAGES, derived=True, cache_bytes=_CACHE_BYTES
    )


def _state(connection: sqlite3.Connection) -> IndexState:
    row = connection.execute("SELECT log, size, last_hash FROM state").fetchone()
    return IndexState(*row) if row else IndexState()


def _is_exact(text: str) -> bool:
    return bool(text) and not is_prefix(text)


def _where(wanted: EntryFilter) -> tuple[list[str], list[str | int]]:
    clauses: list[str] = []
    values: list[str | int] = []

    def add(clause: str, *given: str | int) -> None:
        clauses.append(clause)
        values.extend(given)

    for column in ("actor", "operation", "subject", "service", "collaboration_id", "cause_id"):
        text: str = getattr(wanted, column)
        if column in ("operation", "subject") and is_prefix(text):
            # `>=` the prefix and `<` what follows all that begin with it: a range of the column's index.
            add(f"{column} >= ?", text[:-1])
            if (end := prefix_end(text[:-1])) is not None:
                add(f"{column} < ?", end)
        elif text:
            # The second condition repeats the partial indexes' own, which SQLite does not conclude itself.
            add(f"{column} = ? AND {column} <> ''", text)
    if wanted.outcomes:
        add(f"outcome IN ({', '.join('?' * len(wanted.outcomes))})", *sorted(wanted.outcomes))
    if wanted.start_time is not None:
        add("event_time_ms >= ?", wanted.start_time)
    if wanted.end_time is not None:
        add("event_time_ms < ?", wanted.end_time)
    return clauses, values
