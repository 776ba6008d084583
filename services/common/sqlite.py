"""SQLite as the services use it: durable when it says so, one writer thread, versioned schema."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.common.core.errors import Reason, ServiceError
from services.common.worker import Worker

T = TypeVar("T")
Told = TypeVar("Told")

# How long a lock of another process (a backup, a shell) is waited for.
BUSY_MS_MAX = 5_000
# WAL pages after which SQLite moves them into the file; 4 MiB at 4 KiB a page.
CHECKPOINT_PAGES = 1_000
# SQLite's own default.
CACHE_BYTES = 2_000 * 1024
# What says something about the file, the disk or the machine and nothing about the statement.
STORE_FAILURES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)


class Database:
    """One database file.

    Consistency: `write` calls are serial, each in one transaction; `read` sees the last committed state.
    Durability:  when `write` returns, its change survives power loss (WAL, synchronous=FULL). Of a *derived*
                 database the last changes may be missing after one, but no part of one.
    Errors:      DISK_FULL is definite, nothing was kept. STORE_UNAVAILABLE is indefinite. What `work` raises
                 itself rolls the transaction back and comes out unchanged.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, pragmas: Sequence[str]) -> None:
        self.path = path
        self._pragmas = pragmas
        # Owned by the writer thread.
        self._connection: sqlite3.Connection | None = connection
        self._writer = Worker(f"sqlite-write-{path.name}")
        # Owned by the reader thread; opened by the first `read`.
        self._reader_connection: sqlite3.Connection | None = None
        self._reader = ThreadPoolExecutor(1, f"sqlite-read-{path.name}")

    def write(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Run `work` on the writer thread inside one transaction; the future ends when it is durable.

        A cancelled caller does not stop the work: whether it is committed is then unknown to it.
        """
        return self._writer.run(partial(self._write, work))

    def write_then(
        self, work: Callable[[sqlite3.Connection], T], then: Callable[[T], Told]
    ) -> asyncio.Future[Told]:
        """As `write`; once it is durable, and before anybody hears of it, `then` runs on the loop."""
        return self._writer.run_then(partial(self._write, work), then)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the reader thread in one read transaction, that is on a snapshot."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._read, work)

    async def checkpoint(self) -> None:
        """Move what is in the WAL into the database file on the reader thread, while writes go on.

        For files that grow fast: what it has moved, the automatic checkpoint inside some `write` need not.
        """
        await asyncio.get_running_loop().run_in_executor(self._reader, self._checkpoint)

    async def close(self) -> None:
        """Finish what was submitted, then close; safe to call twice."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._close)

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._healthy()
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                # Commit point: when COMMIT returns the WAL is synced.
                connection.execute("COMMIT")
            except BaseException:
                # Whatever it was, half a transaction must not become part of the next one.
                # After some errors SQLite has rolled back by itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            raise self._mapped(error) from error
        return result

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._reading()
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            raise _mapped(error, self.path) from error

    def _checkpoint(self) -> None:
        try:
            self._reading().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.DatabaseError as error:
            raise _mapped(error, self.path) from error

    def _reading(self) -> sqlite3.Connection:
        if self._reader_connection is None:
            self._reader_connection = _connect(self.path, "PRAGMA query_only = ON")
        return self._reader_connection

    def _healthy(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _connect(self.path, *self._pragmas)
            # After a failed sync the kernel may hold WAL pages that it believes are on disk and that are not
            # ("fsyncgate"): a later commit behind them would be lost with them. Moving all of the WAL into
            # the database file writes and syncs their content again.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return self._connection

    def _mapped(self, error: sqlite3.DatabaseError) -> ServiceError:
        mapped = _mapped(error, self.path)
        if mapped.reason is Reason.STORE_UNAVAILABLE and self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
        return mapped

    def _close(self) -> None:
        for end, name in ((self._reader.shutdown, "_reader_connection"), (self._writer.close, "_connection")):
            end()
            # The thread has ended, so that nobody else uses its connection any more.
            connection: sqlite3.Connection | None = getattr(self, name)
            setattr(self, name, None)
            if connection is not None:
                connection.close()


def open_database(
    path: Path,
    migrations: Sequence[str],
    *,
    checkpoint_pages: int = CHECKPOINT_PAGES,
    erase_deleted: bool = True,
    derived: bool = False,
    cache_bytes: int = CACHE_BYTES,
) -> Database:
    """Open or create the database at `path` and bring its schema up to date; call it before the loop is busy.

    `migrations[n]` is the script that leads from schema version n to n + 1; each runs once, in a transaction
    of its own together with the version (PRAGMA user_version). Raises ServiceError (STORE_UNAVAILABLE) when
    the file is no database of ours, damaged, or written by a newer version. Without `erase_deleted` what is
    deleted stays on the disk until its place is used again: a third of the writes of a file whose rows come
    and go. A `derived` file can be made again from what is durable elsewhere: its commits are not synced.
    `cache_bytes` is the memory for pages, per connection.
    """
    pragmas = (
        f"PRAGMA wal_autocheckpoint = {checkpoint_pages}",
        f"PRAGMA secure_delete = {'ON' if erase_deleted else 'OFF'}",
        # FULL syncs the WAL at each commit; NORMAL loses commits with the power, but leaves the file whole.
        f"PRAGMA synchronous = {'NORMAL' if derived else 'FULL'}",
        f"PRAGMA cache_size = -{cache_bytes // 1024}",
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Database(path, _open(path, migrations, pragmas), pragmas)


def _open(path: Path, migrations: Sequence[str], pragmas: Sequence[str]) -> sqlite3.Connection:
    try:
        connection = _connect(path, *pragmas)
    except sqlite3.DatabaseError as error:
        raise _mapped(error, path) from error
    try:
        path.chmod(0o600)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(migrations):
            raise ServiceError(
                Reason.STORE_UNAVAILABLE,
                f"{path} has schema {version}, this program knows {len(migrations)}: use the newer one",
            )
        for number in range(version, len(migrations)):
            # One transaction: a crash leaves the old version with the old schema.
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{migrations[number]};\nPRAGMA user_version = {number + 1};\nCOMMIT;"
            )
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _mapped(error, path) from error
    except BaseException:
        # Whatever it was: a connection that nobody gets must not keep the file open.
        connection.close()
        raise
    return connection


def _connect(path: Path, *pragmas: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        # Each connection stays on its executor's only thread until that has ended; then `close` takes it.
        path,
        timeout=BUSY_MS_MAX / 1000,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        # FULL syncs the WAL at each commit; NORMAL would lose acknowledged commits with the power.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        for pragma in pragmas:
            connection.execute(pragma).fetchall()
    except BaseException:
        # Whatever it was: a connection that nobody gets must not keep the file open.
        connection.close()
        raise
    return connection


def _mapped(error: sqlite3.DatabaseError, path: Path) -> ServiceError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return ServiceError(
            Reason.DISK_FULL, f"no room left for {path}: free some; nothing was kept", retry_after_ms=5_000
        )
    if code not in STORE_FAILURES:
        # A wrong statement or a broken constraint is a matter between the caller and its schema.
        raise error
    return ServiceError(
        Reason.STORE_UNAVAILABLE,
        f"{path}: {error}; whether the change is there is unknown",
        retry_after_ms=1_000,
    )
