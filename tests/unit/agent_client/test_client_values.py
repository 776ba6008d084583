"""Payloads, submissions, plain values and errors: what people write and what they get back."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from muster.common.v1 import fencing_pb2, payload_pb2, priority_pb2
from muster.scheduler.v1 import collaboration_pb2, task_pb2, work_pb2

from agent_client import errors
from agent_client.core.records import PAYLOAD_BYTES_MAX, Payload
from agent_client.errors import InvalidRequestError, from_status, to_fault
from agent_client.payload import EMPTY, JSON, OCTETS, TEXT, decode, encode
from agent_client.plain import to_plain
from agent_client.spec import build_spec
from services.common.core.errors import TABLE, FieldViolation, Reason, ServiceError
from services.common.rpc.status import to_status

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


# Payloads.


@given(st.binary(max_size=50) | st.text(max_size=50) | JSON_VALUES)
def test_values_come_back_as_they_were(value: object) -> None:
    assert decode(encode(value)) == value


def test_media_types_say_what_a_value_is() -> None:
    assert encode({"a": 1}) == Payload(JSON, b'{"a":1}')
    assert encode("水") == Payload(TEXT, "水".encode())
    assert encode(bytearray(b"x")) == Payload(OCTETS, b"x")
    assert encode(Payload("image/png", b"x")) == Payload("image/png", b"x")
    assert decode(EMPTY) is None
    assert decode(Payload("", b"x")) == b"x"
    assert decode(Payload("application/ld+json", b"[1]")) == [1]
    assert decode(Payload("image/png", b"x")) == b"x"


@pytest.mark.parametrize("payload", [Payload(JSON, b"{"), Payload(TEXT, b"\xff"), Payload(JSON, b"\xff")])
def test_a_false_media_type_gives_the_bytes(payload: Payload) -> None:
    assert decode(payload) == payload.data


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), {"a": b"x"}])
def test_what_json_can_not_hold_is_refused_by_field(value: object) -> None:
    with pytest.raises(InvalidRequestError, match="result: can not be written as JSON") as caught:
        encode(value, "result")
    assert caught.value.violations[0].field == "result"


def test_the_size_limit_is_exact() -> None:
    encode(b"x" * PAYLOAD_BYTES_MAX)
    with pytest.raises(InvalidRequestError) as caught:
        encode(b"x" * (PAYLOAD_BYTES_MAX + 1))
    assert caught.value.reason == "PAYLOAD_TOO_LARGE"
    assert caught.value.metadata["size_bytes"] == "65537"


# Submissions.


def spec(**fields: Any) -> collaboration_pb2.CollaborationSpec:
    return build_spec({"tasks": [{"task_id": "a", "required_skills": ["s"], **fields}]})


def test_every_field_of_the_protos_can_be_written() -> None:
    built = build_spec(
        {
            "scheduling_policy": "multi_objective",
            "policy_weights": {"finish_time": 2, "quality": 1, "cost": 0.5, "fairness": 0.5},
            "name": "flood",
            "collaboration_type": "flood-response",
            "priority": "emergency",
            "deadline": "2026-07-01T12:00:00Z",
            "unknown_skill_policy": "fail",
            "coordinator_agent": "chief",
            "shared_context": {"river": "Qinghe"},
            "tasks": [
                {
                    "task_id": "a",
                    "task_name": "A",
                    "description": "first",
                    "priority": "LOW",
                    "task_type": "plan",
                    "required_skills": "one",
                    "required_agents": ["x", "y"],
                    "estimated_duration": 1.5,
                    "dependencies": ["b"],
                    "deadline": datetime(2026, 7, 1, tzinfo=UTC),
                    "resources": ["bridge", {"resource": "road", "mode": "shared"}],
                    "retry_policy": {
                        "attempt_max": 2,
                        "backoff": "0.25s",
                        "backoff_max": timedelta(seconds=9),
                    },
                    "payload": [1, 2],
                    "attempt_timeout": 60,
                    "speculation": "never",
                    "needs": {"gpu_milli": 500},
                    "gang": {"size": 2, "members": [["one"], {"required_skills": ["two"]}]},
                },
                {"task_id": "b", "required_skills": ["two"], "payload": None},
            ],
        }
    )
    for message in (built, built.tasks[0]):
        written = {field.name for field, _ in message.ListFields()}
        assert written == {field.name for field in message.DESCRIPTOR.fields}
    assert built.priority == priority_pb2.PRIORITY_EMERGENCY
    assert built.unknown_skill_policy == collaboration_pb2.UNKNOWN_SKILL_POLICY_FAIL
    first = built.tasks[0]
    assert first.estimated_duration.ToMilliseconds() == 1_500
    assert first.retry_policy.backoff.ToMilliseconds() == 250
    assert first.resources[0].mode == task_pb2.LOCK_MODE_UNSPECIFIED
    assert first.resources[1].mode == task_pb2.LOCK_MODE_SHARED
    assert first.payload == payload_pb2.Payload(content_type=JSON, data=b"[1,2]")
    assert not built.tasks[1].HasField("payload")
    assert build_spec(built) is built


def test_tasks_may_be_named_by_a_mapping_and_deadlines_counted_from_now() -> None:
    built = build_spec({"deadline": timedelta(hours=1), "tasks": {"a": {"required_skills": ["s"]}}})
    assert built.tasks[0].task_id == "a"
    left = built.deadline.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)


@pytest.mark.parametrize(
    ("fields", "path", "words"),
    [
        ({"task_id": 3}, "task_id", "must be text, not int 3"),
        ({"dependancies": []}, "dependancies", "did you mean 'dependencies'?"),
        ({"zzz": []}, "zzz", "known are task_id"),
        ({"required_skills": 3}, "required_skills", "must be a list of texts"),
        ({"required_skills": ["a", 3]}, "required_skills[1]", "must be text"),
        ({"estimated_duration": "soon"}, "estimated_duration", 'such as 1.5 or "1.5s"'),
        ({"estimated_duration": -1}, "estimated_duration", "must be seconds"),
        ({"estimated_duration": True}, "estimated_duration", "must be seconds"),
        ({"deadline": "tomorrow"}, "deadline", "RFC 3339"),
        ({"deadline": "2026-07-01T12:00:00"}, "deadline", "time zone"),
        ({"deadline": 17}, "deadline", "must be a time"),
        ({"priority": "urgent"}, "priority", "is none of EMERGENCY, HIGH, NORMAL, LOW"),
        ({"resources": [{"mode": "both"}]}, "resources[0].mode", "is none of EXCLUSIVE, SHARED"),
        ({"resources": 7}, "resources", "must be a list of resources"),
        ({"resources": [7]}, "resources[0]", "must be an object with fields"),
        ({"retry_policy": {"attempt_max": -1}}, "retry_policy.attempt_max", "whole number"),
        ({"retry_policy": []}, "retry_policy", "must be an object"),
        ({"payload": object()}, "payload", "can not be written as JSON"),
        ({"payload": "x" * 65_537}, "payload", "at most 65,536"),
    ],
)
def test_a_bad_field_is_named_with_what_to_do(fields: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        spec(**fields)
    (violation,) = caught.value.violations
    assert violation.field == f"collaboration.tasks[0].{path}"
    assert words in violation.description
    assert violation.field in str(caught.value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([], "collaboration"),
        ({"tasks": 3}, "collaboration.tasks"),
        ({"tasks": "abc"}, "collaboration.tasks"),
        ({"tasks": [3]}, "collaboration.tasks[0]"),
        ({"tasks": {"a": 3}}, "collaboration.tasks[0]"),
    ],
)
def test_a_bad_shape_is_named(value: Any, path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        build_spec(value)
    assert caught.value.violations[0].field == path


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        build_spec({"nmae": "x", "tasks": [{"task_id": 1}, {"priority": "x"}]})
    assert len(caught.value.violations) == 3


@given(JSON_VALUES)
def test_any_json_gives_a_submission_or_a_typed_error(value: Any) -> None:
    with contextlib.suppress(InvalidRequestError):
        build_spec(value)


# Plain values.


def test_messages_print_for_people_and_programs() -> None:
    task = task_pb2.Task(
        spec=task_pb2.TaskSpec(task_id="a", payload=payload_pb2.Payload(content_type=JSON, data=b'{"n":1}')),
        state=task_pb2.TASK_STATE_RUNNING,
        result=payload_pb2.Payload(data=b"\x00"),
        attempts=[task_pb2.Attempt(token=fencing_pb2.FencingToken(epoch=2, number=3))],
    )
    task.ready_time.FromDatetime(datetime(2026, 7, 1, 12, tzinfo=UTC))
    task.spec.estimated_duration.FromMilliseconds(1_500)
    plain = to_plain(task)
    assert plain["state"] == "RUNNING"
    assert plain["ready_time"] == "2026-07-01T12:00:00.000Z"
    assert plain["spec"]["estimated_duration"] == 1.5
    assert plain["spec"]["payload"] == {"n": 1}
    assert plain["result"] == {"content_type": "", "base64": "AA=="}
    assert plain["attempts"][0]["token"] == "2.3"
    assert plain["generation"] == 0
    assert "failure" not in plain
    task.state = 99  # type: ignore[assignment]  # a newer scheduler may know more states
    assert to_plain(task)["state"] == 99


def test_maps_and_errors_print_too() -> None:
    assignment = work_pb2.Assignment(inputs={"b": payload_pb2.Payload(content_type=TEXT, data=b"hi")})
    assert to_plain(assignment)["inputs"] == {"b": "hi"}
    ack = work_pb2.ResultAck(error=to_status(ServiceError(Reason.STALE_FENCING_TOKEN, "too old")))
    assert to_plain(ack)["error"] == {
        "reason": "STALE_FENCING_TOKEN",
        "message": "too old",
        "definite": True,
    }


# Errors.


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_of_the_services_arrives_as_it_was_sent(reason: Reason) -> None:
    sent = ServiceError(
        reason,
        "what to do",
        (FieldViolation("a.b", "is bad"),),
        {"holder": "agent/x", "coordinator": "127.0.0.1:1"},
        1_500,
    )
    error = from_status(to_status(sent))
    assert error.reason == reason
    assert (error.definite, error.retryable) == (TABLE[reason].definite, TABLE[reason].retryable)
    assert error.message == "what to do"
    assert error.retry_after == 1.5
    assert error.violations == (errors.Violation("a.b", "is bad"),)
    assert str(error) == f"{reason}: what to do"
    fault = to_fault(error)
    assert (fault.reason, fault.retry_after_ms, fault.coordinator) == (reason, 1_500, "127.0.0.1:1")


@pytest.mark.parametrize(
    ("reason", "family"),
    [
        (Reason.INVALID_FIELD, errors.InvalidRequestError),
        (Reason.CYCLIC_DEPENDENCY, errors.InvalidRequestError),
        (Reason.UNKNOWN_SKILL, errors.PreconditionError),
        (Reason.STALE_FENCING_TOKEN, errors.StaleTokenError),
        (Reason.INCARNATION_FENCED, errors.FencedError),
        (Reason.RESOURCE_HELD, errors.ResourceHeldError),
        (Reason.LOCK_LOST, errors.LockLostError),
        (Reason.REQUEST_ID_REUSED, errors.RequestReusedError),
        (Reason.AGENT_NOT_FOUND, errors.NotFoundError),
        (Reason.ACCESS_DENIED, errors.AccessError),
        (Reason.IDENTITY_MISSING, errors.AccessError),
        (Reason.MAILBOX_FULL, errors.LimitError),
        (Reason.NOT_COORDINATOR, errors.UnavailableError),
        (Reason.HISTORY_GONE, errors.HistoryGoneError),
        (Reason.INTERNAL, errors.InternalError),
        (Reason.CALL_TIMED_OUT, errors.CallTimeoutError),
    ],
)
def test_families_can_be_caught(reason: Reason, family: type[errors.MusterError]) -> None:
    assert type(from_status(to_status(ServiceError(reason, "x")))) is family


def test_a_foreign_status_says_what_grpc_says() -> None:
    error = from_status(status_pb2.Status(code=grpc.StatusCode.UNIMPLEMENTED.value[0], message="no method"))
    assert (type(error), error.reason, error.retryable) == (errors.InternalError, "UNIMPLEMENTED", False)
    error = from_status(status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0]))
    assert (error.reason, error.retryable, error.definite) == ("UNAVAILABLE", True, False)
    error = from_status(status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]))
    assert not error.retryable, "too large a message will not become smaller"


def test_details_that_are_foreign_or_broken_do_no_harm() -> None:
    status = status_pb2.Status(code=5, message="m")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="other", reason="THEIRS"))
    status.details.append(
        AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")
    )
    assert from_status(status).reason == "NOT_FOUND"
