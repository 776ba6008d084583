"""The real stores under the simulated plant, and what the broker's death may leave of their files.

A death takes the process and, as with the power, whatever had not been synced: of the bytes that the
interrupted work wrote, any sectors may be there and the others not.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from redis.asyncio import Redis

from services.broker.core.model import Batch, Recovered
from services.broker.store import MailboxStore, Retention
from services.broker.stores import ledger
from services.broker.stores.redis import RedisStore
from services.broker.stores.sqlite import SqliteStore
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant
from tests.harness.redis import RedisServer, running_redis

T = TypeVar("T")
# The unit in which a disk writes.
SECTOR = 512
MEMORY_FOLDER = Path("/dev/shm")


async def _commit(store: MailboxStore, batch: Batch) -> None:
    """Commit on the loop, which is where a store makes its future."""
    await store.commit(batch)


class SqliteDisk:
    """The SQLite store in a file; each death goes on with a copy of what it left."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path, seed: int) -> None:
        self._loop, self._folder = loop, folder
        self._random = random.Random(seed)
        self._number = 0
        self._store = SqliteStore.open(self._path)
        self.interrupted = 0

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._number}.db"

    def load_now(self, now: Instant) -> Recovered:
        return self._run(self._store.load(now))

    def commit_now(self, batch: Batch, now: Instant) -> None:
        self._run(_commit(self._store, batch))
        dice = self._random.random()
        if dice < 0.15:
            self._run(self._store.compact(now, Retention()))
        elif dice < 0.25:
            # From here on the WAL is written from its beginning, over what it had.
            self._run(self._store._database.checkpoint())

    def commit_full_now(self, batch: Batch) -> ServiceError | None:
        """Commit while the file may not grow."""
        database = self._store._database

        async def bound(pages: int) -> None:
            await database.write(lambda link: link.execute(f"PRAGMA max_page_count = {pages}").fetchall())

        self._run(bound(1))
        try:
            self._run(_commit(self._store, batch))
        except ServiceError as error:
            return error
        finally:
            self._run(bound(1_000_000))
        return None

    def lose_now(self, committing: Batch | None, now: Instant) -> bool:
        store = self._store
        before, content = self._files(), self._content()
        if committing is not None:
            self._run(_commit(store, committing))
        elif self._random.random() < 0.3:
            self._run(store.compact(now, Retention()))
        elif self._random.random() < 0.3:
            self._run(store._database.checkpoint())
        after, content_after = self._files(), self._content()
        self.interrupted += before != after
        self._run(store.close())
        self._number += 1
        for name, left in self._left(before, after).items():
            self._path.with_name(self._path.name + name).write_bytes(left)
        self._store = SqliteStore.open(self._path)
        found = self._content()
        assert found in (content, content_after), "a commit is there in part"
        return committing is not None and found == content_after

    def close(self) -> None:
        self._run(self._store.close())

    def _files(self) -> dict[str, bytes]:
        """Return the file and its WAL; the third file is of the processes and means nothing after them."""
        files = {name: self._path.with_name(self._path.name + name) for name in ("", "-wal")}
        return {name: path.read_bytes() if path.exists() else b"" for name, path in files.items()}

    def _left(self, before: dict[str, bytes], after: dict[str, bytes]) -> dict[str, bytes]:
        """Return what is left of the files when the work between two states of them was interrupted."""
        kind = self._random.choice(["nothing", "all", "beginning", "beginning", "sectors"])
        if kind == "nothing":
            return before
        if kind == "all":
            return after
        left = {}
        for name, new in after.items():
            old = before[name].ljust(len(new), b"\0")
            places = range(0, len(new), SECTOR)
            changed = [at for at in places if old[at : at + SECTOR] != new[at : at + SECTOR]]
            if not changed:
                left[name] = new
            elif kind == "beginning":
                at = self._random.randint(changed[0], min(changed[-1] + SECTOR, len(new)))
                left[name] = new[:at] + before[name][at:]
            else:
                left[name] = b"".join(self._random.choice((old, new))[at : at + SECTOR] for at in places)
        if before[""] != after[""]:
            # Work on the file itself is a checkpoint, and the WAL stays until the file was synced.
            left["-wal"] = before["-wal"]
        return left

    def _content(self) -> object:
        def read(link: sqlite3.Connection) -> object:
            names = [name for (name,) in link.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            return {name: link.execute(f"SELECT * FROM {name}").fetchall() for name in names}

        return self._run(self._store._database.read(read))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


class RedisDisk:
    """The Redis store on a real server, which may die as well, in the middle of writing its file."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, server: RedisServer, seed: int, *, server_dies: bool
    ) -> None:
        self._loop, self._server, self._server_dies = loop, server, server_dies
        self._random = random.Random(seed)
        self._ask("FLUSHALL")
        self._store = RedisStore(server.settings, 1)
        # A commit that is still on its way when its sender is given up, and whose it is.
        self._late: tuple[RedisStore, Batch] | None = None
        self.interrupted = 0

    def load_now(self, now: Instant) -> Recovered:
        recovered = self._run(self._store.load(now))
        if self._late is not None:
            (store, batch), self._late = self._late, None
            refusal = self._refusal(store, batch)
            assert refusal is not None
            assert refusal.reason is Reason.NOT_COORDINATOR
            self._run(store.close())
        return recovered

    def commit_now(self, batch: Batch, now: Instant) -> None:
        self._run(_commit(self._store, batch))
        if self._random.random() < 0.15:
            self._run(self._store.compact(now, Retention()))

    def commit_full_now(self, batch: Batch) -> ServiceError | None:
        """Commit while Redis takes no more memory."""
        self._ask("CONFIG", "SET", "maxmemory", "1")
        try:
            return self._refusal(self._store, batch)
        finally:
            self._ask("CONFIG", "SET", "maxmemory", "0")

    def lose_now(self, committing: Batch | None, now: Instant) -> bool:
        store, self._store = self._store, RedisStore(self._server.settings, 1)
        arrived = False
        if self._server_dies and self._random.random() < 0.5:
            arrived = self._lose_server(store, committing)
        elif committing is not None and self._random.random() < 0.5:
            self._run(_commit(store, committing))
            arrived = True
        elif committing is not None:
            self._late = store, committing
            return False
        elif self._random.random() < 0.3:
            self._run(store.compact(now, Retention()))
        self._run(store.close())
        return arrived

    def close(self) -> None:
        self._run(self._store.close())

    def _lose_server(self, store: RedisStore, committing: Batch | None) -> bool:
        """The server dies with the broker; the last commit is in its file wholly, in part or not at all."""
        size = self._file().stat().st_size
        if committing is not None:
            self._run(_commit(store, committing))
        self._server.kill()
        file = self._file()
        content = file.read_bytes()
        left = self._random.choice([size, len(content), self._random.randint(size, len(content))])
        file.write_bytes(content[:left])
        self.interrupted += size < left < len(content)
        self._server.start()
        return committing is not None and left == len(content)

    def _file(self) -> Path:
        """Return the newest part of the append-only file."""
        return max((self._server.folder / "appendonlydir").glob("*.incr.aof"))

    def _refusal(self, store: RedisStore, batch: Batch) -> ServiceError | None:
        try:
            self._run(_commit(store, batch))
        except ServiceError as error:
            return error
        return None

    def _ask(self, *command: str) -> None:
        async def ask() -> None:
            async with Redis(host="127.0.0.1", port=self._server.settings.port) as client:
                await client.execute_command(*command)  # type: ignore[no-untyped-call]

        self._run(ask())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


class Workshop:
    """Makes disks of one kind, one at a time; for the worlds of one process."""

    def __init__(self, kind: str, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._kind, self._folder, self._loop = kind, folder, loop
        self._server: RedisServer | None = None

    @contextlib.contextmanager
    def disk(self, seed: int) -> Iterator[SqliteDisk | RedisDisk]:
        """A new, empty disk for the length of a `with` block."""
        disk: SqliteDisk | RedisDisk
        if self._server is not None:
            disk = RedisDisk(self._loop, self._server, seed, server_dies=self._kind == "redis-killed")
        else:
            disk = SqliteDisk(self._loop, self._folder / str(seed), seed)
        try:
            yield disk
        finally:
            disk.close()
            if self._server is None:
                shutil.rmtree(self._folder / str(seed))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Whatever the disks need that outlives one of them."""
        with contextlib.ExitStack() as stack:
            # So small that these short lives have blocks to rewrite.
            stack.enter_context(patch.object(ledger, "REWRITE_BYTES_MIN", 1))
            stack.enter_context(patch.object(ledger, "REWRITE_YOUNG_BLOCKS", 2))
            if self._kind.startswith("redis"):
                self._server = stack.enter_context(running_redis(self._folder / "redis"))
            yield


@contextlib.contextmanager
def workshop(kind: str) -> Iterator[Workshop]:
    """A workshop with a folder in memory where there is one: the power goes in these files' copies only."""
    parent = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    with tempfile.TemporaryDirectory(dir=parent) as folder, asyncio.Runner() as runner:
        made = Workshop(kind, Path(folder), runner.get_loop())
        with made.running():
            yield made
