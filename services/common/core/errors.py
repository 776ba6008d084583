"""The one table of errors: what each reason means on the wire, and what a caller may conclude from it.

The names are those of `muster.common.v1.ErrorReason`; a test compares both. Definite and indefinite are
Maelstrom's words: a definite error says that the operation did not and will not happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto
from types import MappingProxyType


class Reason(StrEnum):
    """Why a call was refused or failed."""

    @staticmethod
    def _generate_next_value_(name: str, *_: object) -> str:
        return name

    INVALID_FIELD = auto()
    MALFORMED_FRAME = auto()
    PAYLOAD_TOO_LARGE = auto()
    CYCLIC_DEPENDENCY = auto()
    DEADLINE_IN_PAST = auto()
    DEADLINE_IMPOSSIBLE = auto()
    UNKNOWN_SKILL = auto()
    STALE_FENCING_TOKEN = auto()
    INCARNATION_FENCED = auto()
    STALE_ACK_TOKEN = auto()
    UNSUPPORTED_VERSION = auto()
    WRONG_STATE = auto()
    UNMEETABLE = auto()
    RESOURCE_HELD = auto()
    LOCK_LOST = auto()
    REQUEST_ID_REUSED = auto()
    AGENT_NOT_FOUND = auto()
    COLLABORATION_NOT_FOUND = auto()
    TASK_NOT_FOUND = auto()
    ENTRY_NOT_FOUND = auto()
    LOCK_NOT_FOUND = auto()
    MESSAGE_NOT_FOUND = auto()
    RECEIVER_NOT_FOUND = auto()
    IDENTITY_MISSING = auto()
    ACCESS_DENIED = auto()
    IDENTITY_MISMATCH = auto()
    QUOTA_EXCEEDED = auto()
    MAILBOX_FULL = auto()
    DISK_FULL = auto()
    NOT_COORDINATOR = auto()
    STORE_UNAVAILABLE = auto()
    AUDIT_UNAVAILABLE = auto()
    SHUTTING_DOWN = auto()
    PEER_SILENT = auto()
    HISTORY_GONE = auto()
    ROUTE_UNAVAILABLE = auto()
    INTERNAL = auto()
    CALL_TIMED_OUT = auto()
    CALL_CANCELLED = auto()


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """The gRPC code's name, whether the error is definite, whether the same call may succeed later."""

    code: str
    definite: bool
    retryable: bool


_REFUSED = ErrorRow("INVALID_ARGUMENT", definite=True, retryable=False)
_PRECONDITION = ErrorRow("FAILED_PRECONDITION", definite=True, retryable=False)
_NOT_FOUND = ErrorRow("NOT_FOUND", definite=True, retryable=False)
_DENIED = ErrorRow("PERMISSION_DENIED", definite=True, retryable=False)
_EXHAUSTED = ErrorRow("RESOURCE_EXHAUSTED", definite=True, retryable=True)
_AWAY = ErrorRow("UNAVAILABLE", definite=True, retryable=True)

TABLE: Mapping[Reason, ErrorRow] = MappingProxyType(
    {
        Reason.INVALID_FIELD: _REFUSED,
        Reason.MALFORMED_FRAME: _REFUSED,
        Reason.PAYLOAD_TOO_LARGE: _REFUSED,
        Reason.CYCLIC_DEPENDENCY: _REFUSED,
        Reason.DEADLINE_IN_PAST: _REFUSED,
        Reason.DEADLINE_IMPOSSIBLE: _PRECONDITION,
        Reason.UNKNOWN_SKILL: ErrorRow("FAILED_PRECONDITION", definite=True, retryable=True),
        Reason.STALE_FENCING_TOKEN: _PRECONDITION,
        Reason.INCARNATION_FENCED: _PRECONDITION,
        Reason.STALE_ACK_TOKEN: _PRECONDITION,
        Reason.UNSUPPORTED_VERSION: _PRECONDITION,
        Reason.WRONG_STATE: _PRECONDITION,
        Reason.UNMEETABLE: ErrorRow("FAILED_PRECONDITION", definite=True, retryable=True),
        Reason.RESOURCE_HELD: ErrorRow("ABORTED", definite=True, retryable=True),
        Reason.LOCK_LOST: ErrorRow("ABORTED", definite=True, retryable=True),
        Reason.REQUEST_ID_REUSED: ErrorRow("ALREADY_EXISTS", definite=True, retryable=False),
        Reason.AGENT_NOT_FOUND: _NOT_FOUND,
        Reason.COLLABORATION_NOT_FOUND: _NOT_FOUND,
        Reason.TASK_NOT_FOUND: _NOT_FOUND,
        Reason.ENTRY_NOT_FOUND: _NOT_FOUND,
        Reason.LOCK_NOT_FOUND: _NOT_FOUND,
        Reason.MESSAGE_NOT_FOUND: _NOT_FOUND,
        Reason.RECEIVER_NOT_FOUND: _NOT_FOUND,
        Reason.IDENTITY_MISSING: ErrorRow("UNAUTHENTICATED", definite=True, retryable=False),
        Reason.ACCESS_DENIED: _DENIED,
        Reason.IDENTITY_MISMATCH: _DENIED,
        Reason.QUOTA_EXCEEDED: _EXHAUSTED,
        Reason.MAILBOX_FULL: _EXHAUSTED,
        Reason.DISK_FULL: _EXHAUSTED,
        Reason.NOT_COORDINATOR: _AWAY,
        Reason.STORE_UNAVAILABLE: ErrorRow("UNAVAILABLE", definite=False, retryable=True),
        Reason.AUDIT_UNAVAILABLE: _AWAY,
        Reason.SHUTTING_DOWN: _AWAY,
        Reason.PEER_SILENT: ErrorRow("UNAVAILABLE", definite=False, retryable=True),
        Reason.HISTORY_GONE: ErrorRow("OUT_OF_RANGE", definite=True, retryable=False),
        Reason.ROUTE_UNAVAILABLE: _AWAY,
        Reason.INTERNAL: ErrorRow("INTERNAL", definite=False, retryable=False),
        Reason.CALL_TIMED_OUT: ErrorRow("DEADLINE_EXCEEDED", definite=False, retryable=True),
        Reason.CALL_CANCELLED: ErrorRow("CANCELLED", definite=False, retryable=True),
    }
)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field (as a path, for example `collaboration.tasks[2].deadline`) and what to do about it."""

    field: str
    description: str


@dataclass(eq=False)
class ServiceError(Exception):
    """An error that a caller is meant to see; becomes a `google.rpc.Status` at the edge."""

    reason: Reason
    message: str
    violations: tuple[FieldViolation, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    # Milliseconds after which the call may be tried again; None when nothing can be said.
    retry_after_ms: int | None = None

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @property
    def row(self) -> ErrorRow:
        """The reason's row in the table."""
        return TABLE[self.reason]


def invalid(field_path: str, description: str) -> ServiceError:
    """Return the error for one bad field."""
    return ServiceError(
        Reason.INVALID_FIELD, f"{field_path}: {description}", (FieldViolation(field_path, description),)
    )
