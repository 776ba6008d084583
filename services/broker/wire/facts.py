"""What the audit log needs to know of an envelope that only its bytes say."""

from __future__ import annotations

from typing import NamedTuple

from muster.common.v1 import envelope_pb2

_PREFIX = "MESSAGE_TYPE_"


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
    name = envelope_pb2.MessageType.Name(envelope.message_type)
    return EnvelopeFacts(
        name.removeprefix(_PREFIX).lower(),
        envelope.collaboration_id,
        envelope.causation_id,
        envelope.correlation_id,
        envelope.traceparent,
    )
