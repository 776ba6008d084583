"""Mailboxes in one SQLite file: appended blocks of envelopes and one row per order domain.

Why not a row per envelope: a row is inserted, updated and deleted, and SQLite deletes 21,000 rows a second
on the machine on which it appends 150,000 envelopes a second as blocks. Here an envelope is written once, as
part of its commit's block; an ack moves a number in its domain's row; a block goes when all of it is settled.

    domains       next_sequence, cursor and what lies above it, failures, tombstones
    blocks        heads of one commit's envelopes, kept until the dedupe window has passed
    bodies        the envelopes themselves, kept until all of the block are settled
    dead_letters  one row each, for people
    routed_ids    one row for each id whose receivers the broker chose, until the dedupe window has passed
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from services.broker.core.model import Batch, DomainKey, Recovered, StoredDeadLetter
from services.broker.store import Compaction, Retention
from services.broker.stores import rows
from services.broker.stores.ledger import DROP_BLOCKS_MAX, Ledger
from services.broker.stores.surviving import Moved
from services.common import logs
from services.common.core.errors import ServiceError
from services.common.core.instants import Instant
from services.common.sqlite import Database, open_database

MIGRATIONS = (
    """
    CREATE TABLE life (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL);
    INSERT INTO life VALUES (1, 0);
    CREATE TABLE domains (
        domain_id INTEGER PRIMARY KEY,
        sender TEXT NOT NULL,
        receiver TEXT NOT NULL,
        lane INTEGER NOT NULL,
        next_sequence INTEGER NOT NULL,
        cursor INTEGER NOT NULL,
        rest TEXT,
        UNIQUE (sender, receiver, lane)
    );
    CREATE TABLE blocks (block_id INTEGER PRIMARY KEY, keep_until INTEGER NOT NULL, heads BLOB NOT NULL);
    CREATE INDEX blocks_by_end ON blocks (keep_until);
    CREATE TABLE bodies (block_id INTEGER PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE dead_letters (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        receiver TEXT NOT NULL,
        sender TEXT NOT NULL,
        lane INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        accepted_at INTEGER NOT NULL,
        message_id TEXT NOT NULL,
        requires_ack INTEGER NOT NULL,
        ttl_ms INTEGER NOT NULL,
        retry_max INTEGER NOT NULL,
        fingerprint BLOB NOT NULL,
        reason INTEGER NOT NULL,
        message TEXT NOT NULL,
        dead_at INTEGER NOT NULL,
        delivery_count INTEGER NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX dead_letters_by_receiver ON dead_letters (receiver, number);
    CREATE INDEX dead_letters_by_age ON dead_letters (dead_at);
    CREATE TABLE agents (agent TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE incarnations (
        agent TEXT NOT NULL,
        instance TEXT NOT NULL,
        incarnation INTEGER NOT NULL,
        PRIMARY KEY (agent, instance)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE routed_ids (
        sender TEXT NOT NULL,
        message_id TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        receiver TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        receiver_count INTEGER NOT NULL,
        keep_until INTEGER NOT NULL,
        PRIMARY KEY (sender, message_id)
    ) WITHOUT ROWID;
    CREATE INDEX routed_ids_by_end ON routed_ids (keep_until);
    CREATE TABLE subscriptions (
        owner TEXT NOT NULL,
        pattern TEXT NOT NULL,
        PRIMARY KEY (owner, pattern)
    ) WITHOUT ROWID;
    """,
)

# Work of one compaction, so that no commit waits long behind it; `ledger` bounds the rest.
DROP_DEAD_LETTERS_MAX = 2_000
DROP_ROUTED_MAX = 10_000
# The WAL is moved into the file beside the commits whenever it has grown by this much, and whenever space is
# freed if it has grown by the second number: then it begins anew, over what it had, and a sync need not make
# the file longer as well. Inside a commit only when it is larger than the third, in pages.
CHECKPOINT_BYTES = 8 * 1024 * 1024
CHECKPOINT_BYTES_LEAST = 1024 * 1024
CHECKPOINT_PAGES = 16_384
# What the smallest commit adds to the WAL: the last pages of three tables and an index, of 4 KiB each.
COMMIT_BYTES_LEAST = 16 * 1024

_log = logs.get("broker.sqlite")


class SqliteStore:
    """See `services.broker.store.MailboxStore`. Owned by the event loop; `rows` runs on threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ledger = Ledger()
        self._next_block_id = 1
        # Whether dead letters came since the last compaction counted them.
        self._dead_letters_came = True
        # About what the WAL has grown by since the last checkpoint began, and that checkpoint.
        self._written_bytes = 0
        self._checkpointing: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, path: Path) -> SqliteStore:
        """Open or create the file; raises STORE_UNAVAILABLE when it is damaged or of a newer version."""
        # Most of what is written is deleted within seconds: erasing it as well would double the writing.
        # What must not be read from a stolen disk is sealed by its sender.
        return cls(open_database(path, MIGRATIONS, checkpoint_pages=CHECKPOINT_PAGES, erase_deleted=False))

    async def load(self, now: Instant) -> Recovered:
        """Begin a new life of the broker and return what is durable."""
        recovered, self._ledger = await self._database.write(lambda connection: rows.load(connection, now))
        self._next_block_id = await self._database.read(rows.next_block_id)
        return recovered

    def commit(self, batch: Batch) -> asyncio.Future[None]:
        """Make `batch` durable."""
        ids = self._ledger.ids_of(batch.domains)
        block_id = self._next_block_id
        return self._database.write_then(
            lambda connection: rows.write(connection, batch, ids, block_id),
            partial(self._committed, batch, ids, block_id),
        )

    def _committed(self, batch: Batch, ids: Mapping[DomainKey, int], block_id: int, size: int) -> None:
        # Commit point: the batch is on disk. The ledger follows, so that a failed commit leaves it as it was.
        ledger = self._ledger
        ledger.add_domains(ids)
        if batch.envelopes:
            self._next_block_id += 1
            ledger.add_block(block_id, [(ids[one.key], one.sequence) for one in batch.envelopes], size)
        for record in batch.domains:
            ledger.settle(record)
        self._dead_letters_came |= bool(batch.dead_letters)
        self._written_bytes += size + COMMIT_BYTES_LEAST
        self._begin_checkpoint(CHECKPOINT_BYTES)

    async def compact(self, now: Instant, retention: Retention) -> Compaction:
        """Free what is not needed any longer."""
        ledger = self._ledger
        spent = ledger.choose_spent()
        sparse = ledger.choose_sparse(self._next_block_id)
        moved_id, count_letters = self._next_block_id, self._dead_letters_came

        def work(connection: sqlite3.Connection) -> tuple[Moved | None, dict[str, int]]:
            moved = rows.rewrite(connection, sparse, moved_id, ledger)
            rows.drop_bodies(connection, [*spent, *sparse])
            rows.drop_heads(connection, now, DROP_BLOCKS_MAX)
            rows.drop_routed(connection, now, DROP_ROUTED_MAX)
            limit = retention.dead_letters_max_per_mailbox if count_letters else None
            oldest = now - retention.dead_letter_age_ms_max
            return moved, rows.drop_dead_letters(connection, oldest, limit, DROP_DEAD_LETTERS_MAX)

        moved, dropped = await self._database.write(work)
        # Commit point, as in `commit`.
        self._dead_letters_came = sum(dropped.values()) >= DROP_DEAD_LETTERS_MAX
        del ledger.spent[: len(spent)]
        for block_id in [*spent, *sparse]:
            ledger.drop_block(block_id)
        if moved is not None:
            self._next_block_id += 1
            ledger.forget_extents(set(sparse))
            ledger.add_block(moved_id, moved.places, moved.bytes_stored)
        self._begin_checkpoint(CHECKPOINT_BYTES_LEAST)
        stored = sum(block.bytes_stored for block in ledger.blocks.values())
        return Compaction(dropped, len(spent), len(sparse), stored, is_done=not ledger.spent)

    async def list_dead_letters(self, receiver: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Return up to `limit` dead letters of a mailbox with numbers above `after`, oldest first."""
        return await self._database.read(
            lambda connection: rows.list_dead_letters(connection, receiver, after, limit)
        )

    async def find_dead_letters(self, receiver: str, numbers: Sequence[int]) -> list[StoredDeadLetter]:
        """Return those of `numbers` that are dead letters of this mailbox."""
        return await self._database.read(
            lambda connection: rows.find_dead_letters(connection, receiver, numbers)
        )

    async def count_dead_letters(self, receiver: str) -> int:
        """Return how many dead letters of a mailbox are kept."""
        return await self._database.read(lambda connection: rows.count_dead_letters(connection, receiver))

    async def close(self) -> None:
        """Finish what was begun and close the file."""
        if self._checkpointing is not None:
            await asyncio.wait([self._checkpointing])
        await self._database.close()

    def _begin_checkpoint(self, least_bytes: int) -> None:
        if self._written_bytes > least_bytes and self._checkpointing is None:
            self._written_bytes = 0
            self._checkpointing = asyncio.create_task(self._checkpoint(), name="broker-checkpoint")

    async def _checkpoint(self) -> None:
        try:
            await self._database.checkpoint()
        except ServiceError as error:
            # Nothing is lost: the WAL has it all, and a file that is really gone is found by the next commit.
            _log.warning("a checkpoint failed", why=str(error))
        finally:
            self._checkpointing = None
