"""Disks for the fault tests of the audit log: one that forgets at a crash, one that fails when told to.

`SimulatedDisk` keeps apart what a program sees and what would survive a power cut. It is harsher than any
file system in use: unsynced names survive or vanish one by one, unsynced content may be there, not there,
in part, or as zeros.
"""

import errno
import random
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.audit.stores.disk import Disk

# The calls that change something; reading and asking can not lose data.
MUTATIONS = (
    "create",
    "write",
    "sync",
    "truncate",
    "rename",
    "sync_directory",
    "make_directory",
    "remove",
    "remove_directory",
)


class PowerCutError(BaseException):
    """The machine stopped here; not an error that a program could handle."""


@dataclass(eq=False)
class File:
    seen: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


@dataclass(eq=False)
class Directory:
    seen: "dict[str, File | Directory]" = field(default_factory=dict)
    durable: "dict[str, File | Directory]" = field(default_factory=dict)


class SimulatedDisk(Disk):
    def __init__(self) -> None:
        self.root = Directory()
        self._open: dict[int, File] = {}
        self._locked: dict[int, Path] = {}
        self._next = 100

    def cut_power(self, choose: random.Random) -> "SimulatedDisk":
        """Return the disk as it is found after a power cut now."""
        after = SimulatedDisk()
        after.root = _survivors(self.root, choose, {})
        return after

    def create(self, path: Path) -> int:
        parent, made = self._parent(path), File()
        parent.seen[path.name] = made
        return self._descriptor(made)

    def write(self, file: int, data: bytes) -> None:
        self._open[file].seen += data

    def sync(self, file: int) -> None:
        self._open[file].durable = bytes(self._open[file].seen)

    def truncate(self, file: int, length: int) -> None:
        del self._open[file].seen[length:]

    def close(self, file: int) -> None:
        if self._locked.pop(file, None) is None:
            del self._open[file]

    def rename(self, source: Path, target: Path) -> None:
        self._parent(target).seen[target.name] = self._parent(source).seen.pop(source.name)

    def sync_directory(self, path: Path) -> None:
        directory = self._directory(path)
        directory.durable = dict(directory.seen)

    def make_directory(self, path: Path) -> None:
        if path.name in self._parent(path).seen:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        self._parent(path).seen[path.name] = Directory()

    def remove(self, path: Path) -> None:
        if path.name not in self._parent(path).seen:
            raise FileNotFoundError(errno.ENOENT, "not there", str(path))
        del self._parent(path).seen[path.name]

    def remove_directory(self, path: Path) -> None:
        if self._directory(path).seen:
            raise OSError(errno.ENOTEMPTY, "not empty", str(path))
        del self._parent(path).seen[path.name]

    def read(self, path: Path) -> bytes:
        found = self._parent(path).seen.get(path.name)
        if not isinstance(found, File):
            raise FileNotFoundError(errno.ENOENT, "not there", str(path))
        return bytes(found.seen)

    def names(self, path: Path) -> list[str]:
        return sorted(self._directory(path).seen) if self.exists(path) else []

    def mode(self, path: Path) -> int:
        return 0o600

    def lock(self, path: Path) -> int | None:
        if path in self._locked.values():
            return None
        self._next += 1
        self._locked[self._next] = path
        return self._next

    def exists(self, path: Path) -> bool:
        try:
            return path.parent == path or path.name in self._parent(path).seen
        except FileNotFoundError:
            return False

    def _parent(self, path: Path) -> Directory:
        return self._directory(path.parent)

    def _directory(self, path: Path) -> Directory:
        found: File | Directory = self.root
        for part in path.parts[1:]:
            below = found.seen.get(part) if isinstance(found, Directory) else None
            if not isinstance(below, Directory):
                raise FileNotFoundError(errno.ENOENT, "not there", str(path))
            found = below
        assert isinstance(found, Directory)
        return found

    def _descriptor(self, file: File) -> int:
        self._next += 1
        self._open[self._next] = file
        return self._next


def _survivors(directory: Directory, choose: random.Random, made: dict[int, File]) -> Directory:
    kept = Directory()
    for name in sorted({*directory.seen, *directory.durable}):
        seen, durable = directory.seen.get(name), directory.durable.get(name)
        found = seen if seen is durable else choose.choice([seen, durable])
        if isinstance(found, Directory):
            kept.seen[name] = _survivors(found, choose, made)
        elif isinstance(found, File):
            # One file under two names, the old and the new one of a rename, stays one file.
            if id(found) not in made:
                content = _content(found, choose)
                made[id(found)] = File(bytearray(content), content)
            kept.seen[name] = made[id(found)]
    kept.durable = dict(kept.seen)
    return kept


def _content(file: File, choose: random.Random) -> bytes:
    seen, durable = bytes(file.seen), file.durable
    if seen == durable:
        return seen
    if not seen.startswith(durable):
        # Cut short, and the cut is not synced.
        return choose.choice([seen, durable])
    added = seen[len(durable) :]
    kept = choose.randint(0, len(added))
    return choose.choice(
        [
            seen,
            durable,
            durable + added[:kept],
            durable + bytes(len(added)),
            durable + added[:kept] + bytes(7),
        ]
    )


class FaultyDisk:
    """A disk that does something else at some calls: `at` names them, counting mutations from 0.

    `before` says whether it happens before the call took effect, or after.
    """

    def __init__(
        self, disk: Disk, happens: Callable[[str], None], at: Container[int], *, before: bool
    ) -> None:
        self._disk, self._happens, self.at, self._before = disk, happens, at, before
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._disk, name)
        if name not in MUTATIONS:
            return real

        def call(*args: Any) -> Any:
            due = len(self.calls) in self.at
            self.calls.append(name)
            if due and self._before:
                self._happens(name)
            result = real(*args)
            if due:
                self._happens(name)
            return result

        return call


def fails_with(number: int) -> Callable[[str], None]:
    """Return what happens when a call fails with that errno."""

    def happens(name: str) -> None:
        raise OSError(number, f"injected into {name}")

    return happens


def cuts_power(name: str) -> None:
    """The machine stops."""
    raise PowerCutError(name)
