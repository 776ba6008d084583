"""What the audit log needs to know of an envelope that only its bytes say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from muster.common.v1 import envelope_pb2

_PREFIX = "MESSAGE_TYPE_"
_NAMES = {number: name.removeprefix(_PREFIX).lower() for name, number in envelope_pb2.MessageType.items()}


class EnvelopeFacts(NamedTuple):
    """Fields of an envelope; never its payload."""

    # "task_request", "status_update", …
    message_type: str
    collaboration_id: str
    causation_id: str
    correlation_id: str
    traceparent: str


def envelope_facts(body: bytes) -> EnvelopeFacts:
    """Return what the stored bytes of an envelope say."""
    envelope = envelope_pb2.Envelope.FromString(body)
    return EnvelopeFacts(
        _NAMES[envelope.message_type],
        envelope.collaboration_id,
        envelope.causation_id,
        envelope.correlation_id,
        envelope.traceparent,
    )


class FactColumns(NamedTuple):
    """The same fields of several envelopes, a list for each."""

    message_types: list[str]
    collaboration_ids: list[str]
    causation_ids: list[str]
    correlation_ids: list[str]
    traceparents: list[str]


def fact_columns(bodies: Sequence[bytes]) -> FactColumns:
    """Return `envelope_facts` of each, at half the cost."""
    parse = envelope_pb2.Envelope.FromString
    envelopes = [parse(body) for body in bodies]
    return FactColumns(
        [_NAMES[envelope.message_type] for envelope in envelopes],
        [envelope.collaboration_id for envelope in envelopes],
        [envelope.causation_id for envelope in envelopes],
        [envelope.correlation_id for envelope in envelopes],
        [envelope.traceparent for envelope in envelopes],
    )
