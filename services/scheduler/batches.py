"""Effects sorted into what is written, recorded, sent and answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

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
    batch, sends, entries, answers = found.batch, found.sends, found.entries, found.answers
    for effect in effects:
        kind = type(effect)
        # The most frequent kinds first.
        if kind is Publish:
            sends.append(effect)  # type: ignore[arg-type]  # as `kind` says, here and below
        elif kind is EntryDraft:
            entries.append(effect)  # type: ignore[arg-type]
        elif kind is Answer:
            answers.append(effect)  # type: ignore[arg-type]
        elif (write := _WRITES.get(kind)) is not None:
            write(batch, effect)
        elif isinstance(effect, PutLock):
            batch.put_locks.append(effect.lock)
            if found.leases:
                # The instance came back in the same batch: its new lock hangs on the lease that was to end.
                found.leases = [lease for lease in found.leases if lease.instance != effect.lock.instance]
        elif isinstance(effect, EndLease):
            found.leases.append(effect)
        elif isinstance(effect, SearchPlan):
            found.searches.append(effect)
        else:
            sends.append(effect)  # type: ignore[arg-type]  # what is left are sends
    _drop_forgotten(batch)
    return found


def _save_task(batch: Batch, effect: SaveTask) -> None:
    # Its value at the end of the batch counts, so one is enough, however often it changed.
    task = effect.task
    if task.key in batch.tasks:
        return
    # Gone when it was forgotten in the same batch; then nothing is written anyway.
    home = task.home()
    if home is not None and is_small(home.submission):
        _save_whole(batch, home)
    else:
        batch.tasks[task.key] = task_record(task)


def _save_collaboration(batch: Batch, effect: SaveCollaboration) -> None:
    collaboration = effect.collaboration
    if collaboration.collaboration_id in batch.collaborations:
        return
    if is_small(collaboration.submission):
        _save_whole(batch, collaboration)
    else:
        batch.collaborations[collaboration.collaboration_id] = collaboration_record(collaboration)


def _save_whole(batch: Batch, collaboration: Collaboration) -> None:
    """Write all of a small collaboration; see `records.is_small`."""
    collaboration_id = collaboration.collaboration_id
    batch.collaborations[collaboration_id] = collaboration_record(collaboration)
    batch.specs[collaboration_id] = spec_record(collaboration)
    for task in collaboration.tasks.values():
        # A task that never changed has no record.
        if task.generation:
            batch.tasks[task.key] = task_record(task)


def _save_specs(batch: Batch, effect: SaveSpecs) -> None:
    collaboration = effect.collaboration
    if collaboration.collaboration_id in batch.specs:
        return
    if is_small(collaboration.submission):
        _save_whole(batch, collaboration)
    else:
        batch.specs[collaboration.collaboration_id] = spec_record(collaboration)


def _delete_lock(batch: Batch, effect: DeleteLock) -> None:
    batch.deleted_locks.append((effect.resource, effect.claim_id))


def _save_learned(batch: Batch, effect: SaveLearned) -> None:
    batch.learned[effect.key] = effect.value


def _forget(batch: Batch, effect: Forget) -> None:
    batch.forgotten[effect.collaboration_id] = None


_WRITES: dict[type[Any], Callable[[Batch, Any], None]] = {
    SaveTask: _save_task,
    SaveCollaboration: _save_collaboration,
    SaveSpecs: _save_specs,
    DeleteLock: _delete_lock,
    SaveLearned: _save_learned,
    Forget: _forget,
}


def _drop_forgotten(batch: Batch) -> None:
    """Take out what is written about collaborations that are forgotten in the same batch."""
    forgotten = batch.forgotten
    if not forgotten:
        return
    for collaboration_id in forgotten:
        batch.specs.pop(collaboration_id, None)
        batch.collaborations.pop(collaboration_id, None)
    batch.tasks = {key: task for key, task in batch.tasks.items() if key.collaboration_id not in forgotten}


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
