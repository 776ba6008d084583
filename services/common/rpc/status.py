"""`ServiceError` to `google.rpc.Status` and back: what travels in trailers and inside stream frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.common.core.errors import FieldViolation, Reason, ServiceError

DOMAIN = "muster"
TRAILER = "grpc-status-details-bin"
# gRPC refuses more than 8 KiB of metadata by default and then replaces the whole status by its own
# RESOURCE_EXHAUSTED. The message travels twice (percent-encoded, and inside the details) and the details
# may travel base64-encoded: 3 * 768 + 4/3 * 3,584 = 7,083 bytes at most.
MESSAGE_BYTES_MAX = 768
STATUS_BYTES_MAX = 3_584
METADATA_VALUE_BYTES_MAX = 512
METADATA_BYTES_MAX = 1_536

# What a status without our ErrorInfo means: it came from gRPC itself or from a foreign server.
_FOREIGN: dict[str, Reason] = {
    "INVALID_ARGUMENT": Reason.INVALID_FIELD,
    "FAILED_PRECONDITION": Reason.WRONG_STATE,
    "UNAUTHENTICATED": Reason.IDENTITY_MISSING,
    "PERMISSION_DENIED": Reason.ACCESS_DENIED,
    "RESOURCE_EXHAUSTED": Reason.QUOTA_EXCEEDED,
    "UNIMPLEMENTED": Reason.UNSUPPORTED_VERSION,
    "UNAVAILABLE": Reason.PEER_SILENT,
    "DEADLINE_EXCEEDED": Reason.CALL_TIMED_OUT,
    "CANCELLED": Reason.CALL_CANCELLED,
}


def status_proto(error: ServiceError) -> status_pb2.Status:
    """Return the error as it travels inside a stream's frame."""
    return to_status(error)


def to_status(error: ServiceError) -> status_pb2.Status:
    """Return the error as a `google.rpc.Status` of at most `STATUS_BYTES_MAX` bytes.

    What does not fit is left out from the end of the violations, and ErrorInfo's metadata
    "violations_omitted" says how many.
    """
    row = error.row
    status = status_pb2.Status(
        code=code_pb2.Code.Value(row.code), message=_cut(error.message, MESSAGE_BYTES_MAX)
    )
    if error.retry_after_ms is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_after_ms)
        status.details.add().Pack(retry)
    if row.code == "RESOURCE_EXHAUSTED":
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(
            subject=_cut(error.metadata.get("limit", error.reason), 128), description=status.message
        )
        status.details.add().Pack(quota)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    # The table's own two keys win over what the raiser wrote.
    info.metadata.update(_bounded(error.metadata))
    info.metadata.update({"definite": _flag(value=row.definite), "retryable": _flag(value=row.retryable)})
    bad = error_details_pb2.BadRequest()
    room = STATUS_BYTES_MAX - status.ByteSize() - info.ByteSize() - 256
    for violation in error.violations:
        one = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, 256), description=_cut(violation.description, 512)
        )
        room -= one.ByteSize() + 4
        if room < 0:
            break
        bad.field_violations.append(one)
    if omitted := len(error.violations) - len(bad.field_violations):
        info.metadata["violations_omitted"] = str(omitted)
    status.details.add().Pack(info)
    if bad.field_violations:
        status.details.add().Pack(bad)
    return status


def from_status(status: status_pb2.Status) -> ServiceError:
    """Return the error that a status of ours, or of gRPC itself, stands for."""
    reason: Reason | None = None
    metadata: dict[str, str] = {}
    violations: tuple[FieldViolation, ...] = ()
    retry_after_ms: int | None = None
    for detail in status.details:
        try:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                if info.domain == DOMAIN:
                    reason = _known(info.reason)
                    metadata = dict(info.metadata)
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest.FromString(detail.value)
                violations = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo.FromString(detail.value)
                retry_after_ms = retry.retry_delay.ToMilliseconds()
        except DecodeError:
            # A detail that can not be read says nothing; the code and the message still count.
            continue
    if reason is None:
        reason = _FOREIGN.get(_code_name(status.code), Reason.INTERNAL)
    return ServiceError(reason, status.message, violations, metadata, retry_after_ms)


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """Return the error that a failed call stands for."""
    # Pairs at run time, whatever the stubs say.
    trailers = cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ())
    for key, value in trailers:
        if key == TRAILER and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    code: int = error.code().value[0]
    return from_status(status_pb2.Status(code=code, message=error.details() or ""))


def grpc_code(error: ServiceError) -> grpc.StatusCode:
    """Return the gRPC code of the error's reason."""
    return grpc.StatusCode[error.row.code]


def _known(reason: str) -> Reason | None:
    # A newer server may know more reasons; its code then decides.
    return Reason(reason) if reason in Reason.__members__ else None


def _code_name(code: int) -> str:
    return str(code_pb2.Code.Name(code)) if code in code_pb2.Code.values() else "UNKNOWN"


def _bounded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what fits of the raiser's metadata: each value cut, all together bounded."""
    kept: dict[str, str] = {}
    room = METADATA_BYTES_MAX
    for key, value in metadata.items():
        short = _cut(value, METADATA_VALUE_BYTES_MAX)
        # Four bytes of protobuf framing for the pair, its key and its value.
        room -= len(key.encode("utf-8", "replace")) + len(short.encode("utf-8", "replace")) + 8
        if room >= 0:
            kept[key] = short
    return kept


def _flag(*, value: bool) -> str:
    return "true" if value else "false"


def _cut(text: str, limit_bytes: int) -> str:
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit_bytes:
        return text
    return raw[: limit_bytes - 3].decode("utf-8", "ignore") + "…"
