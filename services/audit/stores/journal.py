"""Pending entries on disk: numbered segment files, one of which is being written.

The format and what a torn end means are in `core/journal.py`. The order of the calls here:

commit    write record · sync file                                      -> durable
new one   create temporary · write opening · sync file · rename · sync directory, then as above
release   remove, oldest first; a removal that a crash undoes is made again

A commit that raised leaves its segment for good: the next commit opens a new one, whose opening record says
from which leaf index on the older segments do not count. So it does not matter whether the failed record is
on disk, half on disk, or will be one day (the state of a file after a failed sync is unknown).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from services.audit.core.journal import SALT_BYTES, Segment, decode_segment, encode_batch, encode_opening
from services.audit.core.model import Batch, Producer
from services.audit.core.recovery import relevant_segments
from services.audit.core.tree import ContradictionError
from services.audit.stores.disk import Disk, mapped_errors

_SUFFIX = ".journal"
_TEMPORARY = "opening.temporary"


class Journal:
    """The segments of one directory. After `load`, owned by the thread that commits."""

    def __init__(self, disk: Disk, directory: Path, segment_bytes_max: int) -> None:
        self._disk, self._directory, self._segment_bytes_max = disk, directory, segment_bytes_max
        # By number, oldest first: the leaf index at which each segment starts.
        self._first_indices: dict[int, int] = {}
        # The number that no segment had yet, not even one whose making failed.
        self._next_number = 1
        # The segment that is written to; None makes the next commit open a new one.
        self._file: int | None = None
        self._salt = b""
        self._length = 0

    def __repr__(self) -> str:
        return f"Journal({self._directory}, {len(self._first_indices)} segments, last {self._length} bytes)"

    @property
    def present(self) -> bool:
        """Whether there is any segment on disk."""
        return any(name.endswith(_SUFFIX) for name in self._disk.names(self._directory))

    def load(self, size: int) -> list[tuple[str, Segment]]:
        """Return the segments with leaves from index `size` on, oldest first, and forget the others."""
        numbers = sorted(
            int(name.removesuffix(_SUFFIX))
            for name in self._disk.names(self._directory)
            if name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX).isdigit()
        )
        if not numbers:
            raise ContradictionError(f"{self._directory} has no journal: files are missing")
        segments = []
        for number in numbers:
            path = self._path(number)
            segments.append((path.name, decode_segment(path.name, self._disk.read(path))))
        self._first_indices = {
            number: segment.first_index for number, (_, segment) in zip(numbers, segments, strict=True)
        }
        self._next_number = numbers[-1] + 1
        return segments[relevant_segments(list(self._first_indices.values()), size) :]

    def commit(self, batch: Batch, standing: Mapping[Producer, int]) -> None:
        """Make `batch` durable."""
        with mapped_errors("the entries"):
            file = self._file
            if file is None or self._length >= self._segment_bytes_max:
                file = self.begin_segment(batch.first_index, standing)
            record = encode_batch(self._salt, batch)
            try:
                self._disk.write(file, record)
                # Commit point: when this returns, a crash loses nothing of the batch.
                self._disk.sync(file)
            except OSError:
                # Gives back the room of what was not kept; nothing depends on it.
                with suppress(OSError):
                    self._disk.truncate(file, self._length)
                self.close()
                raise
            self._length += len(record)

    def begin_segment(self, first_index: int, standing: Mapping[Producer, int]) -> int:
        """Open a new segment, from whose first index on older ones do not count; return its descriptor.

        Raises OSError; then nothing has changed that a later try or a restart would have to know.
        """
        self.close()
        salt = os.urandom(SALT_BYTES)
        opening = encode_opening(salt, first_index, standing)
        number, temporary = self._next_number, self._directory / _TEMPORARY
        # Never used again, even if what follows fails half way.
        self._next_number += 1
        file = self._disk.create(temporary)
        try:
            self._disk.write(file, opening)
            self._disk.sync(file)
            self._disk.rename(temporary, self._path(number))
            self._disk.sync_directory(self._directory)
        except OSError:
            self._disk.close(file)
            raise
        self._file, self._salt, self._length = file, salt, len(opening)
        self._first_indices[number] = first_index
        return file

    def release(self, size: int) -> None:
        """Remove the segments that hold nothing from leaf index `size` on."""
        numbers = list(self._first_indices)
        with mapped_errors("a journal segment"):
            for number in numbers[: relevant_segments(list(self._first_indices.values()), size)]:
                # A segment whose making failed after the rename is on disk without being known here; it
                # starts where its successor does, so that `load` passes over it.
                with suppress(FileNotFoundError):
                    self._disk.remove(self._path(number))
                del self._first_indices[number]

    def close(self) -> None:
        """Stop writing; the next commit opens a new segment."""
        if self._file is not None:
            file, self._file = self._file, None
            self._disk.close(file)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:020d}{_SUFFIX}"
