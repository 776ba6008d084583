"""The index in a SQLite file: derived from the log, and thrown away whenever it does not fit to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from services.audit.core.query import EntryFilter, IndexRow, is_prefix, prefix_end
from services.audit.store import Found, IndexState
from services.audit.stores import names
from services.common.core.errors import Reason, ServiceError
from services.common.sqlite import Database, open_database

# A row is found by leaf_index, or by one of the texts; each of these indexes has the leaf index as its last
# column by itself (it is the rowid), so that answers come out of it in log order without sorting.
#
# Of an entry with a group the subject is what the subjects of its operations begin with, and it has no
# collaboration or cause here: `names` leads to its operations.
_ENTRIES = """
    CREATE TABLE entries (
        leaf_index INTEGER PRIMARY KEY,
        event_time_ms INTEGER NOT NULL,
        service TEXT NOT NULL,
        actor TEXT NOT NULL,
        operation TEXT NOT NULL,
        subject TEXT NOT NULL,
        outcome INTEGER NOT NULL,
        collaboration_id TEXT NOT NULL,
        cause_id TEXT NOT NULL,
        grouped INTEGER NOT NULL
    );
    CREATE INDEX by_actor ON entries (actor);
    CREATE INDEX by_operation ON entries (operation);
    CREATE INDEX by_subject ON entries (subject) WHERE grouped = 0;
    CREATE INDEX by_beginning ON entries (subject) WHERE grouped = 1;
    CREATE INDEX by_collaboration ON entries (collaboration_id) WHERE collaboration_id <> '';
    CREATE INDEX by_cause ON entries (cause_id) WHERE cause_id <> '';
    CREATE TABLE state (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        log TEXT NOT NULL,
        size INTEGER NOT NULL,
        last_hash BLOB NOT NULL
    );
"""
# What an index of the first version had; all of it is in the log, so it is made again.
_FIRST = "CREATE TABLE entries (leaf_index INTEGER PRIMARY KEY); CREATE TABLE state (size INTEGER);"
_MIGRATIONS = (_FIRST, "DROP TABLE entries; DROP TABLE state;" + _ENTRIES + names.SCHEMA)
_INSERT = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FILES = ("", "-wal", "-shm")
# Its texts are hashes as often as not, so that every row goes to five places: of 2 MiB of pages most would be
# read again and again, and moved out of the WAL thousands of times.
_CACHE_BYTES = 64 * 1024 * 1024
_CHECKPOINT_PAGES = 8_000
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
            connection.executemany(_INSERT, (_values(at, row) for at, row in enumerate(rows, first)))
            grouped = ((at, row.names()) for at, row in enumerate(rows, first) if row.group is not None)
            names.add(connection, grouped, first)
            connection.execute(
                "INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?)", (state.log, state.size, state.last_hash)
            )

        await self._database.write(work)

    async def clear(self) -> None:
        """See `EntryIndex.clear`."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM entries")
            names.clear(connection)
            connection.execute("DELETE FROM state")

        await self._database.write(work)

    async def find(self, wanted: EntryFilter, begin: int, end: int, limit: int) -> Found:
        """See `EntryIndex.find`."""

        def work(connection: sqlite3.Connection) -> Found:
            if not wanted.tells_operations_apart:
                return _select(connection, _shared_search(wanted), begin, end, limit)
            alone = _select(connection, _alone_search(wanted), begin, end, limit)
            together = _find_grouped(connection, wanted, begin, end, limit)
            reached = min(alone.end, together.end)
            indices = sorted(at for at in alone.indices + together.indices if at < reached)
            if len(indices) > limit:
                del indices[limit:]
                reached = indices[-1] + 1
            return Found(tuple(indices), reached)

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


def _values(at: int, row: IndexRow) -> tuple[str | int, ...]:
    if row.group is None:
        return (at, *row[:8], 0)
    return (at, *row[:6], "", "", 1)


class _Search:
    """Conditions on rows. Put together of fixed texts only; what the caller wrote travels as values."""

    def __init__(self, table: str = "entries") -> None:
        self.table = table
        # Whether an index leads to what is wanted.
        self.is_led = False
        self.clauses: list[str] = []
        self.values: list[str | int] = []

    def add(self, clause: str, *values: str | int, leads: bool = False) -> None:
        self.clauses.append(clause)
        self.values += values
        self.is_led = self.is_led or leads


