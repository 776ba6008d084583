"""Whether an envelope is accepted: dedupe, address, quotas; then its number.

A refusal never has an effect. Numbers are given in the order of arrival, which is the sender's order: a
stream keeps it, and a sender that reconnects repeats from the first unanswered envelope on, where repeats
of what was accepted are answered from the dedupe window.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.broker.core import flow
from services.broker.core.desk import Answers, Desk
from services.broker.core.model import (
    DomainKey,
    Draft,
    Envelope,
    Lane,
    RefusedDraft,
    RoutedDraft,
    SendOutcome,
)
from services.broker.core.refusals import (
    RETRY_AFTER_MS,
    over_limit,
    over_window,
    quota,
    reused,
    shutting_down,
    unknown,
)
from services.broker.core.routing import admit_routed
from services.broker.core.state import Domain, Item, Sender, Stream
from services.broker.core.table import DeliveryState
from services.broker.core.timers import TimerKind
from services.common.core.errors import ServiceError
from services.common.core.instants import Instant, after

# A dedupe window is looked at most this often.
WINDOW_SCAN_MS = 10_000


def admit(
    desk: Desk, stream: Stream, drafts: Sequence[Draft | RoutedDraft | RefusedDraft], now: Instant
) -> None:
    """Accept or refuse what one frame brought; the answers go out when the commit is durable."""
    window, limits = stream.sender.window, desk.limits
    window_bytes = window.bytes_used
    fits = flow.admitted(stream, len(drafts), limits)
    stream.unanswered += len(drafts)
    outcomes: list[SendOutcome] = []
    line: _Line | None = None
    for draft in drafts[:fits]:
        if isinstance(draft, RefusedDraft):
            outcomes.append(SendOutcome(draft.message_id, 0, draft.error))
            continue
        if isinstance(draft, RoutedDraft):
            if line is not None:
                # It may go to the same order domain, behind what is counted now.
                line.close()
                line = None
            outcomes.append(admit_routed(desk, stream.sender, draft, now))
            continue
        if line is None or draft.lane is not line.lane or draft.receiver != line.receiver:
            if line is not None:
                line.close()
            line = _Line(desk, stream.sender, draft)
        outcomes.append(line.take(draft, now))
    if line is not None:
        line.close()
    if fits < len(drafts):
        error = over_window(limits.send_window)
        outcomes += [SendOutcome(draft.message_id, 0, error) for draft in drafts[fits:]]
    desk.state.dedup_bytes += window.bytes_used - window_bytes
    desk.open.answers.append(Answers(stream, outcomes))
    watch_window(desk, stream.sender, now)


class _Line:
    """Envelopes of one frame in a row that go to the same order domain.

    What they have in common is looked up once: the domain, its room, and at the end the counts.
    """

    __slots__ = (
        "_accepted",
        "_count",
        "_desk",
        "_domain",
        "_error",
        "_horizon_ms",
        "_room",
        "_sender",
        "_size",
        "lane",
        "receiver",
    )

    def __init__(self, desk: Desk, sender: Sender, first: Draft) -> None:
        self.receiver, self.lane = first.receiver, first.lane
        self._desk, self._sender = desk, sender
        found = _find_domain(desk, sender, first.receiver, first.lane)
        # The domain, or why there is none.
        self._error = found if isinstance(found, ServiceError) else None
        self._domain = None if isinstance(found, ServiceError) else found
        self._room = flow.NO_ROOM if self._domain is None else flow.room(desk.state, self._domain)
        self._accepted = desk.open.accepted
        self._horizon_ms = desk.limits.retry_horizon_ms
        self._count = self._size = 0

    def take(self, draft: Draft, now: Instant) -> SendOutcome:
        """Accept one envelope, or say why not; a repeat gets its first outcome."""
        domain, room = self._domain, self._room
        size = self._size + len(draft.body)
        if domain is None or self._count >= room.envelopes or size > room.size:
            return self._look_closer(draft, now)
        message_id, ttl_ms, sequence = draft.message_id, draft.ttl_ms, domain.next_sequence
        keep_until = Instant(now + (ttl_ms if ttl_ms > self._horizon_ms else self._horizon_ms))
        known = self._sender.window.add(message_id, draft.fingerprint, sequence, keep_until)
        if known is not None:
            return _repeated(draft, known)
        domain.next_sequence = sequence + 1
        # tuple.__new__ spares the Python function that makes a NamedTuple, here and below.
        envelope = tuple.__new__(Envelope, (domain.key, sequence, now, draft))
        self._accepted.append(Item(domain, envelope, DeliveryState.ACCEPTING))
        self._count += 1
        self._size = size
        return tuple.__new__(SendOutcome, (message_id, sequence, None, None))

    def close(self) -> None:
        """Count what was accepted."""
        if self._domain is not None and self._count:
            flow.charge(self._desk.state, self._domain, self._count, self._size)
            self._desk.open.touched[self._domain] = None
            self._count = self._size = 0

    def _look_closer(self, draft: Draft, now: Instant) -> SendOutcome:
        """The room that was seen at the beginning is used up; there may be more, or a reason for none."""
        known = self._sender.window.find(draft.message_id)
        if known is not None:
            return _repeated(draft, known)
        if self._domain is None:
            return SendOutcome(draft.message_id, 0, self._error)
        self.close()
        self._room = flow.room(self._desk.state, self._domain)
        limit = flow.limit_met(self._desk.state, self._domain, len(draft.body))
        if limit is not None:
            return SendOutcome(draft.message_id, 0, over_limit(limit, self._domain, now))
        return self.take(draft, now)


def _repeated(draft: Draft, known: tuple[bytes, int]) -> SendOutcome:
    fingerprint, sequence = known
    if fingerprint == draft.fingerprint:
        return SendOutcome(draft.message_id, sequence, None)
    return SendOutcome(draft.message_id, 0, reused(draft.message_id))


def watch_window(desk: Desk, sender: Sender, now: Instant) -> None:
    """See to it that what need not be remembered any longer is forgotten."""
    end = sender.window.next_expiry()
    if end is not None and not sender.armed:
        sender.armed = True
        desk.timers.arm(max(end, after(now, WINDOW_SCAN_MS)), TimerKind.DEDUP_WINDOW, sender)


def shrink_window(desk: Desk, sender: Sender, now: Instant) -> None:
    """Forget what need not be remembered any longer."""
    sender.armed = False
    before = sender.window.bytes_used
    sender.window.expire(now)
    desk.state.dedup_bytes += sender.window.bytes_used - before
    watch_window(desk, sender, now)


def _find_domain(desk: Desk, sender: Sender, receiver: str, lane: Lane) -> Domain | ServiceError:
    state = desk.state
    if state.draining:
        return shutting_down()
    error = unknown(state, receiver)
    if error is not None:
        return error
    key = DomainKey(sender.name, receiver, lane)
    if key not in state.domains and len(state.domains) >= desk.limits.domains_max:
        return quota("domains_max", "the broker keeps as many order domains as it may", RETRY_AFTER_MS)
    return state.domain(key)
