"""Effects sorted into what is written, recorded, sent and answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.common.core.entries import EntryDraft
from services.scheduler.core.course import Collaboration
from services.scheduler.core.effects import (
    Answer,
    Assign,
    DeleteLock,
    Effect,
    EndLease,
    Forget,
    GrantLocks,
    Publish,
    PutLock,
    SaveCollaboration,
    SaveLearned,
    SaveSpecs,
    SaveTask,
    SearchPlan,
    Send,
)
from services.scheduler.core.records import collaboration_record, is_small, spec_record, task_record
from services.scheduler.store import Batch


@dataclass(slots=True)
class Sorted:
    """The effects of one batch, in groups; inside a group in the order in which they were decided."""

    batch: Batch = field(default_factory=Batch)
    entries: list[EntryDraft] = field(default_factory=list)
    leases: list[EndLease] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    searches: list[SearchPlan] = field(default_factory=list)


def sort(effects: Iterable[Effect]) -> Sorted:
    """Return effects in groups; values are taken as they are now, once for each subject."""
    found = Sorted()
    for effect in effects:
        # The most frequent kinds first.
        if isinstance(effect, Publish):
            found.sends.append(effect)
        elif isinstance(effect, EntryDraft):
            found.entries.append(effect)
        elif isinstance(effect, Answer):
            found.answers.append(effect)
        elif isinstance(effect, EndLease):
            found.leases.append(effect)
        elif not _write(found.batch, effect):
            if isinstance(effect, SearchPlan):
                found.searches.append(effect)
            else:
                found.sends.append(effect)  # type: ignore[arg-type]  # what is left are sends
        elif isinstance(effect, PutLock) and found.leases:
            # The instance came back in the same batch: its new lock hangs on the lease that was to end.
            found.leases = [lease for lease in found.leases if lease.instance != effect.lock.instance]
    _drop_forgotten(found.batch)
    return found


def _write(batch: Batch, effect: Effect) -> bool:
    """Take in a write; return whether `effect` is one."""
    match effect:
        case SaveTask(task):
            # Its value at the end of the batch counts, so one is enough, however often it changed.
            if task.key not in batch.tasks:
                batch.tasks[task.key] = task_record(task)
                # Gone when it was forgotten in the same batch; then nothing is written anyway.
                if (home := task.home()) is not None and is_small(home.submission):
                    _write_small(batch, home)
        case SaveCollaboration(collaboration):
            if collaboration.collaboration_id not in batch.collaborations:
                _write_collaboration(batch, collaboration)
        case SaveSpecs(collaboration):
            batch.specs[collaboration.collaboration_id] = spec_record(collaboration)
        case PutLock(lock):
            batch.put_locks.append(lock)
        case DeleteLock(resource, claim_id):
            batch.deleted_locks.append((resource, claim_id))
        case SaveLearned(key, value):
            batch.learned[key] = value
        case Forget(collaboration_id):
            batch.forgotten[collaboration_id] = None
        case _:
            return False
    return True


def _write_collaboration(batch: Batch, collaboration: Collaboration) -> None:
    if is_small(collaboration.submission):
        _write_small(batch, collaboration)
    else:
        batch.collaborations[collaboration.collaboration_id] = collaboration_record(collaboration)


def _write_small(batch: Batch, collaboration: Collaboration) -> None:
    """Write all of a small collaboration; see `records.is_small`."""
    collaboration_id = collaboration.collaboration_id
    if collaboration_id in batch.collaborations:
        return
    batch.collaborations[collaboration_id] = collaboration_record(collaboration)
    batch.specs[collaboration_id] = spec_record(collaboration)
    for task in collaboration.tasks.values():
        # A task that never changed has no record.
        if task.generation:
            batch.tasks[task.key] = task_record(task)


def _drop_forgotten(batch: Batch) -> None:
    """Take out what is written about collaborations that are forgotten in the same batch."""
    for collaboration_id in batch.forgotten:
        batch.specs.pop(collaboration_id, None)
        batch.collaborations.pop(collaboration_id, None)
        for key in [key for key in batch.tasks if key.collaboration_id == collaboration_id]:
            del batch.tasks[key]


def split_written(effects: Iterable[Effect]) -> tuple[list[Effect], list[Effect]]:
    """Return what follows from durable locks as (can go out now, belongs to the next batch).

    Handing over what was committed needs no further write. Whatever else was decided, for example to undo a
    grant, is to be made durable first.
    """
    now: list[Effect] = []
    later: list[Effect] = []
    for effect in effects:
        (now if isinstance(effect, Assign | GrantLocks | EntryDraft) else later).append(effect)
    return now, later
