"""What requesters and watchers see: model to proto."""

from __future__ import annotations

from collections.abc import Sequence

from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import scheduler_service_pb2 as service_pb
from muster.scheduler.v1 import task_pb2 as task_pb

from services.common.core.instants import Instant
from services.common.protobuf import tag, varint
from services.scheduler.core.book import Book
from services.scheduler.core.changes import Change, CollaborationView, Progress, TaskView
from services.scheduler.core.course import Attempt, Collaboration
from services.scheduler.core.locking.words import LockView
from services.scheduler.core.model import TaskState
from services.scheduler.core.queries import waiting_for
from services.scheduler.core.running.deadlines import DeadlineView, DeadlineWarning
from services.scheduler.core.running.results import aggregate
from services.scheduler.wire import values

#: Bytes of results in one message of a collaboration; what does not fit is with the tasks themselves.
OUTPUT_BYTES_MAX = 2 * 1024 * 1024
#: Bytes of an answer with all tasks, below gRPC's limit of 4 MiB for a message.
ANSWER_BYTES_MAX = 3 * 1024 * 1024
_EVENTS = tag(service_pb.WatchCollaborationsResponse.EVENTS_FIELD_NUMBER)


def collaboration_message(view: CollaborationView) -> collaboration_pb.Collaboration:
    """Return a collaboration as it was at one generation, without its tasks."""
    collaboration = view.collaboration
    spec = collaboration.submission.spec
    message = collaboration_pb.Collaboration(
        collaboration_id=collaboration.collaboration_id,
        name=spec.name,
        collaboration_type=spec.collaboration_type or "general",
        requester=collaboration.requester,
        request_id=collaboration.submission.request_id,
        state=view.state,  # type: ignore[arg-type]  # the numbers are the proto's
        generation=view.generation,
        priority=spec.priority,  # type: ignore[arg-type]  # the numbers are the proto's
        coordinator_agent=view.coordinator_agent,
        members=view.members,
        task_count=len(collaboration.tasks),
        task_succeeded_count=view.succeeded_count,
    )
    values.put_time(message.submit_time, collaboration.submit_time)
    values.put_time(message.end_time, view.end_time)
    values.put_time(message.deadline, spec.deadline)
    values.put_failure(message.failure, view.failure)
    for warning in view.warnings:
        put_warning(message.deadline_warnings.add(), warning)
    if spec.shared_context.data or spec.shared_context.content_type:
        values.put_payload(message.shared_context, spec.shared_context)
    # A view of an older generation knows no result: it is set once, by the last change.
    result = aggregate(collaboration) if view.end_time is not None else None
    if result is not None:
        left = OUTPUT_BYTES_MAX
        for task_id, output in result.outputs.items():
            left -= len(output.data)
            if left >= 0:
                values.put_payload(message.result.outputs[task_id], output)
        for contribution in result.contributions:
            row = message.result.contributions.add(
                task_id=contribution.task_id,
                agent_id=contribution.agent_id,
                attempt_number=contribution.attempt_number,
            )
            values.put_time(row.start_time, contribution.start_time)
            values.put_time(row.end_time, contribution.end_time)
    return message


def put_warning(
    message: collaboration_pb.DeadlineWarning, warning: DeadlineWarning, recover_time: Instant | None = None
) -> None:
    """Fill in a deadline that is predicted to be missed, or, with `recover_time`, was."""
    message.task_id = warning.task_id
    message.cause_task_id = warning.cause
    values.put_time(message.deadline, warning.deadline)
    values.put_time(message.predicted_end_time, warning.predicted_end)
    values.put_time(message.warn_time, warning.warn_time)
    values.put_time(message.recover_time, recover_time)


def members_message(collaboration: Collaboration) -> service_pb.GetMembersResponse:
    """Return the mailboxes of everybody who belongs to a collaboration."""
    # An agent's mailbox is its bare name.
    names = {*collaboration.members, collaboration.requester.removeprefix("agent/")}
    names |= {collaboration.coordinator_agent} - {""}
    return service_pb.GetMembersResponse(members=sorted(names), generation=collaboration.generation)


def task_message(book: Book, view: TaskView) -> task_pb.Task:
    """Return a task as it was at one generation; if that is the newest, with what is not durable, too."""
    task = view.task
    message = task_pb.Task(
        collaboration_id=task.key.collaboration_id,
        state=view.state,  # type: ignore[arg-type]  # the numbers are the proto's
        generation=view.generation,
    )
    message.spec.MergeFromString(task.spec.encoded)
    for attempt in view.attempts:
        _put_attempt(message.attempts.add(), attempt)
    if view.result is not None:
        values.put_payload(message.result, view.result)
    values.put_failure(message.failure, view.failure)
    values.put_time(message.ready_time, view.ready_time)
    values.put_time(message.end_time, view.end_time)
    if (saved := view.savepoint) is not None:
        message.savepoint.attempt_number = saved.attempt_number
        message.savepoint.bytes = saved.size_bytes
        values.put_time(message.savepoint.save_time, saved.save_time)
    if view.state is TaskState.SUCCEEDED:
        message.progress = 1.0
    elif task.generation == view.generation:
        message.progress = task.progress
        message.stage = task.stage
        message.waiting_for = waiting_for(book, task)
    return message


