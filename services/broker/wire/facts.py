"""What the audit log needs to know of an envelope that only its bytes say."""

from __future__ import annotations

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
