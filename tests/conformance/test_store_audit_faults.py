"""The log on disk under faults: each call fails once, or the power goes, before or after it took effect.

Afterwards everything is opened and verified again: what was acked is there, in order, once; every
checkpoint that anyone could have seen is of the same log; and the course can be brought to its end.
"""

import errno
import random
from pathlib import Path

import pytest

from services.audit.core.model import Batch
from services.audit.stores.files import FilesLog
from services.common.core.errors import Reason, ServiceError
from tests.conformance.store_audit_course import (
    DIRECTORY,
    ORIGIN,
    PRODUCERS,
    SEGMENT_BYTES_MAX,
    Course,
    leaf,
    seen_checkpoint,
)
from tests.conformance.store_audit_disks import (
    FaultyDisk,
    PowerCutError,
    SimulatedDisk,
    cuts_power,
    fails_with,
)

TOTAL = 299


def files_log(disk: object) -> FilesLog:
    return FilesLog(DIRECTORY, ORIGIN, disk=disk, segment_bytes_max=SEGMENT_BYTES_MAX)  # type: ignore[arg-type]


def fresh_disk() -> SimulatedDisk:
    disk = SimulatedDisk()
    disk.make_directory(Path("/data"))
    disk.sync_directory(Path("/"))
    return disk


def call_count() -> int:
    disk = FaultyDisk(fresh_disk(), cuts_power, (), before=True)
    course = Course(files_log(disk))
    course.open(course.store)
    course.run(lambda: None)
    assert len(disk.calls) > 100
    return len(disk.calls)


CALLS = call_count()


def test_the_course_without_faults() -> None:
    disk = fresh_disk()
    course = Course(files_log(disk))
    course.open(course.store)
    course.run(lambda: seen_checkpoint(disk))
    course.store.close()
    assert course.check(disk) == TOTAL
    assert course.errors == []
    # Nothing is left behind: no partial tile of a full one, no segment but the last, no temporary file.
    assert not disk.exists(DIRECTORY / "log/tile/0/000.p")
    assert not disk.exists(DIRECTORY / "log/tile/entries/000.p")
    assert len(disk.names(DIRECTORY / "pending")) == 1
    assert disk.names(DIRECTORY / "temporary") == []
    assert not disk.exists(DIRECTORY / "inception")


@pytest.mark.parametrize("before", [True, False], ids=["not-persisted", "persisted"])
def test_each_call_fails_once(before: bool) -> None:
    for at in range(CALLS):
        memory = fresh_disk()
        disk = FaultyDisk(memory, fails_with(errno.EIO), (at,), before=before)
        course = Course(files_log(disk))
        try:
            course.open(course.store)
        except ServiceError:
            # A start that fails is repeated by whoever started it.
            course.open(files_log(disk))
        course.run(lambda memory=memory: seen_checkpoint(memory))  # type: ignore[misc]
        course.store.close()
        assert course.check(memory) == TOTAL, f"call {at} ({disk.calls[at]})"
        # And what is durable alone is enough.
        assert course.check(memory.cut_power(random.Random(at))) == TOTAL, f"call {at} ({disk.calls[at]})"


def power_cut(at: int, before: bool, seed: int) -> None:
    choose = random.Random(seed)
    memory = fresh_disk()
    course = Course(files_log(FaultyDisk(memory, cuts_power, (at,), before=before)))
    with pytest.raises(PowerCutError):  # noqa: PT012  # it may happen in either
        course.open(course.store)
        course.run(lambda: seen_checkpoint(memory))
    if (note := seen_checkpoint(memory)) is not None:
        course.seen.add(note)
    memory = memory.cut_power(choose)
    course.check(memory)
    # A second cut during the recovery, then to the end.
    course.store = files_log(
        FaultyDisk(memory, cuts_power, (choose.randrange(40),), before=choose.random() < 0.5)
    )
    try:
        course.open(course.store)
        course.run(lambda: seen_checkpoint(memory))
        course.store.close()
    except PowerCutError:
        if (note := seen_checkpoint(memory)) is not None:
            course.seen.add(note)
        memory = memory.cut_power(choose)
        course.check(memory)
        course.open(files_log(memory))
        course.run(lambda: seen_checkpoint(memory))
        course.store.close()
    assert course.check(memory) == TOTAL
    assert course.check(memory.cut_power(choose)) == TOTAL


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_the_power_goes_at_each_call(before: bool) -> None:
    for at in range(CALLS):
        power_cut(at, before, seed=at)


@pytest.mark.nightly
def test_the_power_goes_at_each_call_with_many_outcomes() -> None:
    for seed in range(20):
        for at in range(CALLS):
            power_cut(at, before=seed % 2 == 0, seed=1_000 * seed + at)


def test_a_full_disk_is_said_and_recovered_from() -> None:
    memory = fresh_disk()
    store = files_log(memory)
    opened = store.open(first_start=False)
    batch = Batch(0, tuple(leaf(PRODUCERS[0], n) for n in range(1, 4)), {PRODUCERS[0]: 3})
    store.commit(batch, {})
    full = FaultyDisk(memory, fails_with(errno.ENOSPC), (), before=True)
    store._journal._disk = full  # type: ignore[assignment]
    more = Batch(3, (leaf(PRODUCERS[0], 4),), {PRODUCERS[0]: 4})
    for _ in range(3):
        full.at = (len(full.calls),)
        with pytest.raises(ServiceError) as caught:
            store.commit(more, batch.cursors)
        assert caught.value.reason is Reason.DISK_FULL
        assert caught.value.row.definite
    # Space returns: the same entries at the same place.
    store.commit(more, batch.cursors)
    store.close()
    assert opened.recovered.pending == ()
    reopened = files_log(memory).open(first_start=False)
    assert reopened.recovered.pending == (*batch.leaves, *more.leaves)


@pytest.mark.parametrize("before", [True, False])
def test_a_commit_that_failed_is_left_behind_whether_on_disk_or_not(before: bool) -> None:
    memory = fresh_disk()
    faulty = FaultyDisk(memory, fails_with(errno.EIO), (), before=before)
    store = files_log(faulty)
    store.open(first_start=False)
    producer = PRODUCERS[0]
    store.commit(Batch(0, (b"one",), {producer: 1}), {})
    # The sync fails, and so does giving the room back.
    faulty.at = range(len(faulty.calls) + 1, len(faulty.calls) + 3)
    with pytest.raises(ServiceError):
        store.commit(Batch(1, (b"lost",), {producer: 2}), {producer: 1})
    store.commit(Batch(1, (b"two",), {producer: 2}), {producer: 1})
    store.close()
    recovered = files_log(memory.cut_power(random.Random(0))).open(first_start=False).recovered
    assert recovered.pending == (b"one", b"two")
    assert recovered.cursors == {producer: 2}
