"""One collaboration followed across broken streams."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime

from muster.scheduler.v1 import collaboration_pb2
from muster.scheduler.v1 import scheduler_service_pb2 as scheduler
from muster.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

from agent_client.connection import Connection
from agent_client.core.watch import WatchCursor
from agent_client.views import Change, CollaborationInfo, Gap, Progress, TaskInfo, change_of
from agent_client.wire import moment


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a collaboration; `generation` is 0 for progress, which is not durable."""

    collaboration_id: str
    generation: int
    time: datetime | None
    change: Change


class Watch:
    """Follows one collaboration across broken streams; runs on the link loop."""

    def __init__(
        self,
        connection: Connection,
        collaboration_id: str,
        from_generation: int,
        *,
        collaborations_only: bool = False,
    ) -> None:
        self._connection, self._collaboration_id = connection, collaboration_id
        self._collaborations_only = collaborations_only
        self._cursor = WatchCursor(from_generation)
        # Tasks that are still to come after the collaboration's last state; None while it goes on.
        self._left: int | None = None

    async def run(self) -> AsyncGenerator[Event, None]:
        """Yield the events until the collaboration has ended."""
        frames = self._connection.follow(
            "scheduler",
            lambda channel: SchedulerServiceStub(channel).WatchCollaborations,
            self._request,
        )
        async with contextlib.aclosing(frames):
            async for frame in frames:
                for message in frame.events:
                    if (event := self._read(message)) is not None:
                        yield event
                        if self._is_last(event):
                            return

    async def end(self) -> CollaborationInfo:
        """Return the collaboration as its last change shows it."""
        last: CollaborationInfo | None = None
        async with contextlib.aclosing(self.run()) as events:
            async for event in events:
                if isinstance(event.change, CollaborationInfo):
                    last = event.change
        # The events end with a change of the collaboration itself, or with an error.
        assert last is not None  # noqa: S101
        return last

    def _is_last(self, event: Event) -> bool:
        match event.change:
            case CollaborationInfo() as change:
                # In a snapshot the collaboration comes first, then its tasks; else the last state comes last.
                tasks_follow = self._cursor.in_snapshot and not self._collaborations_only
                after = change.task_count if tasks_follow else 0
                self._left = after if change.final else None
            case TaskInfo() if self._left is not None:
                self._left -= 1
        return self._left == 0

    def _request(self) -> scheduler.WatchCollaborationsRequest:
        request = scheduler.WatchCollaborationsRequest(
            collaboration_id=self._collaboration_id,
            from_generation=self._cursor.resume_from,
            collaborations_only=self._collaborations_only,
        )
        self._cursor.opened()
        return request

    def _read(self, message: collaboration_pb2.CollaborationEvent) -> Event | None:
        change = change_of(message)
        if change is None:
            return None
        if isinstance(change, Gap):
            self._cursor.gap()
        elif not isinstance(change, Progress):
            self._cursor.seen(message.generation)
        return Event(message.collaboration_id, message.generation, moment(message.event_time), change)
