"""SQLite on a real file: durability, schema, errors, crash and restart."""

from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from services.common import sqlite
from services.common.core.errors import Reason, ServiceError
from services.common.sqlite import Database, open_database

SCHEMA = ("CREATE TABLE facts (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT",)


def insert(text: str) -> Callable[[sqlite3.Connection], int | None]:
    return lambda connection: connection.execute("INSERT INTO facts (text) VALUES (?)", (text,)).lastrowid


def texts(connection: sqlite3.Connection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM facts ORDER BY id")]


Open = Callable[..., Awaitable[Database]]


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[Database] = []

    async def make(migrations: tuple[str, ...] = SCHEMA) -> Database:
        opened.append(open_database(tmp_path / "data" / "facts.db", migrations))
        return opened[-1]

    yield make
    for one in opened:
        await one.close()


async def test_what_is_written_is_read_and_survives_a_restart(database: Open) -> None:
    first = await database()
    assert await first.write(insert("a")) == 1
    assert await first.read(texts) == ["a"]
    await first.close()
    await first.close()
    again = await database()
    assert await again.read(texts) == ["a"]
    assert stat.S_IMODE(again.path.stat().st_mode) == 0o600
    settings = await again.write(
        lambda connection: [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "user_version")
        ]
    )
    assert settings == ["wal", 2, 1, 1]


async def test_a_derived_file_is_whole_and_not_synced_at_each_commit(tmp_path: Path) -> None:
    database = open_database(tmp_path / "index.db", SCHEMA, derived=True, cache_bytes=8 * 2**20)
    settings = await database.write(
        lambda connection: [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "cache_size")
        ]
    )
    assert settings == ["wal", 1, -8 * 2**10]
    await database.close()


async def test_a_failed_work_rolls_back_and_its_error_comes_out(database: Open) -> None:
    one = await database()

    def half(connection: sqlite3.Connection) -> None:
        insert("half")(connection)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        await one.write(half)
    await one.write(insert("a"))
    # A broken constraint belongs to the caller, not to the store.
    with pytest.raises(sqlite3.IntegrityError):
        await one.write(insert("a"))
    with pytest.raises(sqlite3.OperationalError, match="syntax"):
        await one.write(lambda connection: connection.execute("NONSENSE"))
    assert await one.read(texts) == ["a"]


async def test_readers_can_not_write(database: Open) -> None:
    one = await database()
    with pytest.raises(ServiceError) as raised:
        await one.read(insert("a"))
    assert raised.value.reason is Reason.STORE_UNAVAILABLE
    assert await one.read(texts) == []


async def test_migrations_run_once_each_and_in_order(database: Open) -> None:
    one = await database()
    await one.write(insert("kept"))
    await one.close()
    more = (*SCHEMA, "ALTER TABLE facts ADD COLUMN note TEXT; UPDATE facts SET note = 'old'")
    for _ in range(2):
        one = await database(more)
        row = await one.read(lambda connection: connection.execute("SELECT text, note FROM facts").fetchone())
        assert row == ("kept", "old")
        await one.close()
    with pytest.raises(ServiceError, match="schema 2, this program knows 1"):
        await database()


async def test_a_failed_migration_changes_nothing(database: Open) -> None:
    await (await database()).close()
    with pytest.raises(sqlite3.OperationalError):
        await database((*SCHEMA, "CREATE TABLE extra (id INTEGER); NONSENSE"))
    one = await database()
    names = await one.read(lambda connection: connection.execute("SELECT name FROM sqlite_master").fetchall())
    assert ("extra",) not in names


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "facts.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(ServiceError, match=r"facts\.db") as raised:
        open_database(path, SCHEMA)
    assert raised.value.reason is Reason.STORE_UNAVAILABLE


async def test_a_full_disk_is_definite_and_keeps_nothing(database: Open) -> None:
    one = await database()

    def limit(pages: int) -> Callable[[sqlite3.Connection], object]:
        return lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    await one.write(limit(8))
    with pytest.raises(ServiceError) as raised:
        await one.write(insert("x" * 100_000))
    assert raised.value.reason is Reason.DISK_FULL
    assert raised.value.row.definite
    assert await one.read(texts) == []
    await one.write(limit(1_000_000))
    await one.write(insert("room again"))
    assert await one.read(texts) == ["room again"]


async def test_after_an_io_error_the_store_comes_back(
    database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is opened anew and the WAL is moved before the next commit (see `_healthy`)."""
    one = await database()
    await one.write(insert("before"))
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR | (4 << 8)

    def broken(connection: sqlite3.Connection) -> None:
        insert("unknown")(connection)
        raise error

    with pytest.raises(ServiceError) as raised:
        await one.write(broken)
    assert raised.value.reason is Reason.STORE_UNAVAILABLE
    assert not raised.value.row.definite
    opened = 0
    real = sqlite._connect

    def counted(path: Path, *pragmas: str) -> sqlite3.Connection:
        nonlocal opened
        opened += 1
        return real(path, *pragmas)

    monkeypatch.setattr(sqlite, "_connect", counted)
    await one.write(insert("after"))
    await one.write(insert("later"))
    assert opened == 1
    assert await one.read(texts) == ["before", "after", "later"]


async def test_a_lock_of_another_process_is_an_indefinite_error(
    database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_MS_MAX", 50)
    one = await database()
    other = sqlite3.connect(one.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(ServiceError, match="locked") as raised:
            await one.write(insert("a"))
        assert raised.value.reason is Reason.STORE_UNAVAILABLE
    finally:
        other.close()
    await one.write(insert("a"))


_VICTIM = """
import asyncio, sys
from pathlib import Path
from services.common.sqlite import open_database

async def main():
    path, schema, turn = sys.argv[1:]
    one = open_database(Path(path), [schema])
    for number in range(10**9):
        text = f"{turn}.{number}"
        await one.write(lambda c: c.execute("INSERT INTO facts (text) VALUES (?)", (text,)))
        print(text, flush=True)

asyncio.run(main())
"""


async def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "facts.db"
    acknowledged: list[str] = []
    for turn in range(3):
        victim = subprocess.Popen(
            [sys.executable, "-c", _VICTIM, str(path), SCHEMA[0], str(turn)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert victim.stdout is not None
        acknowledged += [victim.stdout.readline().strip() for _ in range(50)]
        victim.send_signal(signal.SIGKILL)
        victim.stdout.close()
        victim.wait()
    one = open_database(path, SCHEMA)
    assert set(acknowledged) <= set(await one.read(texts))
    await one.close()
