"""What a core asks to have recorded: an audit entry before the outbox has numbered it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from services.common.core.instants import Instant


class Outcome(IntEnum):
    """How an operation ended; the numbers are those of `muster.audit.v1.Outcome`, a test compares both."""

    OK = 1
    REFUSED = 2
    FAILED = 3
    CANCELLED = 4
    TIMED_OUT = 5


_NOTHING: Mapping[str, str] = MappingProxyType({})


class EntryDraft(NamedTuple):
    """Who did what, on what, with which outcome, and why; see `muster.audit.v1.Entry` for the fields.

    `attributes`: at most 32 small facts, values at most 1,024 bytes; never a secret or a payload.
    """

    event_time: Instant
    actor: str
    operation: str
    subject: str
    outcome: Outcome = Outcome.OK
    # The error reason's name when the outcome is not OK.
    reason: str = ""
    cause_id: str = ""
    collaboration_id: str = ""
    attributes: Mapping[str, str] = _NOTHING
    traceparent: str = ""
