"""Errors on the wire: round trips, bounds, statuses of others."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.common.core.errors import TABLE, FieldViolation, Reason, ServiceError
from services.common.rpc.status import (
    MESSAGE_BYTES_MAX,
    STATUS_BYTES_MAX,
    TRAILER,
    from_rpc_error,
    from_status,
    grpc_code,
    status_proto,
    to_status,
)

small = st.text(max_size=40)
errors = st.builds(
    ServiceError,
    st.sampled_from(Reason),
    small,
    st.lists(st.builds(FieldViolation, small, small), max_size=4).map(tuple),
    st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1, max_size=10), small, max_size=3),
    st.none() | st.integers(0, 10**9),
)
any_size = st.text(max_size=3_000)
huge = st.builds(
    ServiceError,
    st.sampled_from(Reason),
    any_size,
    st.lists(st.builds(FieldViolation, any_size, any_size), max_size=30).map(tuple),
    st.dictionaries(small, any_size, max_size=20),
)


def rpc_error(code: grpc.StatusCode, details: str, trailers: list[tuple[str, Any]]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details, "")


@given(errors)
def test_round_trip(error: ServiceError) -> None:
    again = from_status(status_pb2.Status.FromString(to_status(error).SerializeToString()))
    assert (again.reason, again.message, again.violations, again.retry_after_ms) == (
        error.reason,
        error.message,
        error.violations,
        error.retry_after_ms,
    )
    assert again.metadata == {
        **error.metadata,
        "definite": str(error.row.definite).lower(),
        "retryable": str(error.row.retryable).lower(),
    }


@given(huge)
def test_a_status_always_fits_into_the_trailers(error: ServiceError) -> None:
    status = to_status(error)
    assert status.ByteSize() <= STATUS_BYTES_MAX
    assert len(status.message.encode()) <= MESSAGE_BYTES_MAX
    again = from_status(status)
    assert again.reason is error.reason
    assert len(again.violations) + int(again.metadata.get("violations_omitted", "0")) == len(error.violations)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_code(reason: Reason) -> None:
    error = ServiceError(reason, "said")
    assert grpc_code(error).name == TABLE[reason].code
    assert code_pb2.Code.Name(status_proto(error).code) == TABLE[reason].code
    assert grpc_code(error).value[0] == status_proto(error).code


def test_exhausted_names_the_limit() -> None:
    status = to_status(ServiceError(Reason.QUOTA_EXCEEDED, "wait", metadata={"limit": "sends_per_second"}))
    quota = error_details_pb2.QuotaFailure()
    assert any(detail.Unpack(quota) for detail in status.details)
    assert [(one.subject, one.description) for one in quota.violations] == [("sends_per_second", "wait")]


def test_own_metadata_does_not_overrule_the_table() -> None:
    error = ServiceError(Reason.INTERNAL, "x", metadata={"definite": "true"})
    assert from_status(to_status(error)).metadata["definite"] == "false"


def test_a_rich_status_wins_over_the_plain_one() -> None:
    rich = to_status(ServiceError(Reason.STALE_FENCING_TOKEN, "older", metadata={"token": "3.1"}))
    error = from_rpc_error(
        rpc_error(grpc.StatusCode.UNKNOWN, "?", [("x", "y"), (TRAILER, rich.SerializeToString())])
    )
    assert error.reason is Reason.STALE_FENCING_TOKEN
    assert error.metadata["token"] == "3.1"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.PEER_SILENT),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.CALL_TIMED_OUT),
        (grpc.StatusCode.CANCELLED, Reason.CALL_CANCELLED),
        (grpc.StatusCode.UNIMPLEMENTED, Reason.UNSUPPORTED_VERSION),
        (grpc.StatusCode.PERMISSION_DENIED, Reason.ACCESS_DENIED),
        (grpc.StatusCode.DATA_LOSS, Reason.INTERNAL),
    ],
)
def test_a_status_of_grpc_itself(code: grpc.StatusCode, reason: Reason) -> None:
    for trailers in ([], [(TRAILER, b"\xff\xff")]):
        error = from_rpc_error(rpc_error(code, "said", trailers))
        assert (error.reason, error.message) == (reason, "said")


def test_a_status_of_a_newer_or_foreign_server() -> None:
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="new")
    info = error_details_pb2.ErrorInfo(reason="SOMETHING_NEW", domain="muster", metadata={"a": "b"})
    status.details.add().Pack(info)
    error = from_status(status)
    assert (error.reason, error.metadata) == (Reason.PEER_SILENT, {"a": "b"})
    foreign = status_pb2.Status(code=code_pb2.NOT_FOUND)
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="INTERNAL", domain="elsewhere"))
    assert from_status(foreign).metadata == {}
    assert from_status(status_pb2.Status(code=999)).reason is Reason.INTERNAL


def test_an_unreadable_detail_is_passed_over() -> None:
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="m")
    broken = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    status.details.append(broken)
    assert from_status(status).reason is Reason.INVALID_FIELD
