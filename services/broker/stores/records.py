"""Records of domains, dead letters and routed ids as text: what the stores write beside the blocks."""

from __future__ import annotations

import json

from services.broker.core.model import (
    DeadLetter,
    DeadReason,
    DomainKey,
    DomainRecord,
    Draft,
    Envelope,
    Lane,
    RoutedId,
    Tombstone,
)
from services.common.core.instants import Instant


def encode_rest(record: DomainRecord) -> str | None:
    """Return what most domains have nothing of: settled out of order, failures, tombstones."""
    if not (record.above or record.failures or record.tombstones):
        return None
    return _dump({"above": record.above, "failures": record.failures, "tombstones": record.tombstones})


def decode_record(key: DomainKey, next_sequence: int, cursor: int, rest: str | None) -> DomainRecord:
    """Return the record whose rest `encode_rest` gave."""
    if rest is None:
        return DomainRecord(key, next_sequence, cursor)
    parts = json.loads(rest)
    return DomainRecord(
        key,
        next_sequence,
        cursor,
        tuple(parts["above"]),
        tuple((sequence, count) for sequence, count in parts["failures"]),
        tuple(
            Tombstone(first, last, message_id, DeadReason(reason))
            for first, last, message_id, reason in parts["tombstones"]
        ),
    )


def encode_domain(record: DomainRecord) -> str:
    """Return a whole record."""
    return _dump([*record.key, record.next_sequence, record.cursor, encode_rest(record)])


def decode_domain(text: str | bytes) -> DomainRecord:
    """Return the record of `encode_domain`."""
    sender, receiver, lane, next_sequence, cursor, rest = json.loads(text)
    return decode_record(DomainKey(sender, receiver, Lane(lane)), next_sequence, cursor, rest)


def encode_letter(letter: DeadLetter) -> str:
    """Return a dead letter without its body."""
    key, sequence, accepted_at, draft = letter.envelope
    return _dump(
        [
            *key,
            sequence,
            accepted_at,
            draft.message_id,
            draft.requires_ack,
            draft.ttl_ms,
            draft.retry_max,
            draft.fingerprint.hex(),
            letter.reason,
            letter.message,
            letter.dead_at,
            letter.delivery_count,
        ]
    )


def decode_letter(text: str | bytes, body: bytes) -> DeadLetter:
    """Return the dead letter of `encode_letter` and its body."""
    sender, receiver, lane, sequence, accepted_at, message_id, requires_ack, *rest = json.loads(text)
    ttl_ms, retry_max, fingerprint, reason, message, dead_at, delivery_count = rest
    key = DomainKey(sender, receiver, Lane(lane))
    draft = Draft(
        message_id, receiver, key.lane, requires_ack, ttl_ms, retry_max, bytes.fromhex(fingerprint), body
    )
    envelope = Envelope(key, sequence, Instant(accepted_at), draft)
    return DeadLetter(envelope, DeadReason(reason), message, Instant(dead_at), delivery_count)


def encode_routed(routed: RoutedId) -> tuple[str, str]:
    """Return the name of a routed id and what is known of it."""
    who, rest = routed[:2], routed[3:]
    return _dump(who), _dump([routed.fingerprint.hex(), *rest])


def decode_routed(who: str | bytes, text: str | bytes) -> RoutedId:
    """Return the routed id of `encode_routed`."""
    fingerprint, receiver, sequence, receiver_count, keep_until = json.loads(text)
    sender, message_id = json.loads(who)
    return RoutedId(
        sender,
        message_id,
        bytes.fromhex(fingerprint),
        receiver,
        sequence,
        receiver_count,
        Instant(keep_until),
    )


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
