"""The scheduler's protos to its model and back: round trips, golden bytes, hostile input."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from muster.common.v1 import payload_pb2, priority_pb2
from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import scheduler_service_pb2 as service_pb
from muster.scheduler.v1 import task_pb2 as task_pb
from muster.scheduler.v1 import work_pb2 as work_pb

from services.common.core.errors import Reason, ServiceError
from services.common.core.fencing import FencingToken
from services.common.core.ids import (
    AgentId,
    CollaborationId,
    InstanceId,
    RequestId,
    ResourceName,
    Skill,
    TaskId,
)
from services.common.core.instants import Instant
from services.common.rpc.status import from_status
from services.scheduler.core.course import Attempt, Predicted, Savepoint, Trial
from services.scheduler.core.effects import (
    AckResult,
    AckSavepoint,
    Assign,
    CancelAttempt,
    GrantLocks,
    Probe,
    RefuseLocks,
    RevokeLock,
    SuspendAttempt,
    Welcome,
    WorkItem,
)
from services.scheduler.core.events import (
    Cancelled,
    ForeignLock,
    HeldLock,
    LockKeysChanged,
    LockRequested,
    ResultReport,
    StreamId,
)
from services.scheduler.core.model import (
    AttemptRef,
    AttemptState,
    CollaborationSpec,
    CollaborationState,
    Failure,
    FailureKind,
    InstanceKey,
    Limits,
    LockMode,
    Payload,
    Priority,
    ResourceClaim,
    RetryPolicy,
    Submission,
    TaskSpec,
    TaskState,
    UnknownSkillPolicy,
)
from services.scheduler.core.records import CollaborationRecord, SpecRecord, StoredLock, TaskRecord
from services.scheduler.core.running.deadlines import DeadlineWarning
from services.scheduler.wire import records, specs, values, views, work
from tests.unit.scheduler.scheduler_stage import Stage, only, task

NAMES = st.text("abcXYZ019._-", min_size=1, max_size=20)
INSTANTS = st.integers(1, 253_402_300_799_999).map(Instant)
MAYBE_INSTANTS = st.none() | INSTANTS
PAYLOADS = st.builds(Payload, st.text(max_size=10), st.binary(max_size=30))
FAILURES = st.builds(Failure, st.sampled_from(FailureKind), NAMES, st.text(max_size=20))
TOKENS = st.builds(FencingToken, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
INSTANCES = st.builds(InstanceKey, NAMES.map(AgentId), NAMES.map(InstanceId))
REFS = st.builds(AttemptRef, NAMES.map(CollaborationId), NAMES.map(TaskId), TOKENS)
ATTEMPTS = st.builds(
    Attempt,
    TOKENS,
    INSTANCES,
    st.integers(0, 2**63 - 1),
    st.sampled_from(AttemptState),
    INSTANTS,
    st.text(max_size=20),
    MAYBE_INSTANTS,
    MAYBE_INSTANTS,
    st.none() | FAILURES,
    st.none()
    | st.builds(
        Predicted,
        st.integers(1, 2**40),
        st.integers(1, 2**40),
        st.integers(1, 2**40),
        st.integers(0, 4_000).map(lambda tenths: tenths / 10),
    ),
    st.booleans(),
    MAYBE_INSTANTS,
)
SAVEPOINTS = st.builds(Savepoint, st.integers(1, 2**31), INSTANTS, PAYLOADS)
TASK_RECORDS = st.builds(
    TaskRecord,
    NAMES.map(TaskId),
    st.sampled_from(TaskState),
    st.integers(0, 2**60),
    st.integers(0, 2**60),
    st.lists(ATTEMPTS, max_size=3).map(tuple),
    st.integers(0, 2**31),
    st.integers(0, 2**31),
    st.none() | PAYLOADS,
    st.none() | FAILURES,
    MAYBE_INSTANTS,
    MAYBE_INSTANTS,
    MAYBE_INSTANTS,
    st.text(max_size=20),
    st.none() | SAVEPOINTS,
    st.integers(0, 2**31),
)
WARNINGS = st.builds(DeadlineWarning, NAMES.map(TaskId), INSTANTS, INSTANTS, NAMES.map(TaskId), INSTANTS)
COLLABORATION_RECORDS = st.builds(
    CollaborationRecord,
    st.just(CollaborationId("c-1")),
    st.sampled_from(CollaborationState),
    st.integers(0, 2**60),
    MAYBE_INSTANTS,
    NAMES,
    st.none() | FAILURES,
    st.lists(WARNINGS, max_size=3).map(tuple),
    st.none() | st.builds(Trial, NAMES, NAMES),
)
LOCKS = st.builds(
    StoredLock,
    NAMES.map(ResourceName),
    NAMES,
    st.sampled_from(LockMode),
    INSTANCES,
    st.none() | REFS,
    st.booleans(),
    st.sampled_from(Priority),
    INSTANTS,
    st.integers(1, 2**60),
    st.integers(1, 2**60),
)
LIMITS = Limits()


@st.composite
def task_messages(draw: st.DrawFn) -> task_pb.TaskSpec:
    message = task_pb.TaskSpec(
        task_id=draw(NAMES),
        task_name=draw(st.text(max_size=10)),
        description=draw(st.text(max_size=20)),
        priority=draw(st.sampled_from(priority_pb2.Priority.values())),
        task_type=draw(st.just("") | NAMES),
        required_skills=draw(st.lists(NAMES, max_size=3)),
        required_agents=draw(st.lists(NAMES, max_size=2)),
        dependencies=draw(st.lists(NAMES, max_size=3)),
        resources=[
            task_pb.ResourceClaim(resource=name, mode=draw(st.sampled_from(task_pb.LockMode.values())))
            for name in draw(st.lists(NAMES, max_size=2))
        ],
    )
    if draw(st.booleans()):
        message.estimated_duration.FromMilliseconds(draw(st.integers(-5, 10**9)))
        message.attempt_timeout.FromMilliseconds(draw(st.integers(0, 10**9)))
        message.deadline.FromMilliseconds(draw(st.integers(0, 10**12)))
        message.payload.CopyFrom(payload_pb2.Payload(content_type="a/b", data=draw(st.binary(max_size=20))))
        message.retry_policy.attempt_max = draw(st.integers(0, 200))
        message.retry_policy.backoff.FromMilliseconds(draw(st.integers(0, 10**6)))
    return message


# What requesters submit.


def test_what_is_unset_means_what_the_proto_says() -> None:
    spec = specs.task_spec(task_pb.TaskSpec(task_id="t"), "x")
    assert spec == TaskSpec(TaskId("t"), (), encoded=spec.encoded)
    assert (spec.estimated_duration_ms, spec.attempt_timeout_ms) == (1_000, 600_000)
    assert spec.retry == RetryPolicy(3, 200, 30_000)
    whole = specs.collaboration_spec(collaboration_pb.CollaborationSpec(), ())
    assert whole == CollaborationSpec(())
    assert (whole.priority, whole.unknown_skill_policy) == (Priority.NORMAL, UnknownSkillPolicy.WAIT)


def test_a_set_zero_is_not_unset() -> None:
    message = task_pb.TaskSpec(
        estimated_duration=Duration(), attempt_timeout=Duration(), deadline=Timestamp()
    )
    message.retry_policy.backoff.SetInParent()
    spec = specs.task_spec(message, "x")
    assert (spec.estimated_duration_ms, spec.attempt_timeout_ms, spec.deadline) == (0, 0, 0)
    assert spec.retry == RetryPolicy(3, 0, 30_000)


@given(task_messages())
def test_a_task_keeps_its_wire_form_and_its_meaning(message: task_pb.TaskSpec) -> None:
    spec = specs.task_spec(message, "x")
    assert task_pb.TaskSpec.FromString(spec.encoded) == message
    assert spec.required_skills == tuple(Skill(name) for name in message.required_skills)
    assert [claim.resource for claim in spec.resources] == [row.resource for row in message.resources]
    assert spec.priority is (Priority(message.priority) if message.priority else None)
    again = specs.task_spec(task_pb.TaskSpec.FromString(spec.encoded), "x")
    assert (again, again.encoded) == (spec, spec.encoded)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (task_pb.TaskSpec(priority=9), "x.priority"),  # type: ignore[arg-type]
        (task_pb.TaskSpec(resources=[task_pb.ResourceClaim(mode=7)]), "x.resources[0].mode"),  # type: ignore[arg-type]
    ],
)
def test_a_number_without_a_name_is_refused_by_its_path(message: task_pb.TaskSpec, field: str) -> None:
    with pytest.raises(ServiceError) as raised:
        specs.task_spec(message, "x")
    assert raised.value.violations[0].field == field


def test_a_collaborations_id_follows_from_who_asked_and_the_request() -> None:
    first = specs.collaboration_id("operator/admin", "r1")
    assert first == "c-jhsev33nbznnitln", "a repeated request must find its collaboration for ever"
    others = {
        specs.collaboration_id(requester, request)
        for requester, request in (("operator/admin", "r2"), ("agent/admin", "r1"), ("operator/adminr", "1"))
    }
    assert len(others | {first}) == 4
    for number in range(100):
        digest = hashlib.sha256(f"agent/a\0{number}".encode()).digest()
        letters = base64.b32encode(digest[:10]).decode().lower()
        assert specs.collaboration_id("agent/a", str(number)) == f"c-{letters}"
    assert set(first.removeprefix("c-")) <= set("abcdefghijklmnopqrstuvwxyz234567")


def test_equal_content_has_an_equal_hash_and_other_content_another() -> None:
    def content(name: str) -> bytes:
        request = service_pb.SubmitCollaborationRequest(request_id="r")
        request.collaboration.name = name
        return specs.submission(request, "operator/admin").content_hash

    assert content("a") == content("a")
    assert content("a") != content("b")


# What is kept in etcd.


@given(TASK_RECORDS)
def test_task_records_come_back(record: TaskRecord) -> None:
    assert records.decode_task(record.task_id, records.encode_task(record)) == record


@given(COLLABORATION_RECORDS)
def test_collaboration_records_come_back(record: CollaborationRecord) -> None:
    raw = records.encode_collaboration(record)
    assert records.decode_collaboration(record.collaboration_id, raw) == record


@given(LOCKS)
def test_locks_come_back(lock: StoredLock) -> None:
    raw = records.encode_lock(lock)
    assert records.decode_lock(lock.resource, lock.claim_id, raw, lock.revision) == lock


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[]", b"null", b"7", b'{"muster":2}', b'{"muster":1}', b"\xff", b'{"muster":1,"mode":3}'],
)
def test_other_programs_values_are_no_locks_of_ours(raw: bytes) -> None:
    assert records.decode_lock(ResourceName("r"), "c", raw, 1) is None


@given(st.lists(task_messages(), min_size=1, max_size=4), st.sampled_from(Priority), MAYBE_INSTANTS, PAYLOADS)
def test_specifications_come_back(
    messages: list[task_pb.TaskSpec], priority: Priority, deadline: Instant | None, context: Payload
) -> None:
    tasks = tuple(specs.task_spec(message, "x") for message in messages)
    spec = CollaborationSpec(tasks, "n", "t", priority, deadline, UnknownSkillPolicy.FAIL, "chief", context)
    record = SpecRecord(
        CollaborationId("c-1"),
        Submission("operator/admin", RequestId("r"), spec, b"hash"),
        Instant(5),
        9,
    )
    parts = records.encode_specs(record)
    assert records.decode_specs(record.collaboration_id, parts) == record


def test_large_specifications_are_cut_between_tasks() -> None:
    rows = [task_pb.TaskSpec(task_id=f"t{number}", description="x" * 4_000) for number in range(200)]
    tasks = tuple(specs.task_spec(row, "x") for row in rows)
    submission = Submission("o", RequestId("r"), CollaborationSpec(tasks), b"")
    record = SpecRecord(CollaborationId("c"), submission, Instant(1), 1)
    parts = records.encode_specs(record)
    assert len(parts) > 2
    assert max(map(len, parts)) <= records.SPEC_BYTES_MAX + 8_192
    assert records.decode_specs(record.collaboration_id, parts) == record


def test_what_an_older_scheduler_wrote_is_read() -> None:
    """Records outlive the program that wrote them: these bytes must be understood for ever."""
    attempt = Attempt(
        FencingToken(5, 1),
        InstanceKey(AgentId("field-1"), InstanceId("0")),
        3,
        AttemptState.SUCCEEDED,
        Instant(10),
        "why",
        Instant(11),
        Instant(12),
    )
    record = TaskRecord(
        TaskId("t"),
        TaskState.SUCCEEDED,
        4,
        9,
        (attempt,),
        1,
        0,
        Payload("a/b", b"x"),
        None,
        Instant(8),
        Instant(12),
        None,
        "r",
    )
    raw = bytes.fromhex(
        "08051004180922210a040805100112076669656c642d311a013020032803"
        "300a380b400c520377687928013a080a03612f621201784808500c620172"
    )
    assert records.decode_task(TaskId("t"), raw) == record
    assert records.encode_task(record) == raw


def test_a_locks_value_can_be_read_by_a_person() -> None:
    lock = StoredLock(
        ResourceName("bridge-3"),
        "one",
        LockMode.EXCLUSIVE,
        InstanceKey(AgentId("field-1"), InstanceId("0")),
        AttemptRef(CollaborationId("c-1"), TaskId("t"), FencingToken(5, 2)),
        True,
        Priority.HIGH,
        Instant(7),
        5,
    )
    assert records.encode_lock(lock) == (
        b'{"muster":1,"mode":"EXCLUSIVE","agent":"field-1","instance":"0","declared":true,"priority":2,'
        b'"since_ms":7,"epoch":5,"attempt":["c-1","t",5,2]}'
    )


# The Work stream.


def test_the_first_frame_must_be_a_hello_that_makes_sense() -> None:
    hello = work_pb.WorkHello(versions=[2, 1], instance_id="", incarnation=4)
    opened = work.hello(work_pb.WorkRequest(hello=hello), "field-1", StreamId(3), "cause")
    assert opened.instance == InstanceKey(AgentId("field-1"), InstanceId("0"))
    assert opened.incarnation == 4
    for bad, reason in (
        (work_pb.WorkRequest(credits=1), Reason.MALFORMED_FRAME),
        (work_pb.WorkRequest(hello=work_pb.WorkHello(versions=[2])), Reason.UNSUPPORTED_VERSION),
        (
            work_pb.WorkRequest(hello=work_pb.WorkHello(versions=[1], instance_id="a/b", incarnation=1)),
            Reason.INVALID_FIELD,
        ),
        (work_pb.WorkRequest(hello=work_pb.WorkHello(versions=[1])), Reason.INVALID_FIELD),
    ):
        with pytest.raises(ServiceError) as raised:
            work.hello(bad, "field-1", StreamId(1), "cause")
        assert raised.value.reason is reason


@given(REFS, PAYLOADS, FAILURES)
def test_results_say_how_an_attempt_ended(ref: AttemptRef, payload: Payload, failure: Failure) -> None:
    rows = [work_pb.AttemptResult() for _ in range(3)]
    for row in rows:
        values.put_attempt_ref(row.attempt, ref)
    values.put_payload(rows[0].result, payload)
    values.put_failure(rows[1].failure, failure)
    rows[2].cancelled = True
    frame, refused = work.frame(work_pb.WorkRequest(results=rows), StreamId(1), "c", 0.5, LIMITS)
    assert [report.outcome for report in frame.results] == [payload, failure, Cancelled()]
    assert {report.attempt for report in frame.results} == {ref}
    assert refused == []


def test_items_that_are_malformed_are_refused_one_by_one() -> None:
    ref = AttemptRef(CollaborationId("c"), TaskId("t"), FencingToken(1, 1))
    good, empty, large, wordy = (work_pb.AttemptResult() for _ in range(4))
    for row in (good, empty, large, wordy):
        values.put_attempt_ref(row.attempt, ref)
    good.result.data = b"x"
    large.result.data = bytes(65_537)
    wordy.failure.message = "x" * 4_097
    asked = work_pb.LockRequest(lock_request_id=4, claims=[task_pb.ResourceClaim(mode=9)])  # type: ignore[arg-type]
    request = work_pb.WorkRequest(results=[good, empty, large, wordy], lock_requests=[asked])
    frame, refused = work.frame(request, StreamId(1), "c", 0.5, LIMITS)
    assert frame.results == (ResultReport(ref, Payload("", b"x")),)
    assert frame.lock_requests == ()
    reasons = [refusal.error.reason for refusal in refused if refusal.error is not None]
    assert reasons == [
        Reason.INVALID_FIELD,
        Reason.PAYLOAD_TOO_LARGE,
        Reason.INVALID_FIELD,
        Reason.INVALID_FIELD,
    ]


def test_a_frame_holds_everything_that_waits() -> None:
    stage = Stage()
    stage.agent("a", slots=2)
    effects = stage.submit(
        task("t", encoded=task_pb.TaskSpec(task_id="t", description="dig").SerializeToString()),
        name="flood",
        shared_context=Payload("a/b", b"river"),
    )
    [assign] = only(effects, Assign)
    ref = assign.task.ref(assign.attempt)
    lock = HeldLock(ResourceName("bridge"), FencingToken(7, 9))
    error = ServiceError(Reason.RESOURCE_HELD, "held", metadata={"holder": "b"})
    stream = assign.stream
    items: list[WorkItem] = [
        Welcome(stream),
        assign,
        CancelAttempt(stream, ref, "enough"),
        SuspendAttempt(stream, ref, "fire", 1_500),
        AckSavepoint(stream, ref, None),
        AckSavepoint(stream, ref, error),
        AckResult(stream, ref, None),
        AckResult(stream, ref, error),
        Probe(stream, 1),
        Probe(stream, 2),
        GrantLocks(stream, 5, (lock,), Instant(7_000)),
        RefuseLocks(stream, 6, error),
        RevokeLock(stream, lock, "gone"),
    ]
    frame = work.pack(items, epoch=7, silence_ms_max=10_000, probe_interval_ms=3_000)
    frame = work_pb.WorkResponse.FromString(frame.SerializeToString())
    assert (frame.welcome.version, frame.welcome.epoch, frame.welcome.silence_max.seconds) == (1, 7, 10)
    [assignment] = frame.assignments
    assert values.attempt_ref(assignment.attempt) == ref
    assert (assignment.spec.description, assignment.collaboration_name) == ("dig", "flood")
    assert assignment.shared_context.data == b"river"
    assert list(assignment.members) == ["a"]
    assert assignment.coordinator_agent == "a"
    assert (frame.cancels[0].reason, frame.cancels[0].fenced) == ("enough", True)
    assert (frame.suspends[0].reason, frame.suspends[0].grace.ToMilliseconds()) == ("fire", 1_500)
    assert values.attempt_ref(frame.suspends[0].attempt) == ref
    assert [ack.HasField("error") for ack in frame.savepoint_acks] == [False, True]
    assert not frame.result_acks[0].HasField("error")
    assert from_status(frame.result_acks[1].error).metadata["holder"] == "b"
    assert frame.probe_nonce == 2
    assert values.held_lock(frame.lock_grants[0].locks[0]) == lock
    assert frame.lock_grants[0].lease_expire_time.seconds == 7
    assert from_status(frame.lock_refusals[0].error).reason is Reason.RESOURCE_HELD
    assert frame.lock_revocations[0].reason == "gone"
    assert work.size_of(assign) > len("river")
    assert work.size_of(items[0]) == 0


@given(st.binary(max_size=200))
def test_hostile_bytes_end_in_an_event_or_a_typed_error(raw: bytes) -> None:
    request = work_pb.WorkRequest()
    try:
        request.ParseFromString(raw)
    except DecodeError:
        # The server answers these with MALFORMED_FRAME.
        return
    with contextlib.suppress(ServiceError):
        work.frame(request, StreamId(1), "c", 0.5, LIMITS)
    with contextlib.suppress(ServiceError):
        work.hello(request, "a", StreamId(1), "c")


def test_every_claim_that_is_held_or_waits_is_listed() -> None:
    stage = Stage()
    a, b = stage.agent("a"), stage.agent("b")
    claims = (ResourceClaim(ResourceName("bridge")),)
    stage.frame(a, lock_requests=(LockRequested(1, claims),))
    stage.frame(b, lock_requests=(LockRequested(1, claims),))
    stage.batch(LockKeysChanged("w", 0.0, foreign=(ForeignLock(ResourceName("road"), "694d", 3),)))
    book = stage.state.book
    rows: list[Any] = [views.lock_message(book, view) for view in book.locks.snapshot()]
    assert [(row.resource, row.held, row.agent_id) for row in rows] == [
        ("bridge", True, "a"),
        ("bridge", False, "b"),
        ("road", True, "694d"),
    ]
    assert rows[0].token.number
    assert not rows[1].HasField("token")
    assert rows[1].since_time.seconds
