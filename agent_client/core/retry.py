"""Which failures may be tried again, and when.

Method: exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", AWS, 2015).
Definite and indefinite are Maelstrom's words: after a definite error nothing happened and nothing will.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_client.core.records import Fault

# A link that lived this long counts as healthy: the next failure starts from the shortest delay again.
HEALTHY_AFTER_MS = 2_000

# Reasons that no waiting will mend, even after the link had worked.
FATAL = frozenset({"IDENTITY_MISMATCH", "UNSUPPORTED_VERSION"})
# Reasons that no waiting will mend when the very first hello meets them: this process is set up wrongly.
FATAL_AT_FIRST = FATAL | {
    "ACCESS_DENIED",
    "FOREIGN_CERTIFICATE",
    "IDENTITY_MISSING",
    "INVALID_FIELD",
    "MALFORMED_FRAME",
    "NO_CERTIFICATE",
}


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """Delays between tries, in milliseconds."""

    base_ms: int = 50
    max_ms: int = 2_000

    def delay_ms(self, failures: int, jitter: float) -> int:
        """Return the delay after `failures` failures in a row; `jitter` in [0, 1] is drawn by the caller."""
        if failures < 1:
            return 0
        # The exponent is capped so that years of failures do not build a huge integer.
        full = min(self.max_ms, self.base_ms * 2 ** min(failures - 1, 40))
        return int(full * jitter)


def may_repeat(fault: Fault, *, idempotent: bool) -> bool:
    """Return whether the same call may be sent again.

    A definite failure left nothing behind, so repeating is always safe; an indefinite one may have
    happened, so only a call whose repetition changes nothing may be repeated.
    """
    return fault.retryable and (fault.definite or idempotent)


@dataclass(frozen=True, slots=True)
class Again:
    """Open the link again after `delay_ms`, at `address` when it is not empty."""

    delay_ms: int
    address: str = ""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not try again: `fault` will not pass by itself."""

    fault: Fault


class Reconnect:
    """Decides for one link what follows its end. It never gives up on an absent peer.

    `also_fatal` names further reasons at which this link gives up.
    """

    def __init__(self, policy: BackoffPolicy | None = None, also_fatal: frozenset[str] = frozenset()) -> None:
        self._policy = policy or BackoffPolicy()
        self._also_fatal = also_fatal
        self._failures = 0
        self._welcomed_at: int | None = None
        self._ever_welcomed = False
        self._followed = False

    def __repr__(self) -> str:
        return f"Reconnect(failures={self._failures}, ever_welcomed={self._ever_welcomed})"

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    def welcomed(self, now: int) -> None:
        """The peer answered the hello at `now` (monotonic milliseconds)."""
        self._welcomed_at = now
        self._ever_welcomed = True
        self._followed = False

    def ended(self, fault: Fault, now: int, jitter: float) -> Again | GiveUp:
        """The link ended, or could not be opened, at `now`."""
        lived_ms = 0 if self._welcomed_at is None else now - self._welcomed_at
        self._welcomed_at = None
        # A link that breaks right after its welcome must not be opened in a tight loop.
        self._failures = 1 if lived_ms >= HEALTHY_AFTER_MS else self._failures + 1
        fatal = FATAL if self._ever_welcomed else FATAL_AT_FIRST
        if fault.reason in fatal or fault.reason in self._also_fatal:
            return GiveUp(fault)
        if fault.coordinator and not self._followed:
            # A standby named its leader: go there at once, but only once in a row, because two standbys
            # that have not heard of the election may name each other.
            self._followed = True
            return Again(0, fault.coordinator)
        self._followed = False
        delay_ms = self._policy.delay_ms(self._failures, jitter)
        return Again(max(delay_ms, fault.retry_after_ms or 0))
