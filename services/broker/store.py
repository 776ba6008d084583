"""What must be durable about mailboxes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.broker.core.model import Batch, Recovered, StoredDeadLetter
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant

# What is awaited; a store that has a future in hand spares its caller the task around a coroutine.
Work = asyncio.Future[None] | Coroutine[Any, Any, None]


@dataclass(frozen=True, slots=True)
class Retention:
    """How much a store keeps for people, and for how long."""

    dead_letters_max_per_mailbox: int = 10_000
    dead_letter_age_ms_max: int = 7 * 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class Compaction:
    """What `compact` removed and how large the store is."""

    # Dead letters that are no longer kept, by mailbox.
    dead_letters_dropped: dict[str, int]
    # Blocks whose envelopes were settled, and blocks whose few live envelopes moved together.
    blocks_dropped: int
    blocks_rewritten: int
    bytes_stored: int
    # False when there is more to do at once.
    is_done: bool = True


class MailboxStore(Protocol):
    """Durable mailboxes of one broker, their only writer; a store that several could open sees to it.

    Concurrency: `load`, `commit` and `compact` do not overlap: each is awaited before the next. Lists and
                 counts may be asked for at any time and see whole commits.
    Consistency: `commit` is all or nothing. A domain record replaces the one before, and every envelope of a
                 batch comes with its domain's record. An envelope is unsettled until its domain's record
                 says that its number is settled.
    Durability:  when `commit` returns, the batch survives power loss. What is acknowledged to anybody was
                 committed before.
    Recovery:    `load` returns exactly what the commits so far amount to: every unsettled envelope once, in
                 the order of its domain, every message_id and every routed id whose `keep_until` has not
                 passed (it may return more ids, and keep them longer, than it must), and every subscription
                 that was not given up. The copies of one routed envelope share its message_id.
    Errors:      DISK_FULL is definite: nothing of the batch was kept, and the store goes on when there is
                 room. STORE_UNAVAILABLE is indefinite: the batch may or may not be there, all of it or
                 nothing; `load` tells. NOT_COORDINATOR is definite: another broker has taken these
                 mailboxes over, and nothing more is taken from this one.
    """

    async def load(self, now: Instant) -> Recovered:
        """Begin a new life of the broker and return what is durable."""
        ...

    def commit(self, batch: Batch) -> Work:
        """Make `batch` durable; called on the loop."""
        ...

    async def compact(self, now: Instant, retention: Retention) -> Compaction:
        """Free what is not needed any longer: a bounded piece of work, to be called every few seconds."""
        ...

    async def list_dead_letters(self, receiver: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Return up to `limit` dead letters of a mailbox with numbers above `after`, oldest first."""
        ...

    async def find_dead_letters(self, receiver: str, numbers: Sequence[int]) -> list[StoredDeadLetter]:
        """Return those of `numbers` that are dead letters of this mailbox."""
        ...

    async def count_dead_letters(self, receiver: str) -> int:
        """Return how many dead letters of a mailbox are kept."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of the files."""
        ...


def taken_over() -> ServiceError:
    """Return what streams end with when another broker takes over: what was unanswered may have happened."""
    return ServiceError(
        Reason.STORE_UNAVAILABLE,
        "another broker replica takes these mailboxes over: connect again and repeat what was not answered",
    )
