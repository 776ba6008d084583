"""Envelopes, batches and random courses of batches for the tests of `MailboxStore`."""

from __future__ import annotations

import random

from services.broker.core.model import Batch, DomainKey, DomainRecord, Draft, Envelope, Lane, Recovered
from services.common.core.instants import Instant

NOW = Instant(1_000_000)
LATER = Instant(NOW + 1_000_000)
KEY = DomainKey("alpha", "beta", Lane.NORMAL)
OTHER = DomainKey("gamma", "beta", Lane.EMERGENCY)


def an_envelope(sequence: int, key: DomainKey = KEY, body: bytes = b"body") -> Envelope:
    draft = Draft(
        f"{key.sender}-{sequence}",
        key.receiver,
        key.lane,
        sequence % 2 == 0,
        60_000,
        7,
        b"%08d" % sequence,
        body,
    )
    return Envelope(key, sequence, NOW, draft)


def a_batch(number: int, envelopes: list[Envelope], *records: DomainRecord) -> Batch:
    return Batch(number, envelopes=envelopes, keep_until=LATER, domains=list(records))


class Course:
    """Random batches such as the core makes, and what must be left of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.number = 0
        self.next = dict.fromkeys((KEY, OTHER, KEY._replace(lane=Lane.LOW)), 1)
        self.unsettled: dict[DomainKey, set[int]] = {key: set() for key in self.next}

    def batch(self) -> Batch:
        rng = self.random
        self.number += 1
        envelopes = []
        for key in self.next:
            for _ in range(rng.randint(0, 6)):
                envelopes.append(an_envelope(self.next[key], key, rng.randbytes(rng.randint(0, 4_000))))
                self.next[key] += 1
        settled = {
            key: {one for one in numbers if rng.random() < 0.5} for key, numbers in self.unsettled.items()
        }
        for key, numbers in settled.items():
            self.unsettled[key] -= numbers
        for one in envelopes:
            self.unsettled[one.key].add(one.sequence)
        return a_batch(self.number, envelopes, *(self._record(key) for key in self.next))

    def _record(self, key: DomainKey) -> DomainRecord:
        left = self.unsettled[key]
        cursor = min(left, default=self.next[key]) - 1
        above = tuple(n for n in range(cursor + 1, self.next[key]) if n not in left)
        return DomainRecord(key, self.next[key], cursor, above)

    def check(self, found: Recovered) -> None:
        places = [(one.key, one.sequence) for one in found.envelopes]
        assert places == sorted((key, n) for key, numbers in self.unsettled.items() for n in numbers)
        assert set(found.domains) == {self._record(key) for key in self.next}
        assert {(one.sender, one.sequence) for one in found.remembered} >= {
            (key.sender, n) for key in (KEY, OTHER) for n in range(1, self.next[key])
        }
