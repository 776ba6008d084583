"""The few rules of protobuf's encoding that the hot paths write by hand.

https://protobuf.dev/programming-guides/encoding/: a field is a tag (number * 8 + wire type) and a value; wire
type 0 is a varint (7 bits a byte, least significant first, the high bit says that more follow), 2 is a length
and that many bytes.
"""

from __future__ import annotations

#: A map is a list of messages with these two fields.
MAP_KEY, MAP_VALUE = 1, 2
_SMALL = 1 << 14


def _slow_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


# Two groups at a time from tables: a loop over single groups costs a microsecond for an ack token.
# MORE is what is written of 14 bits when more follow.
_TABLE = [_slow_varint(number) for number in range(_SMALL)]
MORE = [bytes((number & 0x7F | 0x80, number >> 7 | 0x80)) for number in range(_SMALL)]


# Of fields with numbers below 1,024: what stands before a length, and before a varint.
_FIELDS = range(1 << 10)
_BLOCK = [_TABLE[field << 3 | 2] for field in _FIELDS]
_SCALAR = [_TABLE[field << 3] for field in _FIELDS]


def varint(number: int) -> bytes:
    """Return 0 <= `number` < 2^64 as a varint."""
    if number < _SMALL:
        return _TABLE[number]
    out = b""
    while number >= _SMALL:
        out += MORE[number & 0x3FFF]
        number >>= 14
    return out + _TABLE[number]


def tag(field: int) -> bytes:
    """Return what stands before the length of a field of bytes, text, a message, or packed numbers."""
    return _BLOCK[field]


def scalar(field: int, number: int) -> bytes:
    """Return a varint field, also when it is 0: written out, it overrides an earlier value."""
    return _SCALAR[field] + (_TABLE[number] if 0 <= number < _SMALL else varint(number))


def block(field: int, content: bytes) -> bytes:
    """Return a field of bytes, text, a message, or packed numbers."""
    size = len(content)
    return _BLOCK[field] + (_TABLE[size] if size < _SMALL else varint(size)) + content


def text(field: int, content: str) -> bytes:
    """Return a field of text, nothing when it is empty."""
    if not content:
        return b""
    raw = content.encode()
    size = len(raw)
    return _BLOCK[field] + (_TABLE[size] if size < _SMALL else varint(size)) + raw


def timestamp(field: int, instant: int) -> bytes:
    """Return a google.protobuf.Timestamp of `instant` milliseconds, both of its fields written out."""
    seconds, milliseconds = divmod(instant, 1_000)
    return block(field, scalar(1, seconds) + scalar(2, milliseconds * 1_000_000))
