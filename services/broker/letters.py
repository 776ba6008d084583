"""The dead letters of a mailbox: what was for any instance of its owner and what was for one, as one list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.broker.core.model import StoredDeadLetter
from services.broker.store import MailboxStore


async def list_after(
    store: MailboxStore, addresses: Iterable[str], after: int, limit: int
) -> list[StoredDeadLetter]:
    """Return up to `limit` with numbers above `after`, oldest first."""
    found = [one for address in addresses for one in await store.list_dead_letters(address, after, limit)]
    return sorted(found, key=_number)[:limit]


async def find(
    store: MailboxStore, addresses: Iterable[str], numbers: Sequence[int]
) -> list[StoredDeadLetter]:
    """Return those of `numbers` that are among them, oldest first."""
    found = [one for address in addresses for one in await store.find_dead_letters(address, numbers)]
    return sorted(found, key=_number)


async def count(store: MailboxStore, addresses: Iterable[str]) -> int:
    """Return how many there are."""
    return sum([await store.count_dead_letters(address) for address in addresses])


def _number(stored: StoredDeadLetter) -> int:
    return stored.number