def _select(connection: sqlite3.Connection, search: _Search, begin: int, end: int, limit: int) -> Found:
    if not search.is_led:
        end = min(end, begin + SCAN_ROWS_MAX)
    conditions = " AND ".join(["leaf_index >= ?", "leaf_index < ?", *search.clauses])
    statement = f"SELECT leaf_index FROM {search.table} WHERE {conditions} ORDER BY leaf_index LIMIT ?"  # noqa: S608
    rows = connection.execute(statement, (begin, end, *search.values, limit)).fetchall()
    indices = tuple(index for (index,) in rows)
    return Found(indices, indices[-1] + 1 if len(indices) == limit else end)


def _find_grouped(
    connection: sqlite3.Connection, wanted: EntryFilter, begin: int, end: int, limit: int
) -> Found:
    """Return entries with a group that may have a wanted operation."""
    name = wanted.name_wanted()
    if not name:
        return _select(connection, _beginning_search(wanted), begin, end, limit)
    leaves = names.find(connection, name, begin, end, limit)
    if len(leaves) == limit:
        end = leaves[-1] + 1
    search = _shared_search(wanted)
    if wanted.subject and not is_prefix(wanted.subject):
        search.add("substr(?, 1, length(subject)) = subject", wanted.subject)
    search.add(f"leaf_index IN ({', '.join('?' * len(leaves))})", *leaves, leads=True)
    return _select(connection, search, begin, end, limit)


def _shared_search(wanted: EntryFilter, table: str = "entries") -> _Search:
    """Return the conditions on what holds for a whole entry."""
    search = _Search(table)
    for column in ("actor", "service"):
        if text := getattr(wanted, column):
            search.add(f"{column} = ?", text, leads=column == "actor")
    _add_pattern(search, "operation", wanted.operation, prefix_leads=False)
    if wanted.outcomes:
        search.add(f"outcome IN ({', '.join('?' * len(wanted.outcomes))})", *sorted(wanted.outcomes))
    if wanted.start_time is not None:
        search.add("event_time_ms >= ?", wanted.start_time)
    if wanted.end_time is not None:
        search.add("event_time_ms < ?", wanted.end_time)
    return search


def _alone_search(wanted: EntryFilter) -> _Search:
    """Return the conditions on an entry without a group."""
    search = _shared_search(wanted)
    search.add("grouped = 0")
    for column in ("collaboration_id", "cause_id"):
        if text := getattr(wanted, column):
            # The second condition repeats the partial indexes' own, which SQLite does not conclude itself.
            search.add(f"{column} = ? AND {column} <> ''", text, leads=True)
    if wanted.subject and not search.is_led:
        # Else SQLite would rather walk through the log in order than sort what it finds.
        search.table = "entries INDEXED BY by_subject"
    _add_pattern(search, "subject", wanted.subject, prefix_leads=True)
    return search


def _beginning_search(wanted: EntryFilter) -> _Search:
    """Return the conditions on an entry with a group of which subjects may begin with `wanted.subject`."""
    search = _shared_search(wanted, "entries INDEXED BY by_beginning")
    search.add("grouped = 1")
    prefix = wanted.subject[:-1]
    ranges, values = _range("subject", prefix)
    # Groups whose every subject begins so, and those of which some may go on so.
    shorter = [prefix[:length] for length in range(len(prefix))]
    either = f"({ranges} OR subject IN ({', '.join('?' * len(shorter))}))"
    search.add(either, *values, *shorter, leads=True)
    return search


def _add_pattern(search: _Search, column: str, pattern: str, *, prefix_leads: bool) -> None:
    if is_prefix(pattern):
        clause, values = _range(column, pattern[:-1])
        search.add(clause, *values, leads=prefix_leads)
    elif pattern:
        search.add(f"{column} = ?", pattern, leads=True)


def _range(column: str, prefix: str) -> tuple[str, list[str]]:
    """Return `>=` the prefix and `<` what follows all that begin with it: a range of the column's index."""
    end = prefix_end(prefix)
    if end is None:
        return f"{column} >= ?", [prefix]
    return f"({column} >= ? AND {column} < ?)", [prefix, end]
