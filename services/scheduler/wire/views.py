"""What requesters and watchers see: model to proto."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from muster.common.v1 import payload_pb2
from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import scheduler_service_pb2 as service_pb
from muster.scheduler.v1 import task_pb2 as task_pb

from services.common.core.instants import Instant
from services.common.protobuf import MAP_KEY, MAP_VALUE, block, scalar, tag, text, timestamp, varint
from services.scheduler.core.book import Book
from services.scheduler.core.changes import Change, CollaborationView, Progress, TaskView
from services.scheduler.core.course import Attempt, Collaboration
from services.scheduler.core.locking.words import LockView
from services.scheduler.core.model import TaskState
from services.scheduler.core.queries import waiting_for
from services.scheduler.core.running.deadlines import DeadlineWarning
from services.scheduler.core.running.results import Result, aggregate
from services.scheduler.wire import values

#: Bytes of results in one message of a collaboration; what does not fit is with the tasks themselves.
OUTPUT_BYTES_MAX = 2 * 1024 * 1024
#: Bytes of an answer with all tasks, below gRPC's limit of 4 MiB for a message.
ANSWER_BYTES_MAX = 3 * 1024 * 1024
# What is told of every task is put together as bytes where it is made of few fields or encoded parts, and by
# the generated code where it is made of many.
_EVENTS = tag(service_pb.WatchCollaborationsResponse.EVENTS_FIELD_NUMBER)
_EVENT_COLLABORATION = collaboration_pb.CollaborationEvent.COLLABORATION_ID_FIELD_NUMBER
_EVENT_GENERATION = collaboration_pb.CollaborationEvent.GENERATION_FIELD_NUMBER
_EVENT_TIME = collaboration_pb.CollaborationEvent.EVENT_TIME_FIELD_NUMBER
_EVENT_OF_COLLABORATION = collaboration_pb.CollaborationEvent.COLLABORATION_FIELD_NUMBER
_EVENT_OF_TASK = collaboration_pb.CollaborationEvent.TASK_FIELD_NUMBER
_EVENT_OF_WARNING = collaboration_pb.CollaborationEvent.DEADLINE_WARNING_FIELD_NUMBER
_SUBMIT_TIME = collaboration_pb.Collaboration.SUBMIT_TIME_FIELD_NUMBER
_END_TIME = collaboration_pb.Collaboration.END_TIME_FIELD_NUMBER
_RESULT = collaboration_pb.Collaboration.RESULT_FIELD_NUMBER
_OUTPUTS = collaboration_pb.CollaborationResult.OUTPUTS_FIELD_NUMBER
_CONTRIBUTIONS = collaboration_pb.CollaborationResult.CONTRIBUTIONS_FIELD_NUMBER
_TASK_ID = collaboration_pb.Contribution.TASK_ID_FIELD_NUMBER
_AGENT_ID = collaboration_pb.Contribution.AGENT_ID_FIELD_NUMBER
_ATTEMPT_NUMBER = collaboration_pb.Contribution.ATTEMPT_NUMBER_FIELD_NUMBER
_START = collaboration_pb.Contribution.START_TIME_FIELD_NUMBER
_END = collaboration_pb.Contribution.END_TIME_FIELD_NUMBER
_CONTENT_TYPE = payload_pb2.Payload.CONTENT_TYPE_FIELD_NUMBER
_DATA = payload_pb2.Payload.DATA_FIELD_NUMBER
_TASK_SPEC = task_pb.Task.SPEC_FIELD_NUMBER
_TASK_READY_TIME = task_pb.Task.READY_TIME_FIELD_NUMBER
_TASK_END_TIME = task_pb.Task.END_TIME_FIELD_NUMBER
#: Most times in one batch are the same: when it was decided.
_time = functools.lru_cache(maxsize=1_024)(timestamp)


def collaboration_message(view: CollaborationView) -> collaboration_pb.Collaboration:
    """Return a collaboration as it was at one generation, without its tasks."""
    return collaboration_pb.Collaboration.FromString(encode_collaboration(view))


def encode_collaboration(view: CollaborationView) -> bytes:
    """Return a collaboration as it was at one generation, without its tasks: a Collaboration on the wire."""
    collaboration = view.collaboration
    submission = collaboration.submission
    spec = submission.spec
    message = collaboration_pb.Collaboration(
        collaboration_id=collaboration.collaboration_id,
        name=spec.name,
        collaboration_type=spec.collaboration_type or "general",
        requester=submission.requester,
        request_id=submission.request_id,
        state=view.state,  # type: ignore[arg-type]  # the numbers are the proto's
        generation=view.generation,
        priority=spec.priority,  # type: ignore[arg-type]  # the numbers are the proto's
        coordinator_agent=view.coordinator_agent,
        members=view.members,
        task_count=len(collaboration.tasks),
        task_succeeded_count=view.succeeded_count,
    )
    if spec.deadline is not None:
        values.put_time(message.deadline, spec.deadline)
    if view.failure is not None:
        values.put_failure(message.failure, view.failure)
    for warning in view.warnings:
        put_warning(message.deadline_warnings.add(), warning)
    if spec.shared_context.data or spec.shared_context.content_type:
        values.put_payload(message.shared_context, spec.shared_context)
    whole = message.SerializeToString() + _time(_SUBMIT_TIME, collaboration.submit_time)
    if view.end_time is None:
        return whole
    # A view of an older generation knows no result: it is set once, by the last change.
    result = aggregate(collaboration)
    whole += _time(_END_TIME, view.end_time)
    return whole if result is None else whole + block(_RESULT, _encode_result(result))


def _encode_result(result: Result) -> bytes:
    parts: list[bytes] = []
    left = OUTPUT_BYTES_MAX
    for task_id, output in result.outputs.items():
        left -= len(output.data)
        if left >= 0:
            payload = text(_CONTENT_TYPE, output.content_type) + block(_DATA, output.data)
            parts.append(block(_OUTPUTS, text(MAP_KEY, task_id) + block(MAP_VALUE, payload)))
    for contribution in result.contributions:
        row = (
            text(_TASK_ID, contribution.task_id)
            + text(_AGENT_ID, contribution.agent_id)
            + scalar(_ATTEMPT_NUMBER, contribution.attempt_number)
            + _time(_START, contribution.start_time)
            + _time(_END, contribution.end_time)
        )
        parts.append(block(_CONTRIBUTIONS, row))
    return b"".join(parts)


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
    return task_pb.Task.FromString(encode_task(book, view))


def encode_task(book: Book, view: TaskView) -> bytes:
    """Return what `task_message` does: a Task on the wire."""
    task = view.task
    message = task_pb.Task(
        collaboration_id=task.key.collaboration_id,
        state=view.state,  # type: ignore[arg-type]  # the numbers are the proto's
        generation=view.generation,
    )
    for attempt in view.attempts:
        _put_attempt(message.attempts, attempt)
    if view.result is not None:
        values.put_payload(message.result, view.result)
    if view.failure is not None:
        values.put_failure(message.failure, view.failure)
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
    whole = message.SerializeToString() + block(_TASK_SPEC, task.spec.encoded)
    if view.ready_time is not None:
        whole += _time(_TASK_READY_TIME, view.ready_time)
    return whole if view.end_time is None else whole + _time(_TASK_END_TIME, view.end_time)


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
    head = text(_EVENT_COLLABORATION, change.collaboration_id) + _time(_EVENT_TIME, change.time)
    if isinstance(change, Progress):
        event = collaboration_pb.CollaborationEvent()
        event.progress.task_id = change.task_id
        event.progress.attempt_number = change.attempt_number
        event.progress.progress = change.progress
        event.progress.stage = change.stage
        return head + event.SerializeToString()
    head += scalar(_EVENT_GENERATION, change.generation)
    subject = change.subject
    if isinstance(subject, CollaborationView):
        return head + block(_EVENT_OF_COLLABORATION, encode_collaboration(subject))
    if isinstance(subject, TaskView):
        return head + block(_EVENT_OF_TASK, encode_task(book, subject))
    warning = collaboration_pb.DeadlineWarning()
    put_warning(warning, subject.warning, subject.recover_time)
    return head + block(_EVENT_OF_WARNING, warning.SerializeToString())


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


def _put_attempt(rows: RepeatedCompositeFieldContainer[task_pb.Attempt], attempt: Attempt) -> None:
    message = rows.add(
        agent_id=attempt.instance.agent_id,
        instance_id=attempt.instance.instance_id,
        incarnation=attempt.incarnation,
        state=attempt.state,
        explanation=attempt.explanation,
        speculative=attempt.speculative,
    )
    values.put_token(message.token, attempt.token)
    values.put_time(message.assign_time, attempt.assign_time)
    if attempt.start_time is not None:
        values.put_time(message.start_time, attempt.start_time)
    if attempt.end_time is not None:
        values.put_time(message.end_time, attempt.end_time)
    if attempt.failure is not None:
        values.put_failure(message.failure, attempt.failure)
    if (predicted := attempt.predicted) is not None:
        row = message.predicted
        values.put_duration(row.mean, predicted.mean_ms)
        values.put_duration(row.low, predicted.low_ms)
        values.put_duration(row.high, predicted.high_ms)
        row.observations = predicted.observations


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
