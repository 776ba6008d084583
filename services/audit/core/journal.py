"""How pending entries are written down: records in segments, and what a torn end means.

A segment starts with an *opening* record that says which leaf index follows and where every producer
stands; *batch* records follow, one per commit. Each record carries a checksum over all of it, keyed with
the segment's salt so that no entry can contain what would pass for a record.

Two rules make recovery decidable:

- A commit writes one record and waits until it is durable. So only the last record of a segment can be
  torn; a broken record with a good one behind it is damage, and the log refuses to start on it.
- A segment supersedes what older segments hold from its first index on. So a commit that failed, of which
  nobody knows whether it is on disk, is left behind by opening the next segment.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from services.audit.core.model import Batch, Producer
from services.audit.core.tiles import MalformedBundleError, decode_bundle, encode_bundle
from services.audit.core.tree import ContradictionError

_FILE_MARK = b"muster audit journal 1\n"
_RECORD_MARK = b"\xf1\x1fREC\n"
# Mark, checksum of what follows it, kind, bytes of the body.
_CHECKSUM_BYTES = 8
_RECORD = struct.Struct(f">6s{_CHECKSUM_BYTES}sBI")
_CHECKED_FROM = len(_RECORD_MARK) + _CHECKSUM_BYTES
_OPENING, _BATCH = 1, 2
_HEAD = struct.Struct(">QI")
_CURSOR = struct.Struct(">BBBQ")
SALT_BYTES = 16


class DamagedJournalError(ContradictionError):
    """A segment that cannot have come out of a crash; the message names the place."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as read."""

    # Leaf index that its first batch has.
    first_index: int
    # Where every producer stood then.
    cursors: Mapping[Producer, int]
    batches: tuple[Batch, ...]
    # Whether its last bytes are a record that was not finished.
    torn: bool

    @property
    def end_index(self) -> int:
        """The leaf index after its last leaf."""
        return self.batches[-1].end_index if self.batches else self.first_index


def encode_opening(salt: bytes, first_index: int, cursors: Mapping[Producer, int]) -> bytes:
    """Return the first bytes of a segment; `salt` is `SALT_BYTES` random bytes."""
    return _FILE_MARK + salt + _record(salt, _OPENING, _body(first_index, cursors, b""))


def encode_batch(salt: bytes, batch: Batch) -> bytes:
    """Return the record of one batch."""
    return _record(salt, _BATCH, _body(batch.first_index, batch.cursors, encode_bundle(batch.leaves)))


def decode_segment(name: str, data: bytes) -> Segment:
    """Return what a segment holds; `DamagedJournalError` when it holds what no crash leaves behind."""
    start = len(_FILE_MARK) + SALT_BYTES
    salt = data[len(_FILE_MARK) : start]
    records = _records(name, salt, data, start)
    opening = next(records, None)
    if not data.startswith(_FILE_MARK) or opening is None or opening.kind != _OPENING:
        # An opening is durable before the segment gets its name.
        raise DamagedJournalError(f"{name} does not start with a whole opening record")
    first_index, cursors, _ = _parse_body(name, opening)
    batches: list[Batch] = []
    end, index = opening.end, first_index
    for record in records:
        batch = Batch(*_parse_batch(name, record))
        if record.kind != _BATCH or batch.first_index != index:
            raise DamagedJournalError(
                f"{name}: the record at byte {record.start} does not continue leaf {index}"
            )
        batches.append(batch)
        end, index = record.end, batch.end_index
    return Segment(first_index, cursors, tuple(batches), torn=end < len(data))


@dataclass(frozen=True, slots=True)
class _Record:
    start: int
    end: int
    kind: int
    body: bytes


def _record(salt: bytes, kind: int, body: bytes) -> bytes:
    head = struct.pack(">BI", kind, len(body))
    return b"".join([_RECORD_MARK, _checksum(salt, head, body), head, body])


def _checksum(salt: bytes, head: bytes, body: bytes) -> bytes:
    total = blake2b(head, digest_size=_CHECKSUM_BYTES, key=salt)
    total.update(body)
    return total.digest()


def _record_at(salt: bytes, data: bytes, at: int) -> _Record | None:
    body_start = at + _RECORD.size
    if len(data) < body_start:
        return None
    mark, checksum, kind, length = _RECORD.unpack_from(data, at)
    body = data[body_start : body_start + length]
    if mark != _RECORD_MARK or len(body) != length:
        return None
    if _checksum(salt, data[at + _CHECKED_FROM : body_start], body) != checksum:
        return None
    return _Record(at, body_start + length, kind, body)


def _records(name: str, salt: bytes, data: bytes, at: int) -> Iterator[_Record]:
    while record := _record_at(salt, data, at):
        yield record
        at = record.end
    later = data.find(_RECORD_MARK, at + 1)
    while later >= 0:
        if _record_at(salt, data, later):
            raise DamagedJournalError(
                f"{name}: the record at byte {at} is broken, but a whole one follows at byte {later}; "
                "restore the file from a backup"
            )
        later = data.find(_RECORD_MARK, later + 1)


def _body(first_index: int, cursors: Mapping[Producer, int], bundle: bytes) -> bytes:
    parts = [_HEAD.pack(first_index, len(cursors))]
    for producer, sequence in cursors.items():
        names = [name.encode() for name in producer]
        parts.append(_CURSOR.pack(*map(len, names), sequence))
        parts.extend(names)
    return b"".join([*parts, bundle])


def _parse_body(name: str, record: _Record) -> tuple[int, dict[Producer, int], bytes]:
    body = record.body
    try:
        first_index, count = _HEAD.unpack_from(body)
        at, cursors = _HEAD.size, {}
        for _ in range(count):
            *lengths, sequence = _CURSOR.unpack_from(body, at)
            at += _CURSOR.size
            names = []
            for length in lengths:
                names.append(body[at : at + length].decode())
                at += length
            cursors[Producer(*names)] = sequence
    except (struct.error, UnicodeDecodeError):
        raise DamagedJournalError(f"{name}: the record at byte {record.start} cannot be read") from None
    return first_index, cursors, body[at:]


def _parse_batch(name: str, record: _Record) -> tuple[int, tuple[bytes, ...], dict[Producer, int]]:
    first_index, cursors, bundle = _parse_body(name, record)
    try:
        return first_index, tuple(decode_bundle(bundle)), cursors
    except MalformedBundleError:
        raise DamagedJournalError(f"{name}: the record at byte {record.start} cannot be read") from None
