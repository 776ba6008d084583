"""Any message of the protos as plain Python values, ready for `json.dumps`; what `--json` prints.

Times become RFC 3339 text, durations seconds, enums their names without the prefix, payloads their decoded
value, other bytes base64. A message field that is unset is left out, everything else is always there.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import UTC
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from agent_client.core.records import Payload
from agent_client.errors import from_status
from agent_client.payload import decode


def to_plain(message: Message) -> Any:
    """Return a message as plain Python values."""
    special = _SPECIAL.get(message.DESCRIPTOR.full_name)
    if special is not None:
        return special(message)
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        plain[field.name] = _field(field, getattr(message, field.name))
    return plain


def _field(field: Any, value: Any) -> Any:
    # `field` is a FieldDescriptor; which class of that name depends on protobuf's implementation.
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        of_value = entry.fields_by_name["value"]
        return {str(key): _single(of_value, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return to_plain(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def enum_name(enum: EnumDescriptor, value: int) -> str | int:
    """Return an enum value's name without the prefix that all its siblings have; the number if unknown."""
    known = enum.values_by_number.get(value)
    if known is None:
        return value
    unspecified = enum.values_by_number[0].name
    return str(known.name).removeprefix(unspecified.removesuffix("UNSPECIFIED"))


def _payload(message: Any) -> Any:
    value = decode(Payload(message.content_type, message.data))
    if isinstance(value, bytes):
        return {"content_type": message.content_type, "base64": base64.b64encode(value).decode()}
    return value


def _timestamp(message: Any) -> str:
    text: str = message.ToDatetime(tzinfo=UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _duration(message: Any) -> float:
    seconds: float = message.ToMilliseconds() / 1000
    return seconds


def _status(message: Any) -> dict[str, Any]:
    error = from_status(message)
    return {"reason": error.reason, "message": error.message, "definite": error.definite}


_SPECIAL: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "google.protobuf.Timestamp": _timestamp,
        "google.protobuf.Duration": _duration,
        "google.rpc.Status": _status,
        "muster.common.v1.Payload": _payload,
        "muster.common.v1.FencingToken": lambda message: f"{message.epoch}.{message.number}",
    }
)
