"""The dead letters of a mailbox: what was for any instance of its owner and what was for one, as one list."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.broker.core import events as ev
from services.broker.core.model import LetterOutcome, StoredDeadLetter
from services.broker.core.state import State
from services.broker.store import MailboxStore

# Brings a request to the core under the number it is given, and returns what the core answers.
Ask = Callable[[Callable[[int], ev.Event]], Awaitable[Any]]


class DeadLetters:
    """What people may do with dead letters. Owned by the event loop."""

    def __init__(self, store: MailboxStore, state: Callable[[], State], ask: Ask) -> None:
        self._store, self._state, self._ask = store, state, ask
        self._lock = asyncio.Lock()

    async def list_after(self, receiver: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Return up to `limit` with numbers above `after`, oldest first."""
        found = [
            one
            for address in self._state().addresses(receiver)
            for one in await self._store.list_dead_letters(address, after, limit)
        ]
        return sorted(found, key=_number)[:limit]

    async def count(self, receiver: str) -> int:
        """Return how many there are."""
        addresses = self._state().addresses(receiver)
        return sum([await self._store.count_dead_letters(address) for address in addresses])

    async def replay(self, receiver: str, numbers: Sequence[int]) -> list[LetterOutcome]:
        """Send dead letters of a mailbox once more; returns when that is durable."""
        # One request after the other: what is read here is still there when the core decides.
        async with self._lock:
            found = await self._find(receiver, numbers)
            told: list[LetterOutcome] = await self._ask(lambda number: ev.ReplayAsked(number, found))
            return told

    async def drop(self, receiver: str, numbers: Sequence[int]) -> list[LetterOutcome]:
        """Forget dead letters of a mailbox; returns when that is durable."""
        async with self._lock:
            mine = [stored.number for stored in await self._find(receiver, numbers)]
            told: list[LetterOutcome] = await self._ask(lambda number: ev.DropAsked(number, mine))
            return told

    async def _find(self, receiver: str, numbers: Sequence[int]) -> list[StoredDeadLetter]:
        found = [
            one
            for address in self._state().addresses(receiver)
            for one in await self._store.find_dead_letters(address, numbers)
        ]
        return sorted(found, key=_number)


def _number(stored: StoredDeadLetter) -> int:
    return stored.number
