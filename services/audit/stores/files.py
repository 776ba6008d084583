"""The log as files. The part below `log/` is a C2SP tlog-tiles prefix that any verifier can read.

    lock                  held (flock) while a process has the log open
    log.key               the private key, 0600
    inception             there only between the first step of a first start and its last
    log/checkpoint        the newest signed tree head
    log/tile/...          tiles and entry bundles, full and partial
    pending/*.journal     entries that are durable and not yet under a checkpoint, and where producers stand
    temporary/            files that have no name yet; emptied at each start

The order of what becomes durable, and what a crash after each step leaves behind:

first start  inception · journal · key · checkpoint of 0 leaves · remove inception
             until the last but one: `inception` is there and no checkpoint, so the first start is made again.
append       see journal.py.
integrate    1 each tile: write to temporary/ · sync · rename into log/tile
             2 each directory that got a name: sync
               -> a crash until here leaves tiles beyond the checkpoint; the same leaves make them again
             3 checkpoint: write to temporary/ · sync · rename · sync log/      (commit point)
               -> the rename may be seen by others before it is durable; a crash then brings back the older
                  checkpoint, and the journal, which is older than both, leads to a tree that contains both
             4 remove the partial tiles that the full ones replace
               -> a crash here leaves some of them behind, which is harmless
A fork would need a signed checkpoint over leaves that are not durable in their order: step 1 takes only
leaves whose commit succeeded, so there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from services.audit.core.checkpoint import MalformedCheckpointError, Signer, TreeHead, open_own, sign
from services.audit.core.merkle import EMPTY_ROOT
from services.audit.core.model import Batch, Producer, Recovered
from services.audit.core.recovery import recover
from services.audit.core.tiles import CHECKPOINT_PATH, TilePath, cut
from services.audit.core.tree import ContradictionError, Growth
from services.audit.store import LogUnusableError, Opened
from services.audit.stores.disk import Directories, Disk, mapped_errors, write_new
from services.audit.stores.journal import Journal
from services.audit.stores.key import create_key, load_key
from services.common.core.errors import Reason, ServiceError

SEGMENT_BYTES_MAX = 16 * 2**20


class FilesLog:
    """A `LogStore` in a directory of its own."""

    def __init__(
        self,
        directory: Path,
        origin: str,
        *,
        key_path: Path | None = None,
        disk: Disk | None = None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
    ) -> None:
        self._directory, self._origin = directory, origin
        self._key_path = key_path or directory / "log.key"
        self._disk = disk or Disk()
        self._log = directory / "log"
        self._temporary = directory / "temporary"
        self._inception = directory / "inception"
        # The descriptor that holds the lock while the log is open.
        self._lock: int | None = None
        # Owned by the thread that integrates.
        self._directories = Directories(self._disk, directory)
        # Owned by the thread that commits.
        self._journal = Journal(self._disk, directory / "pending", segment_bytes_max)

    def __repr__(self) -> str:
        return f"FilesLog({self._directory}, {'open' if self._lock is not None else 'closed'})"

    def open(self, *, first_start: bool) -> Opened:
        """See `LogStore.open`."""
        with mapped_errors(f"the log in {self._directory}"):
            # What an earlier opening knew may have changed since.
            self._directories = Directories(self._disk, self._directory)
            self._directories.ensure(self._directory)
            self._take_lock()
            try:
                return self._open(first_start=first_start)
            except BaseException:
                # Whatever it was, also Ctrl-C: a log that did not open must not stay locked.
                self.close()
                raise

    def commit(self, batch: Batch, standing: Mapping[Producer, int]) -> None:
        """See `LogStore.commit`."""
        self._journal.commit(batch, standing)

    def integrate(self, growth: Growth, checkpoint: bytes) -> None:
        """See `LogStore.integrate`."""
        with mapped_errors("the tree"):
            named_in = {self._put(str(path), data) for path, data in growth.files}
            for directory in sorted(named_in):
                self._disk.sync_directory(directory)
            # The tiles are durable. Only now may anyone see a checkpoint over them.
            self._disk.sync_directory(self._put(CHECKPOINT_PATH, checkpoint))
            # Commit point: from here on a restart finds this checkpoint.
        for path in growth.completed:
            # A partial tile that stays behind is never read again: what can go wrong here may.
            with suppress(OSError):
                self._remove_partials(self._log / f"{path}.p")

    def release(self, size: int) -> None:
        """See `LogStore.release`."""
        self._journal.release(size)

    def read(self, path: TilePath) -> bytes:
        """See `LogStore.read`."""
        with mapped_errors(str(path)):
            for stored in (path, path.full):
                try:
                    data = self._disk.read(self._log / str(stored))
                except FileNotFoundError:
                    continue
                return data if stored == path else cut(stored, data, path.width)
        raise ServiceError(Reason.ENTRY_NOT_FOUND, f"{path} is not in the log")

    def close(self) -> None:
        """See `LogStore.close`."""
        self._journal.close()
        if self._lock is not None:
            lock, self._lock = self._lock, None
            self._disk.close(lock)

    def _open(self, *, first_start: bool) -> Opened:
        for directory in (self._log, self._directory / "pending", self._temporary):
            self._directories.ensure(directory)
        for name in self._disk.names(self._temporary):
            self._disk.remove(self._temporary / name)
        if not self._disk.exists(self._log / CHECKPOINT_PATH):
            self._begin_log(first_start=first_start)
        if self._disk.exists(self._inception):
            self._disk.remove(self._inception)
            # Else a crash could bring it back, and with it the right to make a new log.
            self._disk.sync_directory(self._directory)
        signer = load_key(self._disk, self._key_path)
        return Opened(signer, self._recover(signer))

    def _recover(self, signer: Signer) -> Recovered:
        note = self._disk.read(self._log / CHECKPOINT_PATH)
        try:
            head = open_own(note, self._origin, signer)
        except MalformedCheckpointError as error:
            raise ContradictionError(f"{self._log / CHECKPOINT_PATH}: {error}") from error
        try:
            return recover(note, head, self._journal.load(head.size), self._read_whole)
        except ContradictionError as error:
            raise ContradictionError(
                f"the log in {self._directory} must not be continued: {error}"
            ) from error

    def _read_whole(self, path: TilePath) -> bytes:
        try:
            return self.read(path)
        except ServiceError as error:
            if error.reason is Reason.ENTRY_NOT_FOUND:
                raise ContradictionError(f"{path} is missing") from error
            raise

    def _begin_log(self, *, first_start: bool) -> None:
        """Make the log of 0 leaves, if there can not have been one before."""
        key_exists = self._disk.exists(self._key_path)
        if self._disk.exists(self._log / "tile"):
            raise ContradictionError(f"{self._log} has tiles but no checkpoint: files are missing")
        if not self._disk.exists(self._inception):
            if self._journal.present:
                raise ContradictionError(
                    f"{self._directory} has a journal but no checkpoint: files are missing"
                )
            if key_exists and not first_start:
                raise LogUnusableError(
                    f"{self._directory} holds no log, but the key {self._key_path} exists: "
                    "bring the log back, or set first_start if this key never signed one"
                )
            write_new(self._disk, self._inception, b"")
            self._disk.sync_directory(self._directory)
        self._journal.begin_segment(0, {})
        self._journal.close()
        signer = (
            load_key(self._disk, self._key_path) if key_exists else create_key(self._disk, self._key_path)
        )
        self._disk.sync_directory(
            self._put(CHECKPOINT_PATH, sign(self._origin, TreeHead(0, EMPTY_ROOT), signer))
        )

    def _take_lock(self) -> None:
        if self._lock is not None:
            raise LogUnusableError(f"the log in {self._directory} is open already")
        lock = self._disk.lock(self._directory / "lock")
        if lock is None:
            raise LogUnusableError(f"another process has the log in {self._directory} open: stop it first")
        self._lock = lock

    def _put(self, path: str, data: bytes) -> Path:
        """Give `data` its place below `log/`; return the directory that must be synced for it to stay."""
        target = self._log / path
        temporary = self._temporary / path.replace("/", "-")
        self._directories.ensure(target.parent)
        write_new(self._disk, temporary, data)
        self._disk.rename(temporary, target)
        return target.parent

    def _remove_partials(self, directory: Path) -> None:
        self._directories.forget(directory)
        names = self._disk.names(directory)
        for name in names:
            self._disk.remove(directory / name)
        if names:
            self._disk.remove_directory(directory)
