"""Every way in which the log touches its disk, one method each.

This is the seam of the fault tests: they put a disk in its place that fails each call in turn, before or
after it took effect, or that loses at a crash whatever was not synced.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from services.common.core.errors import Reason, ServiceError

_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700


class Disk:
    """The real one. All calls raise OSError."""

    def create(self, path: Path) -> int:
        """Make an empty file, replacing one that is there, and return its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)

    def write(self, file: int, data: bytes) -> None:
        """Append all of `data`."""
        left = memoryview(data)
        while left:
            left = left[os.write(file, left) :]

    def sync(self, file: int) -> None:
        """Return when the content and the length of the file are durable."""
        os.fdatasync(file)

    def truncate(self, file: int, length: int) -> None:
        """Cut the file to `length` bytes."""
        os.ftruncate(file, length)

    def close(self, file: int) -> None:
        """Give the descriptor back."""
        os.close(file)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file its name, atomically; durable only with the target's directory."""
        source.rename(target)

    def sync_directory(self, path: Path) -> None:
        """Return when the names in the directory are durable."""
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def make_directory(self, path: Path) -> None:
        """Make one directory; durable only with its parent."""
        path.mkdir(_DIRECTORY_MODE)

    def remove(self, path: Path) -> None:
        """Remove one file; durable only with its directory."""
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        """Remove one empty directory; durable only with its parent."""
        path.rmdir()

    def read(self, path: Path) -> bytes:
        """Return the content of a file."""
        return path.read_bytes()

    def names(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted; none when it is not there."""
        return sorted(os.listdir(path)) if path.is_dir() else []

    def mode(self, path: Path) -> int:
        """Return the permission bits of a file."""
        return path.stat().st_mode & 0o777

    def lock(self, path: Path) -> int | None:
        """Return a descriptor that holds the lock file until it is closed; None when another one does."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    def exists(self, path: Path) -> bool:
        """Return whether there is a file or directory of this name."""
        return path.exists()


class Directories:
    """Makes the directories below `base` durable, each once in the life of the process.

    That one is there says nothing: an earlier try may have made it and then failed to sync its parent.
    """

    def __init__(self, disk: Disk, base: Path) -> None:
        self._disk, self._base = disk, base
        self._durable: set[Path] = set()

    def ensure(self, path: Path) -> None:
        """Make `path` where it is missing, up to `base`; all are durable on return. Raises OSError."""
        if path in self._durable:
            return
        if path != self._base:
            self.ensure(path.parent)
        if not self._disk.exists(path):
            self._disk.make_directory(path)
        # What is above the base may belong to somebody else, who then also answers for its names.
        with suppress(PermissionError) if path == self._base else nullcontext():
            self._disk.sync_directory(path.parent)
        self._durable.add(path)

    def forget(self, path: Path) -> None:
        """Take note that `path` is being removed."""
        self._durable.discard(path)


def write_new(disk: Disk, path: Path, data: bytes) -> None:
    """Write a file of its own; its content is durable on return, its name is not."""
    file = disk.create(path)
    try:
        disk.write(file, data)
        disk.sync(file)
    finally:
        disk.close(file)


@contextmanager
def mapped_errors(what: str) -> Iterator[None]:
    """Turn an OSError into the ServiceError that a caller is meant to see."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ServiceError(
                Reason.DISK_FULL,
                f"{what}: the audit service's disk is full, nothing was kept; free some and try again",
                retry_after_ms=1_000,
            ) from error
        raise ServiceError(
            Reason.STORE_UNAVAILABLE,
            f"{what}: the audit service's disk failed: {error.strerror or error}; try again",
            retry_after_ms=1_000,
        ) from error
