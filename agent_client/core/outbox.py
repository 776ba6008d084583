"""Envelopes on their way to the broker, in order, until it says that they are stored.

After a lost link everything unanswered is sent again under the same message_id, before anything newer; the
broker stores a repeated id once, so that the receiver sees each envelope once and in order.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import Enum, auto
from typing import NamedTuple

from agent_client.core.records import Fault

# Envelopes that may wait for the broker in this process; more are refused at once.
OUTBOX_MAX = 10_000
# One frame carries at most this many envelopes (broker_service.proto) and about this many payload bytes.
FRAME_SENDS_MAX = 1_024
FRAME_BYTES_MAX = 1_048_576


class SendOutcome(NamedTuple):
    """The broker's answer to one envelope."""

    message_id: str
    sequence_number: int = 0
    fault: Fault | None = None


class Answer(Enum):
    """What an outcome means for its envelope."""

    # Stored, or refused for good.
    SETTLED = auto()
    # Perhaps stored: send it again under its id.
    INDEFINITE = auto()
    # Nobody waits for it.
    UNKNOWN = auto()


class OutboxCore:
    """The sending half of a mailbox, by message_id; the driver keeps the envelopes themselves."""

    def __init__(self, waiting_max: int = OUTBOX_MAX) -> None:
        self._waiting_max = waiting_max
        # message_id -> payload size in bytes, oldest first.
        self._unsent: deque[tuple[str, int]] = deque()
        self._unanswered: OrderedDict[str, int] = OrderedDict()
        self._credits = 0

    def __repr__(self) -> str:
        return (
            f"OutboxCore(unsent={len(self._unsent)}, "
            f"unanswered={len(self._unanswered)}, credits={self._credits})"
        )

    def __len__(self) -> int:
        return len(self._unsent) + len(self._unanswered)

    @property
    def full(self) -> bool:
        """Whether another envelope would be one too many."""
        return len(self) >= self._waiting_max

    def add(self, message_id: str, size: int) -> None:
        """Queue an envelope of `size` payload bytes."""
        self._unsent.append((message_id, size))

    def credited(self, credits_granted: int) -> None:
        """The broker accepts so many more unanswered envelopes."""
        self._credits += credits_granted

    def closed(self) -> None:
        """The stream ended: what is unanswered goes first on the next one, in its old order."""
        self._unsent.extendleft(reversed(self._unanswered.items()))
        self._unanswered.clear()
        self._credits = 0

    def take(self) -> list[str]:
        """Return the ids of the envelopes to write now, in order."""
        ids: list[str] = []
        size = 0
        while self._unsent and self._credits > 0 and len(ids) < FRAME_SENDS_MAX and size < FRAME_BYTES_MAX:
            message_id, payload_bytes = self._unsent.popleft()
            self._credits -= 1
            self._unanswered[message_id] = payload_bytes
            ids.append(message_id)
            size += payload_bytes
        return ids

    def answered(self, outcome: SendOutcome) -> Answer:
        """The broker answered one envelope.

        An indefinite fault leaves open whether the envelope is stored. It stays unanswered, and the driver
        opens the stream anew: then everything unanswered is sent again in its order. A definite fault is
        the sender's to decide about, because a silent retry could put the envelope behind others that were
        accepted meanwhile.
        """
        if outcome.message_id not in self._unanswered:
            return Answer.UNKNOWN
        if outcome.fault is not None and outcome.fault.retryable and not outcome.fault.definite:
            return Answer.INDEFINITE
        del self._unanswered[outcome.message_id]
        return Answer.SETTLED
