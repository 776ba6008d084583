"""What a core asks to have recorded: an audit entry before the outbox has numbered it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class DraftGroup(NamedTuple):
    """What differs between operations that one entry records; see `muster.audit.v1.Group` for the fields.

    A list is empty, or has as many values as `names`. Nothing that is here is also in the draft itself.
    """

    # At least 2. Each continues the draft's subject; one without a cause_id is its own cause.
    names: Sequence[str]
    cause_ids: Sequence[str] = ()
    collaboration_ids: Sequence[str] = ()
    traceparents: Sequence[str] = ()
    attributes: Mapping[str, Sequence[str]] = MappingProxyType({})


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
    # When several operations are recorded together.
    group: DraftGroup | None = None

    @property
    def operation_count(self) -> int:
        """How many operations it records."""
        return 1 if self.group is None else len(self.group.names)

    def part(self, begin: int, end: int) -> EntryDraft:
        """Return what it says of its operations `begin` to `end` - 1; a single one has no group."""
        group = self.group
        if group is None:
            return self
        if end - begin > 1:
            part = DraftGroup(
                group.names[begin:end],
                group.cause_ids[begin:end],
                group.collaboration_ids[begin:end],
                group.traceparents[begin:end],
                {name: values[begin:end] for name, values in group.attributes.items()},
            )
            return self._replace(group=part)
        subject = self.subject + group.names[begin]
        cause_id = group.cause_ids[begin] if group.cause_ids else self.cause_id
        collaboration_ids, traceparents = group.collaboration_ids, group.traceparents
        facts = {name: values[begin] for name, values in group.attributes.items() if values[begin]}
        return self._replace(
            subject=subject,
            cause_id=cause_id or subject.rpartition("/")[2],
            collaboration_id=collaboration_ids[begin] if collaboration_ids else self.collaboration_id,
            traceparent=traceparents[begin] if traceparents else self.traceparent,
            attributes={**self.attributes, **facts},
            group=None,
        )


def shared(values: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return what a group keeps of one field: the value of all and no list, or "" and the list.

    `values` has at least one.
    """
    first = values[0]
    return (first, ()) if values.count(first) == len(values) else ("", values)
