"""The nouns that the client's cores, streams and handlers share. See docs/glossary.md for the words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# Largest inline payload, in bytes; what is larger travels by reference (muster.common.v1.Payload).
PAYLOAD_BYTES_MAX = 65_536


class FencingToken(NamedTuple):
    """The number that orders the right to write one thing: newer wins, older is refused.

    Pass it to whatever you write while you hold a lock or run an attempt; the thing that is written keeps
    the newest token it has seen and refuses an older one.
    """

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}"


class AttemptRef(NamedTuple):
    """One try of one task."""

    collaboration_id: str
    task_id: str
    token: FencingToken

    @property
    def task_key(self) -> tuple[str, str]:
        """The task that it tries, unique in the plane."""
        return self.collaboration_id, self.task_id

    def __str__(self) -> str:
        return f"{self.collaboration_id}/{self.task_id}#{self.token.number}"


@dataclass(frozen=True, slots=True)
class Payload:
    """An opaque value with its media type; at most `PAYLOAD_BYTES_MAX` bytes."""

    content_type: str
    data: bytes

    def __repr__(self) -> str:
        """Show no content: a payload may hold what a log must not."""
        return f"Payload({self.content_type!r}, {len(self.data)} bytes)"


@dataclass(frozen=True, slots=True)
class Claim:
    """A resource that is wanted, alone or together with other readers."""

    resource: str
    shared: bool = False


@dataclass(frozen=True, slots=True)
class HeldLock:
    """A resource that is held, and the token under which."""

    resource: str
    token: FencingToken


@dataclass(frozen=True, slots=True)
class Succeeded:
    """An attempt's handler returned a result."""

    result: Payload


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt's handler gave up; `permanent` failures are not tried again."""

    permanent: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """An attempt's handler stopped because it was asked to."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """An attempt's handler stopped to make room for more urgent work."""

    # None for what it saved before, if anything.
    savepoint: Payload | None = None


Outcome = Succeeded | Failed | Stopped | Suspended


@dataclass(frozen=True, slots=True)
class Fault:
    """What a core needs to know of an error; `reason` is an ErrorReason name without its prefix."""

    reason: str
    message: str = ""
    definite: bool = False
    retryable: bool = True
    # Milliseconds that the service asks to wait; None when it says nothing.
    retry_after_ms: int | None = None
    # The leader's address, when a standby named it.
    coordinator: str = ""