def whole_collaboration(book: Book, collaboration: Collaboration) -> collaboration_pb.Collaboration:
    """Return a collaboration as it is now with its tasks.

    When that would be larger than `ANSWER_BYTES_MAX`, tasks come without payloads and results, and if it
    still is, without descriptions and earlier attempts: `WatchCollaborations` sends each task whole.
    """
    message = collaboration_message(collaboration.view())
    size = message.ByteSize()
    tasks = [task_message(book, task.view()) for task in collaboration.tasks.values()]
    for trim in (_keep_whole, _trim_payloads, _trim_texts):
        for task in tasks:
            trim(task)
        if size + sum(task.ByteSize() + 8 for task in tasks) <= ANSWER_BYTES_MAX:
            break
    message.tasks.extend(tasks)
    return message


def encode_event(book: Book, change: Change | Progress) -> bytes:
    """Return one change as watchers see it: a CollaborationEvent on the wire."""
    event = collaboration_pb.CollaborationEvent(collaboration_id=change.collaboration_id)
    values.put_time(event.event_time, change.time)
    if isinstance(change, Progress):
        event.progress.task_id = change.task_id
        event.progress.attempt_number = change.attempt_number
        event.progress.progress = change.progress
        event.progress.stage = change.stage
        return event.SerializeToString()
    event.generation = change.generation
    if isinstance(change.subject, TaskView):
        event.task.CopyFrom(task_message(book, change.subject))
    elif isinstance(change.subject, DeadlineView):
        put_warning(event.deadline_warning, change.subject.warning, change.subject.recover_time)
    else:
        event.collaboration.CopyFrom(collaboration_message(change.subject))
    return event.SerializeToString()


def encode_gap(collaboration: Collaboration, from_generation: int) -> bytes:
    """Return the news that events up to the present generation are no longer kept."""
    event = collaboration_pb.CollaborationEvent(
        collaboration_id=collaboration.collaboration_id, generation=collaboration.generation
    )
    event.gap.from_generation = from_generation
    event.gap.to_generation = collaboration.generation
    return event.SerializeToString()


def snapshot_changes(collaboration: Collaboration, *, with_tasks: bool) -> list[Change]:
    """Return what a watcher needs to know of the present: the collaboration, then its tasks."""
    newest = collaboration.end_time or collaboration.submit_time
    subjects: list[TaskView | CollaborationView] = [collaboration.view()]
    if with_tasks:
        subjects += [task.view() for task in collaboration.tasks.values()]
    return [
        Change(collaboration.collaboration_id, collaboration.generation, newest, subject)
        for subject in subjects
    ]


def lock_message(book: Book, view: LockView) -> service_pb.Lock:
    """Return one claim that is held or waits; a foreign key's holder is shown as an agent's name."""
    lock = service_pb.Lock(resource=view.resource, mode=view.mode, held=view.held)  # type: ignore[arg-type]
    use = None if view.lock_id is None else book.lock_uses.get(view.lock_id)
    if use is None:
        lock.agent_id = view.holder
    elif use.instance is not None:
        lock.agent_id = use.instance.key.agent_id
        lock.instance_id = use.instance.key.instance_id
    if use is not None and use.attempt is not None:
        values.put_attempt_ref(lock.attempt, use.attempt)
    elif use is not None and use.task is not None:
        lock.attempt.collaboration_id = use.task.key.collaboration_id
        lock.attempt.task_id = use.task.key.task_id
    if view.token is not None:
        values.put_token(lock.token, view.token)
    if view.priority is not None:
        lock.priority = view.priority  # type: ignore[assignment]  # the numbers are the proto's
    if view.lent is not None:
        lock.lent_priority = view.lent.priority  # type: ignore[assignment]  # as above
        lock.lent_by = view.lent.by
    values.put_time(lock.since_time, view.since)
    values.put_time(lock.lease_expire_time, view.until)
    return lock


def watch_frames(events: Sequence[bytes], events_max: int, bytes_max: int) -> list[bytes]:
    """Return events in frames (WatchCollaborationsResponse) within both bounds; one larger travels alone."""
    frames: list[bytes] = []
    fields: list[bytes] = []
    size = count = 0
    for event in events:
        if count and (count >= events_max or size + len(event) > bytes_max):
            frames.append(b"".join(fields))
            fields, size, count = [], 0, 0
        fields += (_EVENTS, varint(len(event)), event)
        size, count = size + len(event), count + 1
    if count:
        frames.append(b"".join(fields))
    return frames


def _put_attempt(message: task_pb.Attempt, attempt: Attempt) -> None:
    message.agent_id = attempt.instance.agent_id
    message.instance_id = attempt.instance.instance_id
    message.incarnation = attempt.incarnation
    message.state = attempt.state  # type: ignore[assignment]  # the numbers are the proto's
    message.explanation = attempt.explanation
    values.put_token(message.token, attempt.token)
    values.put_time(message.assign_time, attempt.assign_time)
    values.put_time(message.start_time, attempt.start_time)
    values.put_time(message.end_time, attempt.end_time)
    values.put_failure(message.failure, attempt.failure)
    if (predicted := attempt.predicted) is not None:
        values.put_duration(message.predicted.mean, predicted.mean_ms)
        values.put_duration(message.predicted.low, predicted.low_ms)
        values.put_duration(message.predicted.high, predicted.high_ms)
        message.predicted.observations = predicted.observations
    message.speculative = attempt.speculative


def _keep_whole(_: task_pb.Task) -> None:
    """Trim nothing."""


def _trim_payloads(task: task_pb.Task) -> None:
    task.spec.payload.ClearField("data")
    task.result.ClearField("data")


def _trim_texts(task: task_pb.Task) -> None:
    task.spec.ClearField("description")
    del task.attempts[:-1]
    for attempt in task.attempts:
        attempt.ClearField("explanation")
