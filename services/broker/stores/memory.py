"""The reference implementation: what a store means, without a disk. Used by simulation and unit tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from services.broker.core.model import (
    Batch,
    DomainKey,
    DomainRecord,
    Envelope,
    IncarnationRecord,
    Recovered,
    RememberedId,
    RoutedId,
    StoredDeadLetter,
    Subscription,
)
from services.broker.store import Compaction, Retention
from services.common.core.instants import Instant


class MemoryStore:
    """See `services.broker.store.MailboxStore`. Survives the broker that uses it, not its process."""

    def __init__(self) -> None:
        self._life = 0
        self._domains: dict[DomainKey, DomainRecord] = {}
        self._envelopes: dict[tuple[DomainKey, int], Envelope] = {}
        self._remembered: dict[tuple[str, str], RememberedId] = {}
        # Oldest first; for reading.
        self.dead_letters: list[StoredDeadLetter] = []
        self._dead_number = 0
        self._agents: set[str] = set()
        self._incarnations: dict[tuple[str, str], int] = {}
        self._routed: dict[tuple[str, str], RoutedId] = {}
        self._subscriptions: set[Subscription] = set()

    async def load(self, now: Instant) -> Recovered:
        """Begin a new life of the broker and return what is durable."""
        return self.load_now(now)

    def load_now(self, now: Instant) -> Recovered:
        """Return what `load` returns, for callers without an event loop."""
        self._life += 1
        return Recovered(
            self._life,
            tuple(self._domains.values()),
            tuple(self._envelopes[place] for place in sorted(self._envelopes)),
            tuple(one for one in self._remembered.values() if one.keep_until > now),
            frozenset(self._agents),
            tuple(IncarnationRecord(*who, number) for who, number in self._incarnations.items()),
            tuple(one for one in self._routed.values() if one.keep_until > now),
            frozenset(self._subscriptions),
        )

    async def commit(self, batch: Batch) -> None:
        """Keep `batch`."""
        self.commit_now(batch)

    def commit_now(self, batch: Batch) -> None:
        """Do what `commit` does, for callers without an event loop."""
        for envelope in batch.envelopes:
            key, draft = envelope.key, envelope.draft
            self._envelopes[key, envelope.sequence] = envelope
            self._remembered[key.sender, draft.message_id] = RememberedId(
                key.sender, draft.message_id, draft.fingerprint, envelope.sequence, batch.keep_until
            )
        for record in batch.domains:
            self._settle(record)
            self._domains[record.key] = record
        for letter in batch.dead_letters:
            self._dead_number += 1
            self.dead_letters.append(StoredDeadLetter(self._dead_number, letter))
        gone = set(batch.dead_letters_gone)
        if gone:
            self.dead_letters = [one for one in self.dead_letters if one.number not in gone]
        self._agents.update(batch.agents_known)
        self._agents.difference_update(batch.agents_forgotten)
        for agent, instance, incarnation in batch.incarnations:
            if incarnation:
                self._incarnations[agent, instance] = incarnation
            else:
                self._incarnations.pop((agent, instance), None)
        self._routed.update({(one.sender, one.message_id): one for one in batch.routed})
        self._subscriptions.update(batch.subscribed)
        self._subscriptions.difference_update(batch.unsubscribed)

    async def compact(self, now: Instant, retention: Retention) -> Compaction:
        """Forget old message_ids and dead letters."""
        self._remembered = {key: one for key, one in self._remembered.items() if one.keep_until > now}
        self._routed = {key: one for key, one in self._routed.items() if one.keep_until > now}
        newer: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        kept = []
        for stored in reversed(self.dead_letters):
            owner = stored.letter.envelope.key.receiver
            newer[owner] += 1
            old = stored.letter.dead_at <= now - retention.dead_letter_age_ms_max
            if old or newer[owner] > retention.dead_letters_max_per_mailbox:
                dropped[owner] += 1
            else:
                kept.append(stored)
        self.dead_letters = kept[::-1]
        size = sum(len(envelope.draft.body) for envelope in self._envelopes.values())
        return Compaction(dict(dropped), 0, 0, size)

    async def list_dead_letters(self, receiver: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Return up to `limit` dead letters of a mailbox with numbers above `after`, oldest first."""
        found = [
            one
            for one in self.dead_letters
            if one.letter.envelope.key.receiver == receiver and one.number > after
        ]
        return found[:limit]

    async def find_dead_letters(self, receiver: str, numbers: Sequence[int]) -> list[StoredDeadLetter]:
        """Return those of `numbers` that are dead letters of this mailbox."""
        wanted = set(numbers)
        return [
            one
            for one in self.dead_letters
            if one.number in wanted and one.letter.envelope.key.receiver == receiver
        ]

    async def count_dead_letters(self, receiver: str) -> int:
        """Return how many dead letters of a mailbox are kept."""
        return sum(1 for one in self.dead_letters if one.letter.envelope.key.receiver == receiver)

    async def close(self) -> None:
        """Nothing to let go of."""

    def _settle(self, record: DomainRecord) -> None:
        before = self._domains.get(record.key)
        start = before.cursor if before is not None else 0
        for number in (*range(start + 1, record.cursor + 1), *record.above):
            self._envelopes.pop((record.key, number), None)
