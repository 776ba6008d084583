"""Entries of one commit that say the same of many are one entry with a group (ADR 13).

A commit under load takes a hundred tasks from one requester and gives them to a handful of agents: an entry
for each of a hundred `task.assign` costs the leader and audit more than the hundred decisions.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.common.core.entries import DraftGroup, EntryDraft, shared

#: What all operations of one group have in common.
_Kind = tuple[object, ...]


def together(entries: Sequence[EntryDraft], group_max: int) -> Sequence[EntryDraft]:
    """Return what `entries` record in as few entries, each of at most `group_max` operations.

    Of one actor, one kind, one outcome and one moment. What concerns one collaboration (or, outside of
    collaborations, one subject) stays in the order in which it happened; operations on different ones that
    are recorded at the same moment may change places.
    """
    if len(entries) < 2:
        return entries
    found: list[list[EntryDraft]] = []
    #: Where the newest entry of a kind is, and the newest about a collaboration.
    newest_of: dict[_Kind, int] = {}
    newest_about: dict[str, int] = {}
    for entry in entries:
        about = entry.collaboration_id or entry.subject
        kind = _kind_of(entry)
        at = -1 if kind is None else newest_of.get(kind, -1)
        if at < newest_about.get(about, 0) or len(found[at]) >= group_max:
            at = len(found)
            found.append([])
            if kind is not None:
                newest_of[kind] = at
        found[at].append(entry)
        newest_about[about] = at
    return [some[0] if len(some) == 1 else _group(some) for some in found]


def _kind_of(entry: EntryDraft) -> _Kind | None:
    """Return what entries must share with this one to be told with it; None for one that stays alone."""
    stem, slash, _ = entry.subject.partition("/")
    # In a group an operation without a cause is its own cause, which would say something new of this one.
    if not slash or not entry.cause_id or entry.group is not None:
        return None
    return (
        entry.operation,
        entry.actor,
        stem,
        entry.outcome,
        entry.reason,
        entry.event_time,
        entry.traceparent,
        *entry.attributes,
    )


def _group(entries: Sequence[EntryDraft]) -> EntryDraft:
    """Return one entry that says of each operation what its own would."""
    first = entries[0]
    stem = first.subject[: first.subject.index("/") + 1]
    cause_id, cause_ids = shared([entry.cause_id for entry in entries])
    collaboration_id, collaboration_ids = shared([entry.collaboration_id for entry in entries])
    attributes: dict[str, str] = {}
    columns: dict[str, Sequence[str]] = {}
    for name in first.attributes:
        value, column = shared([entry.attributes[name] for entry in entries])
        if column:
            columns[name] = column
        else:
            attributes[name] = value
    return first._replace(
        subject=stem,
        cause_id=cause_id,
        collaboration_id=collaboration_id,
        attributes=attributes,
        group=DraftGroup(
            [entry.subject[len(stem) :] for entry in entries],
            cause_ids,
            collaboration_ids,
            (),
            columns,
        ),
    )
