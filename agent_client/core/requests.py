"""Requests that wait for their reply, and those that nobody waits for any more."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto

# Requests that timed out and are still told apart from messages that answer nothing.
LATE_MAX = 1_024


class Answered(Enum):
    """What an arriving message is to the requests of this agent."""

    # The reply to a request that is waited for.
    IN_TIME = auto()
    # The reply to a request that timed out.
    LATE = auto()
    # No reply.
    NOT = auto()


@dataclass(slots=True)
class _Request:
    # Who may reply; empty until the broker has said whom it chose.
    replier: str


class RequestBook:
    """By correlation id."""

    def __init__(self, late_max: int = LATE_MAX) -> None:
        self._late_max = late_max
        self._open: dict[str, _Request] = {}
        # Oldest first.
        self._late: OrderedDict[str, _Request] = OrderedDict()

    def asked(self, correlation_id: str, replier: str) -> None:
        """A request goes out to `replier`; "" when the broker chooses one."""
        self._open[correlation_id] = _Request(replier)

    def chosen(self, correlation_id: str, replier: str) -> None:
        """The broker said for whom it accepted a request."""
        for requests in (self._open, self._late):
            if correlation_id in requests:
                requests[correlation_id].replier = replier

    def gave_up(self, correlation_id: str) -> None:
        """Nobody waits for this reply any more."""
        request = self._open.pop(correlation_id, None)
        if request is None:
            return
        self._late[correlation_id] = request
        if len(self._late) > self._late_max:
            self._late.popitem(last=False)

    def ended(self, correlation_id: str) -> None:
        """A request was answered, or never accepted."""
        self._open.pop(correlation_id, None)

    def arrived(self, correlation_id: str, sender: str) -> Answered:
        """A message came from `sender` under a correlation id."""
        if not correlation_id:
            return Answered.NOT
        if (request := self._open.get(correlation_id)) is not None:
            return Answered.IN_TIME if request.replier == sender else Answered.NOT
        request = self._late.get(correlation_id)
        return Answered.LATE if request is not None and request.replier == sender else Answered.NOT
