"""Envelopes as CloudEvents 1.0 in their JSON format, both ways; docs/envelope.md has the table.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md and formats/json-format.md. Nothing is
lost on the way there and back but what only the broker may set anew when the envelope is sent again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from agent_client.core.records import Payload
from agent_client.core.vocabulary import MessageType, Priority
from agent_client.errors import bad_field
from agent_client.link import Envelope

Word = TypeVar("Word", MessageType, Priority)

SPEC_VERSION = "1.0"
# "muster.task_request" and so on.
TYPE_PREFIX = "muster."
SOURCE_PREFIX = "/muster/"
JSON_TYPE = "application/json"


def to_cloudevent(envelope: Envelope) -> dict[str, Any]:
    """Return an envelope as a CloudEvent; what is unset is left out."""
    payload = envelope.payload
    event: dict[str, Any] = {
        "specversion": SPEC_VERSION,
        "id": envelope.message_id,
        "source": f"{SOURCE_PREFIX}{envelope.sender or 'unknown'}",
        "type": f"{TYPE_PREFIX}{envelope.message_type.lower()}",
        "subject": envelope.receiver,
        "musterpriority": envelope.priority.lower(),
        "musterrequiresack": envelope.requires_ack,
    }
    optional: dict[str, Any] = {
        "datacontenttype": payload.content_type,
        "time": None if envelope.accepted_time is None else envelope.accepted_time.isoformat(),
        "traceparent": envelope.traceparent,
        "tracestate": envelope.tracestate,
        "musteraddress": envelope.address,
        "mustercorrelationid": envelope.correlation_id,
        "mustercausationid": envelope.causation_id,
        "mustercollaborationid": envelope.collaboration_id,
        "musterttl": None if envelope.ttl is None else round(envelope.ttl * 1000),
        "mustersequence": str(envelope.sequence_number) if envelope.sequence_number else "",
        "musterrequiresreceiver": envelope.requires_receiver or None,
        "musterreplyinstance": envelope.reply_instance,
    }
    event |= {name: value for name, value in optional.items() if value not in (None, "")}
    if envelope.retry_max is not None:
        event["musterretrymax"] = envelope.retry_max
    return event | _data(payload)


def from_cloudevent(event: Mapping[str, Any]) -> Envelope:
    """Return the envelope of a CloudEvent; raises InvalidRequestError naming the attribute that is wrong.

    Attributes that are not Muster's are left out; one without a `musterpriority` is NORMAL and wants an ack.
    """
    if event.get("specversion") != SPEC_VERSION:
        raise bad_field("specversion", f"must be {SPEC_VERSION!r}")
    kind = _text(event, "type", required=True).removeprefix(TYPE_PREFIX)
    return Envelope(
        message_id=_text(event, "id", required=True),
        receiver=_text(event, "subject", required=True),
        message_type=_word(MessageType, kind, "type"),
        payload=_payload(event),
        priority=_word(Priority, _text(event, "musterpriority") or Priority.NORMAL, "musterpriority"),
        requires_ack=_flag(event, "musterrequiresack", default=True),
        correlation_id=_text(event, "mustercorrelationid"),
        ttl=None if "musterttl" not in event else _number(event, "musterttl") / 1000,
        retry_max=None if "musterretrymax" not in event else _number(event, "musterretrymax"),
        causation_id=_text(event, "mustercausationid"),
        traceparent=_text(event, "traceparent"),
        tracestate=_text(event, "tracestate"),
        collaboration_id=_text(event, "mustercollaborationid"),
        requires_receiver=_flag(event, "musterrequiresreceiver", default=False),
        reply_instance=_text(event, "musterreplyinstance"),
        sender=_text(event, "source", required=True).removeprefix(SOURCE_PREFIX),
        address=_text(event, "musteraddress"),
        accepted_time=_time(event),
        sequence_number=_sequence(event),
    )


def _data(payload: Payload) -> dict[str, Any]:
    if not payload.data:
        return {}
    if payload.content_type == JSON_TYPE:
        try:
            return {"data": json.loads(payload.data)}
        except ValueError:
            # It says that it is JSON and is not: its bytes are kept as they are.
            pass
    return {"data_base64": base64.b64encode(payload.data).decode()}


def _payload(event: Mapping[str, Any]) -> Payload:
    content_type = _text(event, "datacontenttype")
    if "data_base64" in event:
        try:
            return Payload(content_type, base64.b64decode(_text(event, "data_base64"), validate=True))
        except ValueError:
            raise bad_field("data_base64", "must be base64") from None
    if "data" not in event:
        return Payload(content_type, b"")
    text = json.dumps(event["data"], ensure_ascii=False, separators=(",", ":"))
    return Payload(content_type or JSON_TYPE, text.encode())


def _word(words: type[Word], value: str, name: str) -> Word:
    try:
        return words(value)
    except ValueError:
        raise bad_field(name, f"{value!r} is none of {', '.join(words.__members__)}") from None


def _sequence(event: Mapping[str, Any]) -> int:
    # A text: CloudEvents' integers end at 32 bits.
    text = _text(event, "mustersequence")
    if not text:
        return 0
    if not text.isascii() or not text.isdecimal():
        raise bad_field("mustersequence", "must be a whole number, as a text")
    return int(text)


def _text(event: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    value = event.get(name, "")
    if not isinstance(value, str) or (required and not value):
        raise bad_field(name, "must be a text that is not empty" if required else "must be a text")
    return value


def _number(event: Mapping[str, Any], name: str) -> int:
    value = event[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise bad_field(name, "must be a whole number from 0 on")
    return value


def _flag(event: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = event.get(name, default)
    if not isinstance(value, bool):
        raise bad_field(name, "must be true or false")
    return value


def _time(event: Mapping[str, Any]) -> datetime | None:
    text = _text(event, "time")
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise bad_field("time", "must be an RFC 3339 time")
    return moment
