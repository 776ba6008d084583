"""Who watches what: changes go to the watchers of one collaboration, and to those of one requester."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

from services.common.core.errors import ServiceError
from services.common.core.ids import CollaborationId
from services.scheduler.core.book import Book
from services.scheduler.core.changes import Change, Progress
from services.scheduler.wire import views


class Watcher(Protocol):
    """One watch stream."""

    def wants(self, change: Change | Progress) -> bool:
        """Return whether this watcher asked for changes of this kind."""
        ...

    def offer(self, event: bytes) -> None:
        """Take a CollaborationEvent on the wire; never blocks and never fails."""
        ...

    def end(self, error: ServiceError) -> None:
        """End the stream."""
        ...


_NOBODY: Mapping[Watcher, None] = MappingProxyType({})


class WatchHub:
    """Owned by the driver: watchers come and go between batches only."""

    def __init__(self) -> None:
        self._by_collaboration: dict[CollaborationId, dict[Watcher, None]] = {}
        self._by_requester: dict[str, dict[Watcher, None]] = {}

    def __len__(self) -> int:
        return sum(len(some) for some in [*self._by_collaboration.values(), *self._by_requester.values()])

    def watch_one(self, watcher: Watcher, collaboration_id: CollaborationId) -> None:
        """Let a watcher see one collaboration."""
        self._by_collaboration.setdefault(collaboration_id, {})[watcher] = None

    def watch_all_of(self, watcher: Watcher, requester: str) -> None:
        """Let a watcher see all that one requester submitted and will submit."""
        self._by_requester.setdefault(requester, {})[watcher] = None

    def remove(self, watcher: Watcher) -> None:
        """Forget a watcher."""
        _remove(self._by_collaboration, watcher)
        _remove(self._by_requester, watcher)

    def publish(self, book: Book, change: Change | Progress) -> None:
        """Tell everybody who wants to know; the event is encoded once, and only if somebody does."""
        event = b""
        for watcher in self._interested(book, change):
            if watcher.wants(change):
                event = event or views.encode_event(book, change)
                watcher.offer(event)

    def end_all(self, error: ServiceError) -> None:
        """End every watch."""
        everybody = [*self._by_collaboration.values(), *self._by_requester.values()]
        for watcher in [watcher for some in everybody for watcher in some]:
            watcher.end(error)
        self._by_collaboration.clear()
        self._by_requester.clear()

    def _interested(self, book: Book, change: Change | Progress) -> Iterable[Watcher]:
        of_one = self._by_collaboration.get(change.collaboration_id, _NOBODY)
        collaboration = book.collaborations.get(change.collaboration_id) if self._by_requester else None
        if collaboration is None:
            return of_one
        of_all = self._by_requester.get(collaboration.submission.requester, _NOBODY)
        return [*of_one, *of_all] if of_one else of_all


def _remove(
    table: dict[CollaborationId, dict[Watcher, None]] | dict[str, dict[Watcher, None]], watcher: Watcher
) -> None:
    for watchers in table.values():
        watchers.pop(watcher, None)
    for name in [name for name, watchers in table.items() if not watchers]:
        del table[name]  # type: ignore[arg-type]  # the name is one of this table's own
