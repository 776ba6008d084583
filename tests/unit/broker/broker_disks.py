"""What the simulated plant keeps its mailboxes on, for callers without an event loop."""

from __future__ import annotations

import random
from typing import Protocol

from services.broker.core.model import Batch, Recovered
from services.broker.stores.memory import MemoryStore
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant


class Disk(Protocol):
    """A store of which the broker may lose hold at any moment."""

    def load_now(self, now: Instant) -> Recovered:
        """Begin a new life of the broker and return what is durable."""
        ...

    def commit_now(self, batch: Batch, now: Instant) -> None:
        """Make `batch` durable; now and then also what a store does between commits."""
        ...

    def commit_full_now(self, batch: Batch) -> ServiceError | None:
        """Do the same while there is no room; None: there was room for this nevertheless."""
        ...

    def lose_now(self, committing: Batch | None, now: Instant) -> bool:
        """The broker dies, perhaps in the middle of a commit; return whether that one is durable."""
        ...


class MemoryDisk:
    """The reference store; a commit that the broker's death interrupts is there or not, as the seed says."""

    def __init__(self, seed: int) -> None:
        self.store = MemoryStore()
        self._random = random.Random(seed)

    def load_now(self, now: Instant) -> Recovered:
        return self.store.load_now(now)

    def commit_now(self, batch: Batch, now: Instant) -> None:
        del now
        self.store.commit_now(batch)

    def commit_full_now(self, batch: Batch) -> ServiceError | None:
        del batch
        return ServiceError(Reason.DISK_FULL, "no room left")

    def lose_now(self, committing: Batch | None, now: Instant) -> bool:
        del now
        if committing is None or self._random.random() < 0.5:
            return False
        # The disk had it; the broker never knew.
        self.store.commit_now(committing)
        return True
