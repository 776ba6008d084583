"""The spool's files: numbering, torn tails, damage, failed writes, restarts."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import spool as spool_module
from services.common.spool import Spool, SpoolError


def records(spool: Spool, start: int | None = None) -> list[bytes]:
    found: list[bytes] = []
    sequence = spool.first_sequence if start is None else start
    while batch := spool.read(sequence, 7, 1_000):
        found += batch
        sequence += len(batch)
    return found


def reopened(spool: Spool) -> Spool:
    spool.close()
    return Spool.open(spool.directory)


def payloads(first: int, count: int) -> list[bytes]:
    return [f"record {number}".encode() * 3 for number in range(first, first + count)]


def test_numbers_go_on_across_restarts(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path / "spool")
    assert (spool.first_sequence, spool.next_sequence) == (1, 1)
    spool.append(payloads(1, 20))
    spool_id = spool.spool_id
    spool = reopened(spool)
    assert spool.spool_id == spool_id
    spool.append(payloads(21, 10))
    assert spool.next_sequence == 31
    assert records(spool) == payloads(1, 30)
    assert records(spool, 25) == payloads(25, 6)
    spool.close()


def test_each_new_spool_has_another_id(tmp_path: Path) -> None:
    ids = set()
    for name in ("a", "b"):
        spool = Spool.open(tmp_path / name)
        ids.add(spool.spool_id)
        spool.close()
    assert len(ids) == 2


def test_acked_segments_go_and_the_numbering_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES_MAX", 200)
    spool = Spool.open(tmp_path)
    for first in range(1, 41, 4):
        spool.append(payloads(first, 4))
    full = spool.size_bytes
    spool.ack(22)
    assert 1 < spool.first_sequence <= 23
    assert spool.size_bytes < full
    assert records(spool, 23) == payloads(23, 18)
    spool.ack(40)
    spool = reopened(spool)
    assert spool.next_sequence == 41
    spool.ack(40)
    spool.append(payloads(41, 1))
    assert records(spool, 41) == payloads(41, 1)
    spool.close()


def test_bounds_of_a_read(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    spool.append([b"x" * 100] * 10)
    assert len(spool.read(1, 3, 10_000)) == 3
    assert len(spool.read(4, 100, 250)) == 2
    # One larger than the bound still comes, alone.
    assert len(spool.read(6, 100, 50)) == 1
    assert spool.read(11, 100, 10_000) == []
    assert spool.read(0, 100, 10_000) == []
    spool.close()


@given(cut=st.integers(0, 200), garbage=st.binary(max_size=40))
def test_a_torn_tail_is_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes) -> None:
    """Whatever a crash left behind the last acknowledged record, what was acknowledged before it is there."""
    spool = Spool.open(tmp_path_factory.mktemp("spool"))
    spool.append(payloads(1, 3))
    acknowledged = spool.size_bytes
    spool.append(payloads(4, 3))
    end = spool.size_bytes
    spool.close()
    (path,) = spool.directory.glob("*.segment")
    content = path.read_bytes()
    path.write_bytes(content[: max(acknowledged, end - cut)] + garbage)
    again = Spool.open(spool.directory)
    found = records(again)
    assert found[:3] == payloads(1, 3)
    assert found == payloads(1, len(found))
    again.append(payloads(again.next_sequence, 1))
    again = reopened(again)
    assert records(again) == payloads(1, len(found) + 1)
    again.close()


def test_zeros_behind_the_end_are_no_records(tmp_path: Path) -> None:
    """A file system may have grown the file before the crash and not written the data."""
    spool = Spool.open(tmp_path)
    spool.append(payloads(1, 2))
    spool.close()
    (path,) = tmp_path.glob("*.segment")
    path.write_bytes(path.read_bytes() + bytes(4_096))
    spool = Spool.open(tmp_path)
    assert records(spool) == payloads(1, 2)
    spool.close()


def test_damage_of_acknowledged_records_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES_MAX", 100)
    spool = Spool.open(tmp_path)
    for first in (1, 5, 9):
        spool.append(payloads(first, 4))
    spool.close()
    path = min(tmp_path.glob("*.segment"))
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    with pytest.raises(SpoolError, match="record 2 is damaged"):
        Spool.open(tmp_path)


def test_damage_while_running_is_said(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    spool.append(payloads(1, 4))
    (path,) = tmp_path.glob("*.segment")
    content = bytearray(path.read_bytes())
    content[12] ^= 1
    path.write_bytes(content)
    with pytest.raises(SpoolError, match="record 1 is damaged"):
        spool.read(1, 10, 1_000)
    spool.close()


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    with pytest.raises(SpoolError, match="in use"):
        Spool.open(tmp_path)
    reopened(spool).close()


@pytest.mark.parametrize("content", ["{", '{"format": 9, "spool_id": "x"}', '{"format": 1}', None])
def test_a_broken_header_is_said(tmp_path: Path, content: str | None) -> None:
    spool = Spool.open(tmp_path)
    spool.append(payloads(1, 1))
    spool.close()
    header = tmp_path / "spool.json"
    header.unlink()
    if content is not None:
        header.write_text(content)
    with pytest.raises(SpoolError, match=r"spool\.json"):
        Spool.open(tmp_path)


@pytest.mark.parametrize("payload", [b"", b"x" * (spool_module.RECORD_BYTES_MAX + 1)])
def test_impossible_records_are_refused(tmp_path: Path, payload: bytes) -> None:
    spool = Spool.open(tmp_path)
    with pytest.raises(ValueError, match="bytes"):
        spool.append([payload])
    spool.close()


def _fails_without_writing(real: Callable[..., Any]) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    return fail


def _writes_half_and_fails(real: Callable[..., Any]) -> Callable[..., Any]:
    def fail(file: int, view: memoryview) -> Any:
        real(file, bytes(view)[: len(view) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    return fail


def _does_it_and_fails(real: Callable[..., Any]) -> Callable[..., Any]:
    def fail(*arguments: Any) -> Any:
        real(*arguments)
        raise OSError(errno.EIO, "Input/output error")

    return fail


@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("fault", [_fails_without_writing, _writes_half_and_fails, _does_it_and_fails])
def test_a_failed_append_keeps_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., Any],
    before: int,
    truncates: bool,
) -> None:
    """Persisted or not before the error: the number is free again, and no restart brings the record back."""
    spool = Spool.open(tmp_path)
    if before:
        spool.append(payloads(1, before))
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", fault(os.write))
        if not truncates:
            broken.setattr(os, "ftruncate", _fails_without_writing(os.ftruncate))
        with pytest.raises(OSError, match=r"error|space"):
            spool.append([b"lost 1", b"lost 2"])
    assert spool.next_sequence == before + 1
    spool.append(payloads(before + 1, 2))
    assert records(spool) == payloads(1, before + 2)
    spool = reopened(spool)
    assert records(spool) == payloads(1, before + 2)
    spool.append(payloads(before + 3, 1))
    assert records(spool) == payloads(1, before + 3)
    spool.close()


def test_each_file_is_written_through_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing calls fsync behind a write: the file itself must have been opened for it."""
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES_MAX", 50)
    spool = Spool.open(tmp_path)
    for number in range(1, 5):
        spool.append(payloads(number, 4))
        assert spool._file is not None
        assert fcntl.fcntl(spool._file, fcntl.F_GETFL) & os.O_DSYNC
    spool = reopened(spool)
    assert spool._file is not None
    assert fcntl.fcntl(spool._file, fcntl.F_GETFL) & os.O_DSYNC
    spool.close()


def test_a_segment_that_can_not_be_made_is_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES_MAX", 50)
    spool = Spool.open(tmp_path)
    spool.append(payloads(1, 3))
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", _fails_without_writing(os.open))
        for _ in range(2):
            with pytest.raises(OSError, match="space"):
                spool.append(payloads(4, 1))
    spool.append(payloads(4, 1))
    spool = reopened(spool)
    assert records(spool) == payloads(1, 4)
    spool.close()
