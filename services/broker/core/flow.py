"""Credits, both ways, and the counts behind the quotas."""

from __future__ import annotations

from typing import NamedTuple

from services.broker.core.dedup import ID_BYTES_MAX
from services.broker.core.model import Lane, Limits
from services.broker.core.state import Domain, Sender, Session, State, Stream
from services.common.core.errors import ServiceError, invalid


def grant(session: Session, credits_: int, emergency_credits: int, limits: Limits) -> ServiceError | None:
    """Add what the receiver will accept; return the error with which the stream ends when it is too much."""
    if session.credits + credits_ > limits.credits_max:
        return invalid("credits", f"at most {limits.credits_max} may be open; grant when deliveries are done")
    if session.emergency_credits + emergency_credits > limits.credits_max:
        return invalid("emergency_credits", f"at most {limits.credits_max} may be open")
    session.credits += credits_
    session.emergency_credits += emergency_credits
    return None


def writable(session: Session, limits: Limits) -> bool:
    """Return whether more may be handed over without filling memory for a reader that does not read."""
    return session.stream is not None and session.unflushed_bytes < limits.unflushed_bytes_max


def admitted(stream: Stream, count: int, limits: Limits) -> int:
    """Take up to `count` envelopes into the send window; return how many fit."""
    fits = min(count, limits.send_window - stream.unanswered)
    return max(fits, 0)


def charge(state: State, domain: Domain, count: int, size: int) -> None:
    """Count envelopes that are numbered or recovered, `size` bytes together; negative: take them out."""
    mailbox, sender = domain.mailbox, domain.sender
    domain.unsettled += count
    mailbox.bytes += size
    state.pending_bytes += size
    if domain.key.lane is Lane.EMERGENCY:
        mailbox.emergency_count += count
        sender.emergency_pending += count
    else:
        mailbox.count += count
        sender.pending += count


class Room(NamedTuple):
    """How many more envelopes, and bytes, one order domain may take before any limit is met."""

    envelopes: int
    size: int


NO_ROOM = Room(0, 0)
MAILBOX_LIMITS = frozenset(
    {"mailbox_count_max", "mailbox_emergency_count_max", "mailbox_bytes_max", "domain_share_percent"}
)
WINDOW_LIMITS = frozenset({"dedup_bytes_max_per_sender", "dedup_bytes_max"})


def room(state: State, domain: Domain) -> Room:
    """Return the room of `domain` as things stand."""
    counts, sizes = _rooms(state, domain)
    return Room(min(counts.values()), min(sizes.values()))


def limit_met(state: State, domain: Domain, size: int) -> str | None:
    """Return the name of a limit that has no room for one more envelope of `size` bytes; None if all have."""
    counts, sizes = _rooms(state, domain)
    met = [name for name, count in counts.items() if count < 1]
    met += [name for name, left in sizes.items() if left < size]
    return met[0] if met else None


def window_limit_met(state: State, sender: Sender) -> str | None:
    """Return the name of a limit of the dedupe windows that has no room for one more id; None if all have."""
    return next((name for name, count in _window_rooms(state, sender).items() if count < 1), None)


def copies_limit_met(state: State, sender: Sender, lane: Lane, count: int, size: int) -> str | None:
    """Return the name of a limit that has no room for `count` copies of `size` bytes each.

    Only limits that the copies share; `limit_met` knows those of each mailbox.
    """
    limits = state.limits
    if state.pending_bytes + count * size > limits.pending_bytes_max:
        return "pending_bytes_max"
    if lane is Lane.EMERGENCY:
        full = sender.emergency_pending + count > limits.sender_emergency_pending_max
        return "sender_emergency_pending_max" if full else None
    return "sender_pending_max" if sender.pending + count > limits.sender_pending_max else None


def _window_rooms(state: State, sender: Sender) -> dict[str, int]:
    """Return what each limit of the dedupe windows leaves, as if every id were of the dearest kind."""
    limits = state.limits
    return {
        "dedup_bytes_max_per_sender": (limits.dedup_bytes_max_per_sender - sender.window.bytes_used)
        // ID_BYTES_MAX,
        "dedup_bytes_max": (limits.dedup_bytes_max - state.dedup_bytes) // ID_BYTES_MAX,
    }


def _rooms(state: State, domain: Domain) -> tuple[dict[str, int], dict[str, int]]:
    """Return what each limit leaves, in envelopes and in bytes."""
    limits, mailbox, sender = state.limits, domain.mailbox, domain.sender
    counts = _window_rooms(state, sender)
    sizes = {"pending_bytes_max": limits.pending_bytes_max - state.pending_bytes}
    if domain.key.lane is Lane.EMERGENCY:
        # An emergency overtakes a full mailbox: it has room of its own.
        counts["mailbox_emergency_count_max"] = limits.mailbox_emergency_count_max - mailbox.emergency_count
        counts["sender_emergency_pending_max"] = (
            limits.sender_emergency_pending_max - sender.emergency_pending
        )
        return counts, sizes
    share = limits.mailbox_count_max * limits.domain_share_percent // 100
    counts["mailbox_count_max"] = limits.mailbox_count_max - mailbox.count
    counts["domain_share_percent"] = share - domain.unsettled
    counts["sender_pending_max"] = limits.sender_pending_max - sender.pending
    sizes["mailbox_bytes_max"] = limits.mailbox_bytes_max - mailbox.bytes
    return counts, sizes
