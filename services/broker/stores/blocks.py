"""The bytes of a block: the envelopes that one commit accepted, in two pieces.

*Heads* say for each envelope where it belongs and what the dedupe window must know; *bodies* are the
serialized envelopes one after the other. Heads stay until the dedupe window has passed, bodies only until
every envelope of the block is settled.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from services.broker.core.model import DomainKey, Draft, Envelope
from services.common.core.instants import Instant

# domain id, sequence, accepted at, ttl, body length, retry_max, requires_ack, id length, fingerprint; the id
# follows. Little-endian, no padding.
_HEAD = struct.Struct("<IQqIIBBB8s")


class Head(NamedTuple):
    """One envelope without its body."""

    domain_id: int
    sequence: int
    accepted_at: int
    ttl_ms: int
    body_bytes: int
    retry_max: int
    requires_ack: int
    fingerprint: bytes
    message_id: str


def encode(envelopes: Sequence[Envelope], domain_ids: Mapping[DomainKey, int]) -> tuple[bytes, bytes]:
    """Return the heads and the bodies of `envelopes`."""
    pack = _HEAD.pack
    heads: list[bytes] = []
    for key, sequence, accepted_at, draft in envelopes:
        message_id = draft.message_id.encode()
        heads.append(
            pack(
                domain_ids[key],
                sequence,
                accepted_at,
                draft.ttl_ms,
                len(draft.body),
                draft.retry_max,
                draft.requires_ack,
                len(message_id),
                draft.fingerprint,
            )
        )
        heads.append(message_id)
    return b"".join(heads), b"".join([envelope.draft.body for envelope in envelopes])


def decode_heads(heads: bytes) -> Iterator[Head]:
    """Yield what `encode` packed; raises struct.error when the bytes are not its own."""
    at = 0
    while at < len(heads):
        fields = _HEAD.unpack_from(heads, at)
        at += _HEAD.size
        id_bytes = fields[7]
        message_id = heads[at : at + id_bytes].decode()
        at += id_bytes
        yield Head._make((*fields[:7], fields[8], message_id))


def envelope(head: Head, key: DomainKey, body: bytes) -> Envelope:
    """Return the envelope of a head and its body."""
    draft = Draft(
        head.message_id,
        key.receiver,
        key.lane,
        bool(head.requires_ack),
        head.ttl_ms,
        head.retry_max,
        head.fingerprint,
        body,
    )
    return Envelope(key, head.sequence, Instant(head.accepted_at), draft)
