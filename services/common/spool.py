"""An append-only, numbered, crash-safe queue of records on disk. Synchronous; `outbox.py` gives it threads.

Files: `spool.json` (format, spool id) and segments named by the sequence number of their first record. A
record is `<u32 length><u32 CRC-32 of length and payload><payload>`, little endian. Segments are deleted when
all their records are acked, except the last, whose name keeps the numbering.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1
SEGMENT_BYTES_MAX = 4 * 1024 * 1024
# A record is an audit entry; more than this in a length field is damage.
RECORD_BYTES_MAX = 1024 * 1024
_HEADER = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
# A write returns when its bytes, and what is needed to find them, are on the disk; see open(2).
_APPEND = os.O_WRONLY | os.O_DSYNC


class SpoolError(Exception):
    """The spool can not be used as it is; the message says what a person should do."""


@dataclass(slots=True)
class _Segment:
    path: Path
    first: int
    # Records and bytes of it that are durable; what lies behind them in the file does not exist.
    count: int
    size: int

    @property
    def next(self) -> int:
        return self.first + self.count


class Spool:
    """Records numbered 1, 2, 3 … across restarts.

    Durability:  when `append` returns, its records survive power loss; when it raises OSError, none of them
                 is there and their numbers are free. (After a restart they may be back only if the disk
                 refused to cut them off as well and nothing was appended since.)
    Concurrency: `append` and `ack` on one thread, `read` on another. `_lock` guards the list of segments and
                 their counts; files are written and read outside of it.
    """

    def __init__(self, directory: Path, spool_id: str, segments: list[_Segment], lock_file: int) -> None:
        self.directory, self.spool_id = directory, spool_id
        self._lock = threading.Lock()
        self._segments = segments
        # Keeps a second process out; closed last.
        self._lock_file = lock_file
        # The last segment's file, or None after a failed write: then the next append starts a new one.
        self._file: int | None = os.open(segments[-1].path, _APPEND)
        os.lseek(self._file, segments[-1].size, os.SEEK_SET)
        # Owned by the reading thread: where the last read ended (segment, next record's number, its offset).
        self._cursor = (segments[-1].path, 0, 0)

    @classmethod
    def open(cls, directory: Path) -> Spool:
        """Open or create the spool in `directory`, cutting off a torn tail.

        Raises `SpoolError` when another process has it open, or when a record that was acknowledged is
        damaged.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_file = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SpoolError(f"{directory} is in use by another process: stop that one first") from error
            spool_id = _spool_id(directory)
            return cls(directory, spool_id, _recover(directory), lock_file)
        except BaseException:
            # Whatever it was, also Ctrl-C: a spool that did not open must not stay locked.
            os.close(lock_file)
            raise

    @property
    def first_sequence(self) -> int:
        """The oldest record that is still here, or `next_sequence` when there is none."""
        return self._segments[0].first

    @property
    def next_sequence(self) -> int:
        """The number that the next record gets."""
        return self._segments[-1].next

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        with self._lock:
            return sum(segment.size for segment in self._segments)

    def append(self, payloads: Sequence[bytes]) -> None:
        """Keep `payloads` durably under the next numbers, all or none."""
        if self._file is None or self._segments[-1].size >= SEGMENT_BYTES_MAX:
            self._start_segment()
        segment, file = self._segments[-1], self._file
        assert file is not None  # noqa: S101  # _start_segment opened it or raised
        frames = b"".join([_frame(payload) for payload in payloads])
        try:
            # Commit point: written with O_DSYNC, what is behind this line is there after any crash; recovery
            # cuts off the rest. One call instead of two (write, fdatasync), since after each a thread waits
            # for its turn to run Python.
            _write_all(file, frames)
        except OSError:
            self._abandon(file, segment)
            raise
        with self._lock:
            segment.count += len(payloads)
            segment.size += len(frames)

    def ack(self, sequence: int) -> None:
        """Forget what is numbered up to `sequence`; whole segments at a time, never the last."""
        with self._lock:
            done = [segment for segment in self._segments[:-1] if segment.next <= sequence + 1]
            del self._segments[: len(done)]
        for segment in done:
            # A crash in between leaves segments that are acked again after the restart.
            segment.path.unlink(missing_ok=True)

    def read(self, sequence: int, records_max: int, bytes_max: int) -> list[bytes]:
        """Return records from `sequence` on, at least one when there is one, within both bounds.

        Raises `SpoolError` when a record is damaged on disk.
        """
        with self._lock:
            segment = next((one for one in self._segments if one.first <= sequence < one.next), None)
            if segment is None:
                return []
            path, first, size = segment.path, segment.first, segment.size
        at, offset = first, 0
        if self._cursor[:2] == (path, sequence):
            # The shipper reads on where it stopped; a jump (a reconnect) walks from the segment's start.
            at, offset = self._cursor[1:]
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(min(size - offset, bytes_max + RECORD_BYTES_MAX) if offset else size)
        records: list[bytes] = []
        total = 0
        for payload in _payloads(memoryview(content)):
            if at >= sequence:
                if records and (len(records) >= records_max or total + len(payload) > bytes_max):
                    break
                records.append(payload)
                total += len(payload)
            at += 1
            offset += _HEADER.size + len(payload)
        if not records:
            raise SpoolError(f"{path}: record {sequence} is damaged: keep the file, restore the disk")
        self._cursor = (path, at, offset)
        return records

    def close(self) -> None:
        """Close the files; what was appended is durable already."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    def _start_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        segment = _create_segment(self.directory, self.next_sequence)
        self._file = os.open(segment.path, _APPEND)
        with self._lock:
            if self._segments[-1].count == 0:
                # The last one was abandoned before its first record: same name, same file.
                self._segments[-1] = segment
            else:
                self._segments.append(segment)

    def _abandon(self, file: int, segment: _Segment) -> None:
        """Leave a segment whose last write failed; a failed sync is not to be tried again (fsyncgate).

        Its tail may or may not be on disk. The next segment's name tells recovery where it ends.
        """
        self._file = None
        try:
            os.ftruncate(file, segment.size)
            os.fsync(file)
        except OSError:
            # Then the next segment's name alone does it.
            pass
        finally:
            os.close(file)


def _frame(payload: bytes) -> bytes:
    if not 0 < len(payload) <= RECORD_BYTES_MAX:
        raise ValueError(f"a record has 1 to {RECORD_BYTES_MAX} bytes, not {len(payload)}")
    length = _LENGTH.pack(len(payload))
    return length + _LENGTH.pack(zlib.crc32(payload, zlib.crc32(length))) + payload


def _payloads(content: memoryview) -> Iterator[bytes]:
    """Yield the whole records at the start of `content`; stops at the first that is torn or damaged."""
    offset, end = 0, len(content)
    while offset + _HEADER.size <= end:
        length, checksum = _HEADER.unpack_from(content, offset)
        start = offset + _HEADER.size
        if not 0 < length <= RECORD_BYTES_MAX or start + length > end:
            break
        payload = content[start : start + length]
        if zlib.crc32(payload, zlib.crc32(content[offset : offset + 4])) != checksum:
            break
        yield bytes(payload)
        offset = start + length


def _spool_id(directory: Path) -> str:
    path = directory / "spool.json"
    try:
        known = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if any(directory.glob("*.segment")):
            raise SpoolError(f"{path} is missing beside its segments: restore it or move all away") from None
        spool_id = secrets.token_hex(8)
        temporary = directory / "spool.json.new"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "spool_id": spool_id}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(directory)
        return spool_id
    except ValueError as error:
        raise SpoolError(f"{path} is not JSON: restore it") from error
    if known.get("format") != FORMAT or not isinstance(known.get("spool_id"), str):
        raise SpoolError(f"{path} has format {known.get('format')!r}, this program writes {FORMAT}")
    return str(known["spool_id"])


def _recover(directory: Path) -> list[_Segment]:
    paths = sorted(directory.glob("*.segment"))
    if not paths:
        return [_create_segment(directory, 1)]
    segments: list[_Segment] = []
    for index, path in enumerate(paths):
        first = int(path.stem)
        payloads = list(_payloads(memoryview(path.read_bytes())))
        if index + 1 < len(paths):
            # Records behind the next segment's first belong to a write that failed and was repeated there.
            wanted = int(paths[index + 1].stem) - first
            if len(payloads) < wanted:
                raise SpoolError(
                    f"{path}: record {first + len(payloads)} is damaged: keep the file, restore the disk, or "
                    f"move {directory} away and start a new spool"
                )
            payloads = payloads[:wanted]
        size = sum(_HEADER.size + len(payload) for payload in payloads)
        segments.append(_Segment(path, first, len(payloads), size))
    # What is torn at the very end was never acknowledged.
    with segments[-1].path.open("r+b") as file:
        file.truncate(segments[-1].size)
        os.fsync(file.fileno())
    return segments


def _create_segment(directory: Path, first: int) -> _Segment:
    path = directory / f"{first:020d}.segment"
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _sync_directory(directory)
    return _Segment(path, first, 0, 0)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
