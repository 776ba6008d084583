"""What an etcd failure means: definite where etcd says so, else "it may have happened"."""

from __future__ import annotations

import grpc
from grpc.aio import AioRpcError

from services.common.core.errors import Reason, ServiceError

# How long a caller should leave etcd alone before the next try, in milliseconds: about one etcd election.
_RETRY_AFTER_MS = 1_000


class CompactedError(ServiceError):
    """The revision that was asked for is no longer kept; read the present state and go on from there."""

    def __init__(self, compact_revision: int = 0) -> None:
        super().__init__(
            Reason.HISTORY_GONE,
            "etcd has compacted this revision; load the present state and watch from there",
        )
        # The oldest revision that is still kept; 0 when etcd did not say.
        self.compact_revision = compact_revision


class LeaseGoneError(ServiceError):
    """The lease has expired or was revoked; what hung on it is deleted. The write did not happen."""

    def __init__(self, lease_id: int) -> None:
        super().__init__(Reason.LOCK_LOST, f"etcd lease {lease_id:x} has ended; open a new session")
        self.lease_id = lease_id


def unavailable(story: str) -> ServiceError:
    """Return the indefinite error: the operation may or may not have happened."""
    return ServiceError(Reason.STORE_UNAVAILABLE, story, retry_after_ms=_RETRY_AFTER_MS)


def closed(doing: str) -> ServiceError:
    """Return the error of a call on, or cut by, a channel that was closed."""
    return unavailable(f"etcd: {doing}: the client was closed")


# (gRPC code, a part of etcd's text, our reason, what to do); the first row that fits wins. The texts are
# those of etcd's `api/v3rpc/rpctypes/error.go`; what fits no row is indefinite.
_DEFINITE: tuple[tuple[grpc.StatusCode, str, Reason, str], ...] = (
    (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "space exceeded",
        Reason.DISK_FULL,
        "; compact and defragment etcd or raise its quota, then `etcdctl alarm disarm`",
    ),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max", Reason.PAYLOAD_TOO_LARGE, ""),
    (grpc.StatusCode.INVALID_ARGUMENT, "too large", Reason.PAYLOAD_TOO_LARGE, ""),
    (grpc.StatusCode.INVALID_ARGUMENT, "", Reason.INTERNAL, ""),
    (grpc.StatusCode.OUT_OF_RANGE, "", Reason.INTERNAL, ""),
    (grpc.StatusCode.UNIMPLEMENTED, "", Reason.INTERNAL, ""),
)


def from_rpc_error(error: AioRpcError, *, doing: str, lease_id: int = 0) -> ServiceError:
    """Return our error for one of etcd's."""
    code, text = error.code(), error.details() or ""
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in text:
        return CompactedError()
    if code is grpc.StatusCode.NOT_FOUND and "lease" in text:
        return LeaseGoneError(lease_id)
    for row_code, part, reason, advice in _DEFINITE:
        if code is row_code and part in text:
            return ServiceError(reason, f"etcd: {doing}: {text}{advice}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return unavailable(f"etcd: {doing}: no answer in time; it may or may not have happened")
    return unavailable(f"etcd: {doing}: {text or code.name}")
