"""Which blocks still hold unsettled envelopes: a store's memory of what it wrote.

Owned by the store, which touches it between its writes only. Kept by ranges, so that a commit costs by the
domains that it touches and not by their envelopes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from services.broker.core.model import DomainKey, DomainRecord

# A block of which no more than this share lives is rewritten, unless it is young or small.
REWRITE_LIVE_PERCENT_MAX = 25
REWRITE_BYTES_MIN = 64 * 1024
REWRITE_YOUNG_BLOCKS = 64
# Work of one compaction, so that no commit waits long behind it.
REWRITE_BYTES_MAX = 2 * 1024 * 1024
DROP_BYTES_MAX = 16 * 1024 * 1024
DROP_BLOCKS_MAX = 256


@dataclass(slots=True)
class Extent:
    """A run of numbers of one domain inside one block; ordered by `first` inside the domain."""

    first: int
    last: int
    block_id: int


@dataclass(slots=True)
class DomainExtents:
    """One domain's extents and what of it is settled."""

    key: DomainKey
    domain_id: int
    cursor: int = 0
    above: frozenset[int] = frozenset()
    extents: list[Extent] = field(default_factory=list)

    def is_settled(self, sequence: int) -> bool:
        """Return whether a number is settled."""
        return sequence <= self.cursor or sequence in self.above


@dataclass(slots=True)
class Block:
    """One block whose bodies are stored."""

    total: int
    live: int
    bytes_stored: int


class Ledger:
    """Domains and the blocks that hold their unsettled envelopes."""

    def __init__(self) -> None:
        self.domains: dict[DomainKey, DomainExtents] = {}
        self.by_id: dict[int, DomainExtents] = {}
        self.blocks: dict[int, Block] = {}
        # Blocks without a live envelope whose bodies are still stored.
        self.spent: list[int] = []
        self._next_domain_id = 1

    def add_domain(self, key: DomainKey, domain_id: int) -> DomainExtents:
        """Begin a domain."""
        domain = self.domains[key] = self.by_id[domain_id] = DomainExtents(key, domain_id)
        self._next_domain_id = max(self._next_domain_id, domain_id + 1)
        return domain

    def ids_of(self, records: Sequence[DomainRecord]) -> dict[DomainKey, int]:
        """Return the ids of the records' domains, of new ones those that `add_domains` will give them."""
        ids: dict[DomainKey, int] = {}
        following = self._next_domain_id
        for record in records:
            known = self.domains.get(record.key)
            if known is None:
                ids[record.key], following = following, following + 1
            else:
                ids[record.key] = known.domain_id
        return ids

    def add_domains(self, ids: Mapping[DomainKey, int]) -> None:
        """Begin those that are new, once it is durable that they have these ids."""
        for key, domain_id in ids.items():
            if key not in self.domains:
                self.add_domain(key, domain_id)

    def recover_domain(self, record: DomainRecord, domain_id: int) -> None:
        """Note a domain as it is stored; its blocks come after it, with what is unsettled."""
        domain = self.add_domain(record.key, domain_id)
        domain.cursor, domain.above = record.cursor, frozenset(record.above)

    def add_block(self, block_id: int, places: Sequence[tuple[int, int]], bytes_stored: int) -> None:
        """Note a new block that holds these (domain id, sequence), ascending inside a domain."""
        self.recover_block(block_id, places, len(places), bytes_stored)

    def recover_block(
        self, block_id: int, places: Sequence[tuple[int, int]], total: int, bytes_stored: int
    ) -> None:
        """Note a block of which `places` are unsettled, out of `total`."""
        open_extents: dict[int, Extent] = {}
        for domain_id, sequence in places:
            extent = open_extents.get(domain_id)
            if extent is not None and extent.last + 1 == sequence:
                extent.last = sequence
                continue
            extent = open_extents[domain_id] = Extent(sequence, sequence, block_id)
            extents = self.by_id[domain_id].extents
            if extents and extents[-1].first > sequence:
                extents.insert(bisect_right(extents, sequence, key=_first), extent)
            else:
                extents.append(extent)
        self.blocks[block_id] = Block(total, len(places), bytes_stored)
        if not places:
            self.spent.append(block_id)

    def settle(self, record: DomainRecord) -> None:
        """Note what a new record of a domain settles."""
        domain = self.domains[record.key]
        above = frozenset(record.above)
        for sequence in above - domain.above:
            self._count_down(self._block_of(domain, sequence), 1)
        if record.cursor > domain.cursor:
            self._advance(domain, record.cursor)
        domain.cursor, domain.above = record.cursor, above

    def choose_spent(self) -> Sequence[int]:
        """Return the first of `spent`, at most what one compaction may drop."""
        chosen: list[int] = []
        size = 0
        for block_id in self.spent[:DROP_BLOCKS_MAX]:
            if size > DROP_BYTES_MAX:
                break
            chosen.append(block_id)
            size += self.blocks[block_id].bytes_stored
        return chosen

    def choose_sparse(self, next_block_id: int) -> Sequence[int]:
        """Return blocks that are worth rewriting: old enough, large, and nearly all settled."""
        young = next_block_id - REWRITE_YOUNG_BLOCKS
        chosen: list[int] = []
        size = 0
        for block_id, block in self.blocks.items():
            if block_id > young or size > REWRITE_BYTES_MAX:
                break
            sparse = 0 < block.live * 100 <= block.total * REWRITE_LIVE_PERCENT_MAX
            if sparse and block.bytes_stored >= REWRITE_BYTES_MIN:
                chosen.append(block_id)
                size += block.bytes_stored
        return chosen

    def drop_block(self, block_id: int) -> None:
        """Forget a block whose bodies are gone."""
        del self.blocks[block_id]

    def forget_extents(self, block_ids: Collection[int]) -> None:
        """Take blocks that were rewritten out of the extents of their domains."""
        for domain in self.domains.values():
            if any(extent.block_id in block_ids for extent in domain.extents):
                domain.extents = [one for one in domain.extents if one.block_id not in block_ids]

    def _advance(self, domain: DomainExtents, cursor: int) -> None:
        passed = 0
        for extent in domain.extents:
            if extent.first > cursor:
                break
            first, last = max(extent.first, domain.cursor + 1), min(extent.last, cursor)
            fresh = last - first + 1
            if domain.above and fresh > 0:
                fresh -= sum(1 for number in domain.above if first <= number <= last)
            if fresh > 0:
                self._count_down(extent.block_id, fresh)
            if extent.last <= cursor:
                passed += 1
        del domain.extents[:passed]

    def _block_of(self, domain: DomainExtents, sequence: int) -> int:
        at = bisect_right(domain.extents, sequence, key=_first) - 1
        return domain.extents[at].block_id

    def _count_down(self, block_id: int, count: int) -> None:
        block = self.blocks[block_id]
        block.live -= count
        if not block.live:
            self.spent.append(block_id)


def _first(extent: Extent) -> int:
    return extent.first
