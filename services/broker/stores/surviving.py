"""What of stored blocks is still needed, when a store is loaded and when its sparse blocks are rewritten."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from services.broker.core.model import Envelope, RememberedId
from services.broker.stores import blocks
from services.broker.stores.ledger import Ledger
from services.common.core.instants import Instant


class StoredBlock(NamedTuple):
    """One block as it is stored."""

    block_id: int
    keep_until: int
    heads: bytes
    # None when all of the block is settled.
    body: bytes | None


def recover(
    stored: Iterable[StoredBlock], ledger: Ledger, now: Instant
) -> tuple[list[Envelope], list[RememberedId]]:
    """Return what is unsettled and what the dedupe window must know; `ledger` has the domains already."""
    envelopes: list[Envelope] = []
    remembered: list[RememberedId] = []
    for block_id, keep_until, heads, body in stored:
        live: list[tuple[int, int]] = []
        total, at = 0, 0
        for head in blocks.decode_heads(heads):
            total += 1
            domain = ledger.by_id[head.domain_id]
            if keep_until > now:
                remembered.append(
                    RememberedId(
                        domain.key.sender,
                        head.message_id,
                        head.fingerprint,
                        head.sequence,
                        Instant(keep_until),
                    )
                )
            if body is not None and not domain.is_settled(head.sequence):
                live.append((head.domain_id, head.sequence))
                envelopes.append(blocks.envelope(head, domain.key, body[at : at + head.body_bytes]))
            at += head.body_bytes
        if body is not None:
            ledger.recover_block(block_id, live, total, len(heads) + len(body))
    envelopes.sort(key=lambda one: (one.key, one.sequence))
    return envelopes, remembered


class Moved(NamedTuple):
    """A block made of what is unsettled of others."""

    keep_until: int
    heads: bytes
    body: bytes
    # (domain id, sequence) of each envelope, ascending.
    places: list[tuple[int, int]]

    @property
    def bytes_stored(self) -> int:
        """Its size."""
        return len(self.heads) + len(self.body)


def move(stored: Iterable[StoredBlock], ledger: Ledger) -> Moved | None:
    """Return the block that replaces `stored`; None when nothing of them is unsettled."""
    moved: list[tuple[blocks.Head, Envelope]] = []
    keep_until = 0
    for block in stored:
        keep_until = max(keep_until, block.keep_until)
        body, at = block.body or b"", 0
        for head in blocks.decode_heads(block.heads):
            domain = ledger.by_id[head.domain_id]
            if not domain.is_settled(head.sequence):
                moved.append((head, blocks.envelope(head, domain.key, body[at : at + head.body_bytes])))
            at += head.body_bytes
    if not moved:
        return None
    moved.sort(key=lambda one: (one[0].domain_id, one[0].sequence))
    ids = {envelope.key: head.domain_id for head, envelope in moved}
    heads, body = blocks.encode([envelope for _, envelope in moved], ids)
    return Moved(keep_until, heads, body, [(head.domain_id, head.sequence) for head, _ in moved])
