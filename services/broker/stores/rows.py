"""The SQL of the SQLite store. Everything here runs on the database's threads, inside one transaction."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from services.broker.core.model import (
    Batch,
    DeadLetter,
    DeadReason,
    DomainKey,
    DomainRecord,
    Draft,
    Envelope,
    IncarnationRecord,
    Lane,
    Recovered,
    RoutedId,
    StoredDeadLetter,
    Subscription,
)
from services.broker.stores import blocks, records
from services.broker.stores.ledger import Ledger
from services.broker.stores.surviving import Moved, StoredBlock, move, recover
from services.common.core.instants import Instant

_PUT_DOMAIN = (
    "INSERT INTO domains VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (domain_id) DO UPDATE SET"
    " next_sequence = excluded.next_sequence, cursor = excluded.cursor, rest = excluded.rest"
)
_SELECT_BLOCKS = "SELECT block_id, keep_until, heads, body FROM blocks LEFT JOIN bodies USING (block_id)"
_PUT_DEAD_LETTER = "INSERT INTO dead_letters VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def write(
    connection: sqlite3.Connection, batch: Batch, domain_ids: Mapping[DomainKey, int], block_id: int
) -> int:
    """Write `batch`; return the bytes of its block."""
    size = 0
    if batch.envelopes:
        heads, body = blocks.encode(batch.envelopes, domain_ids)
        connection.execute("INSERT INTO blocks VALUES (?, ?, ?)", (block_id, batch.keep_until, heads))
        connection.execute("INSERT INTO bodies VALUES (?, ?)", (block_id, body))
        size = len(heads) + len(body)
    connection.executemany(
        _PUT_DOMAIN, [_domain_row(record, domain_ids[record.key]) for record in batch.domains]
    )
    if batch.dead_letters:
        connection.executemany(_PUT_DEAD_LETTER, [_dead_letter_row(letter) for letter in batch.dead_letters])
    if batch.dead_letters_gone:
        gone = [(number,) for number in batch.dead_letters_gone]
        connection.executemany("DELETE FROM dead_letters WHERE number = ?", gone)
    if batch.agents_known:
        rows = [(agent,) for agent in batch.agents_known]
        connection.executemany("INSERT OR IGNORE INTO agents VALUES (?)", rows)
    if batch.agents_forgotten:
        rows = [(agent,) for agent in batch.agents_forgotten]
        connection.executemany("DELETE FROM agents WHERE agent = ?", rows)
    for agent, instance, incarnation in batch.incarnations:
        if incarnation:
            connection.execute("REPLACE INTO incarnations VALUES (?, ?, ?)", (agent, instance, incarnation))
        else:
            connection.execute("DELETE FROM incarnations WHERE agent = ? AND instance = ?", (agent, instance))
    if batch.routed:
        connection.executemany("REPLACE INTO routed_ids VALUES (?, ?, ?, ?, ?, ?, ?)", batch.routed)
    if batch.subscribed:
        connection.executemany("INSERT OR IGNORE INTO subscriptions VALUES (?, ?)", batch.subscribed)
    if batch.unsubscribed:
        connection.executemany(
            "DELETE FROM subscriptions WHERE owner = ? AND pattern = ?", batch.unsubscribed
        )
    return size


def load(connection: sqlite3.Connection, now: Instant) -> tuple[Recovered, Ledger]:
    """Begin a new life and return what the file holds."""
    ((life,),) = connection.execute("UPDATE life SET number = number + 1 RETURNING number").fetchall()
    ledger = Ledger()
    found = []
    for domain_id, sender, receiver, lane, next_sequence, cursor, rest in connection.execute(
        "SELECT * FROM domains"
    ):
        key = DomainKey(sender, receiver, Lane(lane))
        record = records.decode_record(key, next_sequence, cursor, rest)
        ledger.recover_domain(record, domain_id)
        found.append(record)
    stored = connection.execute(f"{_SELECT_BLOCKS} ORDER BY block_id")
    envelopes, remembered = recover(itertools.starmap(StoredBlock, stored), ledger, now)
    return Recovered(
        life,
        tuple(found),
        tuple(envelopes),
        tuple(remembered),
        frozenset(agent for (agent,) in connection.execute("SELECT agent FROM agents")),
        tuple(IncarnationRecord(*row) for row in connection.execute("SELECT * FROM incarnations")),
        tuple(
            RoutedId(*row)
            for row in connection.execute("SELECT * FROM routed_ids WHERE keep_until > ?", (now,))
        ),
        frozenset(Subscription(*row) for row in connection.execute("SELECT * FROM subscriptions")),
    ), ledger


def next_block_id(connection: sqlite3.Connection) -> int:
    """Return a block id that was not used yet."""
    newest: int | None
    ((newest,),) = connection.execute(
        "SELECT max(id) FROM (SELECT max(block_id) AS id FROM blocks UNION SELECT max(block_id) FROM bodies)"
    ).fetchall()
    return (newest or 0) + 1


def rewrite(
    connection: sqlite3.Connection, block_ids: Sequence[int], moved_id: int, ledger: Ledger
) -> Moved | None:
    """Copy what is unsettled of `block_ids` into the new block `moved_id`; return it, None for nothing."""
    stored = []
    for block_id in block_ids:
        stored += connection.execute(f"{_SELECT_BLOCKS} WHERE block_id = ?", (block_id,)).fetchall()
    moved = move(itertools.starmap(StoredBlock, stored), ledger)
    if moved is not None:
        row = moved_id, moved.keep_until, moved.heads
        connection.execute("INSERT INTO blocks VALUES (?, ?, ?)", row)
        connection.execute("INSERT INTO bodies VALUES (?, ?)", (moved_id, moved.body))
    return moved


def drop_bodies(connection: sqlite3.Connection, block_ids: Sequence[int]) -> None:
    """Delete envelopes that are settled or moved."""
    connection.executemany("DELETE FROM bodies WHERE block_id = ?", [(one,) for one in block_ids])


def drop_heads(connection: sqlite3.Connection, now: Instant, limit: int) -> None:
    """Delete heads that the dedupe window does not need and that belong to no body."""
    connection.execute(
        "DELETE FROM blocks WHERE block_id IN (SELECT block_id FROM blocks WHERE keep_until <= ?"
        " AND NOT EXISTS (SELECT 1 FROM bodies WHERE bodies.block_id = blocks.block_id) LIMIT ?)",
        (now, limit),
    )


def drop_routed(connection: sqlite3.Connection, now: Instant, limit: int) -> None:
    """Delete routed ids that the dedupe window does not need."""
    connection.execute(
        "DELETE FROM routed_ids WHERE (sender, message_id) IN"
        " (SELECT sender, message_id FROM routed_ids WHERE keep_until <= ? LIMIT ?)",
        (now, limit),
    )


def drop_dead_letters(
    connection: sqlite3.Connection, oldest: int, per_mailbox: int | None, limit: int
) -> dict[str, int]:
    """Delete dead letters from before `oldest` and, if given, beyond `per_mailbox`; return how many whose."""
    dropped: Counter[str] = Counter()
    dropped.update(
        receiver
        for (receiver,) in connection.execute(
            "DELETE FROM dead_letters WHERE number IN"
            " (SELECT number FROM dead_letters WHERE dead_at <= ? LIMIT ?) RETURNING receiver",
            (oldest, limit),
        ).fetchall()
    )
    if per_mailbox is None:
        return dropped
    full = connection.execute(
        "SELECT receiver, count(*) FROM dead_letters GROUP BY receiver HAVING count(*) > ?", (per_mailbox,)
    ).fetchall()
    for receiver, count in full:
        excess = min(count - per_mailbox, limit)
        connection.execute(
            "DELETE FROM dead_letters WHERE number IN"
            " (SELECT number FROM dead_letters WHERE receiver = ? ORDER BY number LIMIT ?)",
            (receiver, excess),
        )
        dropped[receiver] += excess
    return dropped


def list_dead_letters(
    connection: sqlite3.Connection, receiver: str, after: int, limit: int
) -> list[StoredDeadLetter]:
    """Return dead letters of a mailbox, oldest first."""
    return [
        _stored_dead_letter(row)
        for row in connection.execute(
            "SELECT * FROM dead_letters WHERE receiver = ? AND number > ? ORDER BY number LIMIT ?",
            (receiver, after, limit),
        )
    ]


def find_dead_letters(
    connection: sqlite3.Connection, receiver: str, numbers: Sequence[int]
) -> list[StoredDeadLetter]:
    """Return those of `numbers` that are dead letters of this mailbox."""
    return [
        _stored_dead_letter(row)
        for row in connection.execute(
            "SELECT * FROM dead_letters WHERE receiver = ? AND number IN (SELECT value FROM json_each(?))",
            (receiver, json.dumps(list(numbers))),
        )
    ]


def count_dead_letters(connection: sqlite3.Connection, receiver: str) -> int:
    """Return how many dead letters of a mailbox are kept."""
    count: int
    ((count,),) = connection.execute(
        "SELECT count(*) FROM dead_letters WHERE receiver = ?", (receiver,)
    ).fetchall()
    return count


def _domain_row(record: DomainRecord, domain_id: int) -> tuple[object, ...]:
    return (domain_id, *record.key, record.next_sequence, record.cursor, records.encode_rest(record))


def _dead_letter_row(letter: DeadLetter) -> tuple[object, ...]:
    key, sequence, accepted_at, draft = letter.envelope
    return (
        key.receiver,
        key.sender,
        key.lane,
        sequence,
        accepted_at,
        draft.message_id,
        draft.requires_ack,
        draft.ttl_ms,
        draft.retry_max,
        draft.fingerprint,
        letter.reason,
        letter.message,
        letter.dead_at,
        letter.delivery_count,
        draft.body,
    )


def _stored_dead_letter(row: tuple[Any, ...]) -> StoredDeadLetter:
    number, receiver, sender, lane, sequence, accepted_at, message_id, requires_ack, *rest = row
    ttl_ms, retry_max, fingerprint, reason, message, dead_at, delivery_count, body = rest
    key = DomainKey(sender, receiver, Lane(lane))
    draft = Draft(message_id, receiver, key.lane, bool(requires_ack), ttl_ms, retry_max, fingerprint, body)
    envelope = Envelope(key, sequence, Instant(accepted_at), draft)
    letter = DeadLetter(envelope, DeadReason(reason), message, Instant(dead_at), delivery_count)
    return StoredDeadLetter(number, letter)
