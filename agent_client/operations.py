"""What an audit entry says of each operation that it records: most record one, some a hundred of one kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from muster.audit.v1 import entry_pb2


def operation_count(entry: entry_pb2.Entry) -> int:
    """Return how many operations an entry records."""
    return len(entry.group.names) if entry.HasField("group") else 1


def operations(entry: entry_pb2.Entry, positions: Iterable[int] = ()) -> list[entry_pb2.Entry]:
    """Return the operations that `entry` records, each as the entry that it would have had alone.

    `positions`: of these only, from 0, as in `LoggedEntry.group_positions`; all when there are none. One that
    the entry does not have is passed over.
    """
    if not entry.HasField("group"):
        return [entry]
    group = entry.group
    count = len(group.names)
    wanted = [at for at in positions if at < count] or range(count)
    shared = entry_pb2.Entry()
    shared.CopyFrom(entry)
    shared.ClearField("group")
    told = []
    for at in wanted:
        one = entry_pb2.Entry()
        one.CopyFrom(shared)
        one.subject += group.names[at]
        one.cause_id = _own(group.cause_ids, at) or entry.cause_id or one.subject.rpartition("/")[2]
        one.collaboration_id = _own(group.collaboration_ids, at) or entry.collaboration_id
        one.traceparent = _own(group.traceparents, at) or entry.traceparent
        for name, column in group.attributes.items():
            if value := _own(column.values, at):
                one.attributes[name] = value
        told.append(one)
    return told


def summary(entry: entry_pb2.Entry, positions: Sequence[int] = ()) -> str:
    """Return the subject of what an entry records, or how many there are and which is the first and the last.

    `positions` as in `operations`.
    """
    wanted = operations(entry, positions)
    if len(wanted) == 1:
        return wanted[0].subject
    first, last = (one.subject.removeprefix(entry.subject) for one in (wanted[0], wanted[-1]))
    return f"{entry.subject} {len(wanted)} from {first} to {last}"


def _own(values: Sequence[str], at: int) -> str:
    return values[at] if at < len(values) else ""
