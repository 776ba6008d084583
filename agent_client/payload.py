"""Python values as payloads, and back.

`dict`, `list`, numbers, booleans and None travel as JSON, `str` as text, `bytes` as they are.
"""

from __future__ import annotations

import json
from typing import Any

from agent_client.core.records import PAYLOAD_BYTES_MAX, Payload
from agent_client.errors import InvalidRequestError, Violation, bad_field

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
OCTETS = "application/octet-stream"

EMPTY = Payload("", b"")
# NaN and the infinities are not JSON; another language's parser would fail on them much later.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode(value: Any, field: str = "payload") -> Payload:
    """Return `value` as a payload.

    Raises InvalidRequestError naming `field` when it can not be written as JSON or is larger than 65,536
    bytes.
    """
    if type(value) is bytes:
        payload = Payload(OCTETS, value)
    elif isinstance(value, Payload):
        payload = value
    elif isinstance(value, (bytes, bytearray, memoryview)):  # a union is made at each call
        payload = Payload(OCTETS, bytes(value))
    elif isinstance(value, str):
        try:
            payload = Payload(TEXT, value.encode())
        except UnicodeEncodeError as error:
            raise bad_field(field, f"can not be written as UTF-8: {error}") from error
    else:
        payload = Payload(JSON, _json(value, field))
    if len(payload.data) > PAYLOAD_BYTES_MAX:
        description = (
            f"is {len(payload.data):,} bytes, at most {PAYLOAD_BYTES_MAX:,} travel inline: "
            "store it where both sides can read it and send the reference"
        )
        raise InvalidRequestError(
            f"{field} {description}",
            reason="PAYLOAD_TOO_LARGE",
            violations=[Violation(field, description)],
            metadata={"limit_bytes": str(PAYLOAD_BYTES_MAX), "size_bytes": str(len(payload.data))},
        )
    return payload


def decode(payload: Payload) -> Any:
    """Return the Python value of a payload; bytes when its media type is unknown or does not fit its data.

    An empty payload without a media type is None.
    """
    media_type = payload.content_type.partition(";")[0].strip().lower()
    try:
        if media_type == JSON or media_type.endswith("+json"):
            return json.loads(payload.data)
        if media_type.startswith("text/"):
            return payload.data.decode()
    except ValueError:
        # Sent under a false media type; the receiver's code can still look at the bytes.
        return payload.data
    return None if not media_type and not payload.data else payload.data


def _json(value: Any, field: str) -> bytes:
    try:
        return _ENCODER.encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise bad_field(field, f"can not be written as JSON: {error}") from error
