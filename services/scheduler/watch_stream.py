"""One watcher's stream: a replay or a snapshot, then every change; a gap when it is too slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from muster.scheduler.v1 import scheduler_service_pb2 as pb

from services.common.core.errors import ServiceError
from services.common.core.ids import CollaborationId
from services.scheduler.core.book import Book
from services.scheduler.core.changes import Change, Progress, TaskView
from services.scheduler.core.course import Collaboration
from services.scheduler.driver import Driver
from services.scheduler.wire import views

#: Events and bytes in one frame.
_FRAME_EVENTS_MAX = 512
_FRAME_BYTES_MAX = 1024 * 1024
#: A CollaborationEvent on the wire.
Event = bytes
#: Returns a collaboration that the caller may see, or raises.
Permit = Callable[[Book, CollaborationId], Collaboration]


class WatchStream:
    """Made per call; the hub's `Watcher` for it."""

    def __init__(
        self,
        driver: Driver,
        request: pb.WatchCollaborationsRequest,
        requester: str,
        waiting_max: int,
    ) -> None:
        self._driver = driver
        self._collaboration_id = CollaborationId(request.collaboration_id) or None
        self._from_generation = request.from_generation
        self._collaborations_only = request.collaborations_only
        self._requester = requester
        self._waiting_max = waiting_max
        self._waiting: list[Event] = []
        self._stirred = asyncio.Event()
        #: It was too slow: what waited was dropped, and the next thing that it gets is a gap and a snapshot.
        self._behind = False
        self._error: ServiceError | None = None

    # The hub's side.

    def wants(self, change: Change | Progress) -> bool:
        """See `Watcher.wants`."""
        if self._behind:
            return False
        return not self._collaborations_only or (
            isinstance(change, Change) and not isinstance(change.subject, TaskView)
        )

    def offer(self, event: Event) -> None:
        """See `Watcher.offer`."""
        self._waiting.append(event)
        if len(self._waiting) > self._waiting_max:
            self._behind = True
            self._waiting.clear()
        self._stirred.set()

    def end(self, error: ServiceError) -> None:
        """See `Watcher.end`."""
        self._error = error
        self._stirred.set()

    # The caller's side.

    async def frames(self, permit: Permit) -> AsyncGenerator[bytes, None]:
        """Yield WatchCollaborationsResponses on the wire until the caller leaves.

        Raises the error that the stream ended with.
        """
        hub = self._driver.hub
        try:
            await self._driver.query(lambda book: self._begin(book, permit), self._subscribe)
            while True:
                if self._behind:
                    await self._driver.query(self._catch_up, self._resume)
                events, self._waiting = self._waiting, []
                for frame in views.watch_frames(events, _FRAME_EVENTS_MAX, _FRAME_BYTES_MAX):
                    yield frame
                if self._error is not None:
                    raise self._error
                if not self._waiting and not self._behind:
                    self._stirred.clear()
                    await self._stirred.wait()
        finally:
            hub.remove(self)

    def _begin(self, book: Book, permit: Permit) -> list[Event]:
        """Return what the watcher gets first."""
        if self._collaboration_id is None:
            return self._snapshot(book)
        collaboration = permit(book, self._collaboration_id)
        if self._from_generation == 0:
            return self._snapshot(book)
        changes = collaboration.history.since(self._from_generation)
        if changes is None or self._from_generation > collaboration.generation:
            return [views.encode_gap(collaboration, self._from_generation), *self._snapshot(book)]
        return [views.encode_event(book, change) for change in changes if self.wants(change)]

    def _subscribe(self, first: list[Event]) -> None:
        self._waiting = first
        if self._collaboration_id is None:
            self._driver.hub.watch_all_of(self, self._requester)
        else:
            self._driver.hub.watch_one(self, self._collaboration_id)

    def _catch_up(self, book: Book) -> list[Event]:
        """Return a gap for each collaboration that is watched, and what they are now."""
        gaps = [views.encode_gap(collaboration, 0) for collaboration in self._watched(book)]
        return gaps + self._snapshot(book)

    def _resume(self, events: list[Event]) -> None:
        self._driver.metrics.watch_gaps.inc()
        self._waiting = events
        self._behind = False

    def _snapshot(self, book: Book) -> list[Event]:
        with_tasks = self._collaboration_id is not None and not self._collaborations_only
        return [
            views.encode_event(book, change)
            for collaboration in self._watched(book)
            for change in views.snapshot_changes(collaboration, with_tasks=with_tasks)
        ]

    def _watched(self, book: Book) -> list[Collaboration]:
        if self._collaboration_id is not None:
            collaboration = book.collaborations.get(self._collaboration_id)
            return [] if collaboration is None else [collaboration]
        return [each for each in book.collaborations.values() if each.requester == self._requester]
