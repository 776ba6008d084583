"""One suite for every `LogStore`, and what only the one on disk can get wrong."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.audit.core.checkpoint import TreeHead, open_own, sign
from services.audit.core.merkle import EMPTY_ROOT
from services.audit.core.model import Batch, Producer, Recovered
from services.audit.core.tiles import TilePath, decode_bundle
from services.audit.core.tree import ContradictionError, Tree, grow
from services.audit.store import LogStore, LogUnusableError, Opened
from services.audit.stores.files import FilesLog
from services.audit.stores.memory import MemoryLog
from services.common.core.errors import Reason, ServiceError

ORIGIN = "muster.internal/audit"
P = Producer("broker", "broker-1", "spool")


def leaves(first: int, end: int) -> tuple[bytes, ...]:
    return tuple(b"leaf %d" % n for n in range(first, end))


class Log:
    """A store with what its driver would know."""

    def __init__(self, make: Callable[[], LogStore]) -> None:
        self.make = make
        self.store = make()
        self.opened: Opened

    def open(self, *, first_start: bool = False) -> Recovered:
        self.opened = self.store.open(first_start=first_start)
        self.tree = self.opened.recovered.tree
        self.size = self.tree.size + len(self.opened.recovered.pending)
        return self.opened.recovered

    def reopen(self) -> Recovered:
        self.store.close()
        return self.open()

    def commit(self, count: int) -> None:
        standing = {P: self.size} if self.size else {}
        end = self.size + count
        self.store.commit(Batch(self.size, leaves(self.size, end), {P: end}), standing)
        self.size = end

    def integrate(self) -> bytes:
        growth = grow(self.tree, leaves(self.tree.size, self.size))
        note = sign(ORIGIN, TreeHead(growth.tree.size, growth.tree.root()), self.opened.signer)
        self.store.integrate(growth, note)
        self.tree = growth.tree
        return note


@pytest.fixture(params=["memory", "files"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    memory = MemoryLog(ORIGIN)
    made = Log(lambda: memory if request.param == "memory" else FilesLog(tmp_path, ORIGIN))
    made.open()
    yield made
    made.store.close()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Log]:
    made = Log(lambda: FilesLog(tmp_path / "audit", ORIGIN, segment_bytes_max=1_000))
    yield made
    made.store.close()


def test_a_new_log_is_empty_and_signed(log: Log) -> None:
    recovered = log.opened.recovered
    assert (recovered.tree, recovered.pending, recovered.cursors) == (Tree(), (), {})
    assert open_own(recovered.checkpoint, ORIGIN, log.opened.signer) == TreeHead(0, EMPTY_ROOT)


def test_committed_entries_are_pending_after_a_restart(log: Log) -> None:
    log.commit(3)
    log.commit(300)
    recovered = log.reopen()
    assert recovered.pending == leaves(0, 303)
    assert recovered.cursors == {P: 303}
    assert recovered.tree == Tree()


def test_integrated_entries_are_in_the_tree_after_a_restart(log: Log) -> None:
    log.commit(300)
    note = log.integrate()
    log.commit(5)
    recovered = log.reopen()
    assert recovered.checkpoint == note
    assert recovered.tree == grow(Tree(), leaves(0, 300)).tree
    assert recovered.pending == leaves(300, 305)


def test_the_numbering_of_a_producer_outlives_its_entries_release(log: Log) -> None:
    log.commit(300)
    log.integrate()
    log.store.release(300)
    recovered = log.reopen()
    assert recovered.cursors == {P: 300}
    assert recovered.pending == ()
    log.commit(1)
    assert log.reopen().pending == leaves(300, 301)


def test_release_keeps_what_no_checkpoint_covers(log: Log) -> None:
    for _ in range(10):
        log.commit(40)
        log.commit(10)
        log.size -= 10
        log.integrate()
        log.size += 10
        log.store.release(log.tree.size)
    recovered = log.reopen()
    assert recovered.tree.size + len(recovered.pending) == 500
    assert recovered.pending == leaves(490, 500)


def test_tiles_of_every_width_can_be_read(log: Log) -> None:
    for size in (10, 200, 300):
        log.commit(size - log.size)
        log.integrate()
    whole = dict(grow(Tree(), leaves(0, 300)).files)
    for path, data in whole.items():
        assert log.store.read(path) == data
    assert decode_bundle(log.store.read(TilePath(None, 0, 17))) == list(leaves(0, 17))
    assert log.store.read(TilePath(0, 0, 200)) == whole[TilePath(0, 0)][: 200 * 32]
    with pytest.raises(ServiceError) as caught:
        log.store.read(TilePath(0, 2))
    assert caught.value.reason is Reason.ENTRY_NOT_FOUND


def test_one_at_a_time_has_the_log(log: Log) -> None:
    with pytest.raises(LogUnusableError, match="open"):
        log.store.open(first_start=False)
    other = log.make()
    with pytest.raises(LogUnusableError, match="open"):
        other.open(first_start=False)


# Only on disk.


def test_the_files_are_the_owners_only(files: Log, tmp_path: Path) -> None:
    files.open()
    files.commit(300)
    files.integrate()
    for path in (tmp_path / "audit").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_the_layout_is_that_of_the_specification(files: Log, tmp_path: Path) -> None:
    files.open()
    files.commit(300)
    files.integrate()
    root = tmp_path / "audit/log"
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert found == {
        "checkpoint",
        "tile/0/000",
        "tile/0/001.p/44",
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/44",
    }


def test_partial_tiles_go_when_the_full_one_is_there(files: Log, tmp_path: Path) -> None:
    files.open()
    for size in (10, 200, 255, 256):
        files.commit(size - files.size)
        files.integrate()
    root = tmp_path / "audit/log/tile"
    assert sorted(path.name for path in (root / "0").iterdir()) == ["000"]
    assert sorted(path.name for path in (root / "entries").iterdir()) == ["000"]


def test_old_segments_go_when_they_are_released(files: Log, tmp_path: Path) -> None:
    files.open()
    for _ in range(10):
        files.commit(50)
        files.integrate()
    pending = tmp_path / "audit/pending"
    assert len(list(pending.iterdir())) > 5
    files.store.release(files.size)
    assert len(list(pending.iterdir())) == 1
    assert files.reopen().pending == ()


def test_a_missing_key_stops_the_log(files: Log, tmp_path: Path) -> None:
    files.open()
    files.store.close()
    (tmp_path / "audit/log.key").unlink()
    with pytest.raises(LogUnusableError, match="is missing: restore it"):
        files.open()
    with pytest.raises(LogUnusableError, match="is missing: restore it"):
        files.open(first_start=True)


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_key_file_that_is_none_stops_the_log(files: Log, tmp_path: Path, content: bytes) -> None:
    files.open()
    files.store.close()
    (tmp_path / "audit/log.key").write_bytes(content)
    with pytest.raises(LogUnusableError, match="no unencrypted Ed25519"):
        files.open()


def test_a_key_that_others_can_read_stops_the_log(files: Log, tmp_path: Path) -> None:
    files.open()
    files.store.close()
    (tmp_path / "audit/log.key").chmod(0o644)
    with pytest.raises(LogUnusableError, match="chmod 600"):
        files.open()


def test_another_key_does_not_continue_the_log(files: Log, tmp_path: Path) -> None:
    files.open()
    files.store.close()
    other = FilesLog(tmp_path / "other", ORIGIN)
    other.open(first_start=False)
    other.close()
    shutil.copy(tmp_path / "other/log.key", tmp_path / "audit/log.key")
    with pytest.raises(ContradictionError, match="another key"):
        files.open()


def test_a_lost_log_is_not_replaced_by_a_new_one(files: Log, tmp_path: Path) -> None:
    files.open()
    files.commit(5)
    files.store.close()
    for lost in ("log", "pending", "temporary", "lock"):
        path = tmp_path / "audit" / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(LogUnusableError, match="bring the log back, or set first_start"):
        files.open()
    # Said to be a first start, with the key that was made before.
    assert files.open(first_start=True).tree.size == 0


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("log/checkpoint", "files are missing"),
        ("log/tile/0/001.p/44", r"tile/0/001\.p/44 is missing"),
        ("log/tile/entries/001.p/44", r"tile/entries/001\.p/44 is missing"),
        ("log/tile/1/000.p/1", r"tile/1/000\.p/1 is missing"),
        ("pending", "no journal"),
    ],
)
def test_a_log_with_a_file_missing_is_not_continued(files: Log, tmp_path: Path, lost: str, said: str) -> None:
    files.open()
    files.commit(300)
    files.integrate()
    files.store.close()
    path = tmp_path / "audit" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ContradictionError, match=said):
        files.open()


def test_no_changed_byte_is_continued(files: Log, tmp_path: Path) -> None:
    files.open()
    files.commit(270)
    files.integrate()
    files.commit(3)
    files.store.close()
    root = tmp_path / "audit"
    watched = [root / "log/checkpoint", *(root / "log/tile").rglob("*.p/*")]
    assert len(watched) == 4
    for path in watched:
        content = path.read_bytes()
        for at in range(len(content)):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
            with pytest.raises(ContradictionError):
                files.open()
        path.write_bytes(content)
    assert files.open().pending == leaves(270, 273)


def test_an_older_checkpoint_with_newer_tiles_is_continued(files: Log, tmp_path: Path) -> None:
    # What a crash between the tiles and the checkpoint leaves behind.
    files.open()
    files.commit(300)
    old = files.integrate()
    files.commit(300)
    files.integrate()
    files.store.close()
    (tmp_path / "audit/log/checkpoint").write_bytes(old)
    recovered = files.open()
    assert recovered.tree.size == 300
    assert recovered.pending == leaves(300, 600)


def test_a_newer_checkpoint_than_the_journal_is_not_continued(files: Log, tmp_path: Path) -> None:
    files.open()
    files.commit(300)
    files.integrate()
    files.store.close()
    shutil.copytree(tmp_path / "audit/pending", tmp_path / "older")
    files.open()
    for _ in range(3):
        files.commit(100)
        files.integrate()
        files.store.release(files.size)
    files.store.close()
    shutil.rmtree(tmp_path / "audit/pending")
    shutil.copytree(tmp_path / "older", tmp_path / "audit/pending")
    with pytest.raises(ContradictionError, match="before the checkpoint's 600"):
        files.open()


def test_another_name_does_not_continue_the_log(files: Log, tmp_path: Path) -> None:
    files.open()
    files.store.close()
    with pytest.raises(ContradictionError, match=r"of the log 'muster\.internal/audit', not 'other'"):
        FilesLog(tmp_path / "audit", "other").open(first_start=False)


def test_a_key_can_be_kept_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    key_path = tmp_path / "secret/log.key"
    store = FilesLog(tmp_path / "audit", ORIGIN, key_path=key_path)
    first = store.open(first_start=False)
    store.close()
    assert key_path.exists()
    again = store.open(first_start=False)
    store.close()
    assert again.signer.public_key == first.signer.public_key
    assert not (tmp_path / "audit/log.key").exists()
