"""Where events wait for the driver and its answers leave: the side of a driver that servicers see."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from services.common.core.errors import Reason, ServiceError
from services.scheduler.core.book import Book
from services.scheduler.core.course import Collaboration
from services.scheduler.core.effects import Accepted, Answer, CloseStream, WorkItem
from services.scheduler.core.events import Event, ReplyId, StreamId, WorkFrame
from services.scheduler.core.policies.bandit import PolicyCell
from services.scheduler.watch import WatchHub

T = TypeVar("T")
#: What a requester gets.
Reply = Accepted | Collaboration | PolicyCell | ServiceError


class WorkPort(Protocol):
    """The sending side of one Work stream."""

    def send(self, item: Any) -> None:
        """Say something to the agent; never blocks and never fails."""
        ...

    def end(self, error: ServiceError) -> None:
        """End the stream."""
        ...


@dataclass(slots=True)
class Query(Generic[T]):
    """A question to the state, who waits for the answer, and what is done when it is given."""

    ask: Callable[[Book], T]
    answer: asyncio.Future[T]
    then: Callable[[T], None] | None


class Inbox:
    """One leadership's events, questions, streams and watchers. Owned by the event loop."""

    def __init__(self, queue_max: int) -> None:
        self.hub = WatchHub()
        #: Set when the state has been loaded and requests may come, and when nothing more will be done.
        self.serving = asyncio.Event()
        self.ended = asyncio.Event()
        self._queue_max = queue_max
        self._events: list[Event] = []
        self._queries: list[Query[Any]] = []
        self._ports: dict[StreamId, WorkPort] = {}
        self._replies: dict[ReplyId, Callable[[Reply], None]] = {}
        self._number = 0
        # Set while there may be something to do, and while the queue has room.
        self._work = asyncio.Event()
        #: Operations in `_events`, about; and what is set when they have grown, or a commit has ended.
        self._waiting = 0
        self._stirred = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    # What servicers do.

    def put(self, event: Event) -> None:
        """Let an event happen with the next batch."""
        self._events.append(event)
        self._waiting += 1 + len(event.results) if isinstance(event, WorkFrame) else 1
        self._stirred.set()
        if len(self._events) >= self._queue_max:
            self._room.clear()
        self._work.set()

    async def wait_room(self) -> None:
        """Return when the queue has room; a stream waits here before it reads on."""
        await self._room.wait()

    def request(self, make: Callable[[ReplyId], Event], answer: Callable[[Reply], None]) -> None:
        """Put the event that `make` makes; `answer` is called once, when it is durable or refused."""
        if self.ended.is_set():
            answer(lead_lost())
            return
        reply = ReplyId(self._next())
        self._replies[reply] = answer
        self.put(make(reply))

    async def query(self, ask: Callable[[Book], T], then: Callable[[T], None] | None = None) -> T:
        """Return the answer of `ask`, after the next commit; raises the `ServiceError` that it raises.

        It sees everything that was put before, and what it sees is durable when the answer is given. It must
        return values, not live objects. `then` is called with the answer before any later event is published.
        """
        if self.ended.is_set():
            raise lead_lost()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queries.append(Query(ask, answer, then))
        self._work.set()
        return await answer

    def open_port(self, port: WorkPort) -> StreamId:
        """Return a new stream's name; the port gets what is said to it."""
        stream = StreamId(self._next())
        self._ports[stream] = port
        if self.ended.is_set():
            port.end(lead_lost())
        return stream

    def close_port(self, stream: StreamId) -> None:
        """Forget a stream that has ended."""
        self._ports.pop(stream, None)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def end(self, error: ServiceError) -> None:
        """End everything that waits or listens: what was not begun with `error`, what was with a doubt."""
        self.ended.set()
        unknown = ServiceError(
            Reason.STORE_UNAVAILABLE,
            "the lead was lost while this was on its way to the store: ask the new coordinator, "
            "with the same request_id",
            metadata=error.metadata,
        )
        untouched = {getattr(event, "reply", None) for event in self._events}
        for reply, answer in [*self._replies.items()]:
            answer(error if reply in untouched else unknown)
        self._replies.clear()
        for port in [*self._ports.values()]:
            port.end(error)
        self._ports.clear()
        self.hub.end_all(error)
        for query in self._queries:
            settle(query, error)
        self._queries.clear()
        self._room.set()

    # What the driver does.

    def _take_events(self, most: int) -> list[Event]:
        events, self._events = self._events[:most], self._events[most:]
        self._waiting = len(self._events)
        if len(self._events) < self._queue_max:
            self._room.set()
        if self._events:
            self._work.set()
        return events

    def _take_queries(self) -> list[Query[Any]]:
        queries, self._queries = self._queries, []
        return queries

    def _say(self, effect: WorkItem | CloseStream) -> None:
        """Say something to one stream; one that is gone hears nothing."""
        port = self._ports.get(effect.stream)
        if port is None:
            return
        if isinstance(effect, CloseStream):
            del self._ports[effect.stream]
            port.end(effect.error)
        else:
            port.send(effect)

    def _reply(self, answer: Answer) -> None:
        """Give a requester its answer."""
        tell = self._replies.pop(answer.reply, None)
        if tell is not None:
            tell(answer.value)


def lead_lost() -> ServiceError:
    """Return the error of a replica that led a moment ago."""
    return ServiceError(
        Reason.NOT_COORDINATOR, "this replica has just lost the lead: ask the new coordinator"
    )


def settle(query: Query[Any], answer: Any) -> None:
    """Give a query its answer, or its error; whoever asked may have gone away."""
    if query.answer.done():
        return
    if isinstance(answer, ServiceError):
        query.answer.set_exception(answer)
        return
    if query.then is not None:
        query.then(answer)
    query.answer.set_result(answer)
