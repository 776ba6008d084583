"""How a delivery ends, and what comes again.

When a delivery fails, its envelope comes again before anything behind it: what the same session holds of
the domain with a greater number is recalled (its tokens become void), and the domain waits for the backoff.
No other domain waits with it (guarantees M3 and M4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from services.broker.core.burial import EXPIRED_WAITING, Fate, bury
from services.broker.core.desk import Acks, Desk, Nacked
from services.broker.core.effects import Recall
from services.broker.core.events import Extend, Nack, Reject
from services.broker.core.handover import enlist, let_go, watch_deadlines
from services.broker.core.model import DeadReason
from services.broker.core.state import Domain, Item, Session, Stream, advance_all
from services.broker.core.table import DeliveryInput, DeliveryState
from services.broker.core.timers import TimerKind
from services.common.core.backoff import backoff_ms
from services.common.core.errors import Reason, ServiceError, invalid
from services.common.core.instants import NEVER, Instant, after

REASON_BYTES_MAX = 1_024


def ack(desk: Desk, stream: Stream, session: Session, tokens: Sequence[int]) -> None:
    """Note that deliveries are done; confirmed when that is durable."""
    outstanding = session.outstanding
    touched = desk.open.touched
    done: list[Item] = []
    domain: Domain | None = None
    for token in tokens:
        item = outstanding.pop(token, None)
        if item is None:
            item = session.extended.pop(token, None)
            if item is None:
                _refuse(desk, stream, token)
                continue
        if item.domain is not domain:
            domain = item.domain
            touched[domain] = None
        domain.settled.add(item.envelope.sequence)
        done.append(item)
    if done:
        advance_all(done, DeliveryInput.ACKED)
        desk.count(DeliveryInput.ACKED, len(done))
        desk.open.acks.append(Acks(stream, session, done))
        stream.settling += 1


def settle(
    desk: Desk, stream: Stream, session: Session, settling: Nack | Extend | Reject, now: Instant
) -> None:
    """Carry out one nack, extend or reject, or refuse it."""
    error = _fault(desk, settling)
    if error is not None:
        desk.refuse_settling(stream.stream_id, settling.token, error)
        return
    item = session.outstanding.pop(settling.token, None) or session.extended.pop(settling.token, None)
    if item is None:
        _refuse(desk, stream, settling.token)
        return
    match settling:
        case Nack(delay_ms=delay_ms):
            stream.settling += 1
            desk.open.nacks.append(Nacked(stream, item.token))
            _fail(desk, item, _Failure(DeliveryInput.NACKED, "its receiver gave it back", delay_ms), now)
        case Extend(extension_ms=extension_ms):
            item.advance(DeliveryInput.EXTENDED)
            desk.count(DeliveryInput.EXTENDED)
            item.deadline = after(now, extension_ms)
            session.extended[item.token] = item
            watch_deadlines(desk, session, item.deadline)
        case Reject(reason=reason):
            stream.settling += 1
            item.domain.held -= 1
            bury(desk, item, Fate(DeliveryInput.REJECTED, DeadReason.REJECTED, reason), now, stream)
            let_go(item.domain)


def pass_deadlines(desk: Desk, session: Session, now: Instant) -> None:
    """Give again what was not settled in time, and arm the timer for the rest."""
    if session.due > now:
        # Another timer of this session; the one that counts is still to come.
        return
    session.due = NEVER
    due = [item for item in session.extended.values() if item.deadline <= now]
    for item in session.outstanding.values():
        if item.deadline > now:
            break
        due.append(item)
    for item in sorted(due, key=_token):
        # An earlier one of the same domain may have recalled it meanwhile.
        if item.state is DeliveryState.OUTSTANDING and item.session is session:
            _drop_token(item)
            _tell_recalled(desk, session, [item])
            _fail(desk, item, _NOT_ANSWERED, now)
    left = [item.deadline for item in session.extended.values()]
    left += [item.deadline for item in islice(session.outstanding.values(), 1)]
    if left:
        watch_deadlines(desk, session, min(left))


def end_session(desk: Desk, session: Session, now: Instant, *, lost: bool) -> None:
    """Give what `session` holds to others.

    `lost`: its receiver died or vanished, so the oldest delivery of each domain, the one it most likely
    worked on, counts as failed; an envelope that kills its receivers ends as a dead letter this way. What
    was behind it, and everything when the receiver left well, is recalled and not counted.
    """
    session.ended = True
    session.stream = None
    if session.mailbox.sessions.get(session.instance) is session:
        del session.mailbox.sessions[session.instance]
    oldest: dict[Domain, Item] = {}
    for item in [*session.outstanding.values(), *session.extended.values()]:
        known = oldest.get(item.domain)
        if known is None or item.envelope.sequence < known.envelope.sequence:
            oldest[item.domain] = item
    for domain, item in oldest.items():
        if lost:
            _drop_token(item)
            _fail(desk, item, _RECEIVER_LOST, now)
        recall_from(desk, domain, item.envelope.sequence)
        let_go(domain)


def delay_over(desk: Desk, domain: Domain, now: Instant) -> bool:
    """End the wait of a domain; return whether it is over."""
    if not domain.delayed_until or domain.delayed_until > now:
        return False
    domain.delayed_until = Instant(0)
    for item in domain.delayed:
        if item.state is DeliveryState.DELAYED:
            item.advance(DeliveryInput.DELAY_OVER)
            desk.count(DeliveryInput.DELAY_OVER)
    domain.delayed.clear()
    enlist(domain)
    return True


def expire_waiting(desk: Desk, domain: Domain, now: Instant) -> None:
    """Give up what waits and has expired."""
    if domain.expiry_due > now:
        # Another timer of this domain; the one that counts is still to come.
        return
    domain.expiry_due = NEVER
    if domain.expire_first > now:
        return
    kept: deque[Item] = deque()
    first = NEVER
    for item in domain.waiting:
        if item.expire_at <= now:
            bury(desk, item, EXPIRED_WAITING, now)
        else:
            kept.append(item)
            first = Instant(min(first, item.expire_at))
    domain.waiting = kept
    domain.expire_first = first
    enlist(domain)


def put_back(domain: Domain, items: Sequence[Item]) -> None:
    """Put unsettled items where their sequence numbers belong in what waits."""
    if not items:
        return
    merged = sorted([*items, *domain.waiting], key=_sequence)
    domain.waiting = deque(merged)
    domain.expire_first = Instant(min(domain.expire_first, *(item.expire_at for item in items)))


class _Failure(NamedTuple):
    given: DeliveryInput
    message: str
    # None for the broker's backoff.
    delay_ms: int | None = None


def _fail(desk: Desk, item: Item, failure: _Failure, now: Instant) -> None:
    """One delivery failed: again after a while, or never. The item is out of its session already."""
    domain, why = item.domain, failure.message
    domain.held -= 1
    item.failures += 1
    if item.failures > item.envelope.draft.retry_max:
        # What is behind it goes on: it came after this one's last delivery.
        why = f"failed {item.failures} times, the last time: {why}"
        bury(desk, item, Fate(DeliveryInput.EXHAUSTED, DeadReason.DELIVERIES_EXHAUSTED, why), now)
    elif item.expire_at <= now:
        why = f"its ttl passed before it could come again: {why}"
        bury(desk, item, Fate(DeliveryInput.EXPIRED, DeadReason.EXPIRED, why), now)
    else:
        limits = desk.limits
        delay_ms = failure.delay_ms
        if delay_ms is None:
            delay_ms = backoff_ms(
                item.failures, base_ms=limits.redelivery_base_ms, max_ms=limits.redelivery_max_ms
            )
        item.advance(failure.given)
        desk.count(failure.given)
        domain.failures[item.envelope.sequence] = item.failures
        desk.open.touched[domain] = None
        desk.open.urgent = True
        recall_from(desk, domain, item.envelope.sequence + 1)
        put_back(domain, [item])
        domain.delayed.append(item)
        domain.delayed_until = Instant(max(domain.delayed_until, now + delay_ms))
        desk.timers.arm(domain.delayed_until, TimerKind.DELAY, domain)
    let_go(domain)


_NOT_ANSWERED = _Failure(DeliveryInput.DEADLINE_PASSED, "its receiver did not answer in time")
_RECEIVER_LOST = _Failure(DeliveryInput.RECEIVER_LOST, "its receiver went away while it held it")


def recall_from(desk: Desk, domain: Domain, sequence: int) -> None:
    """Take back what the domain's session holds from `sequence` on."""
    session = domain.session
    if session is None:
        return
    back = [
        item
        for item in [*session.outstanding.values(), *session.extended.values()]
        if item.domain is domain and item.envelope.sequence >= sequence
    ]
    for item in back:
        _drop_token(item)
        item.advance(DeliveryInput.RECALLED)
    domain.held -= len(back)
    desk.count(DeliveryInput.RECALLED, len(back))
    _tell_recalled(desk, session, back)
    put_back(domain, back)


def _tell_recalled(desk: Desk, session: Session, items: Sequence[Item]) -> None:
    if items and session.stream is not None:
        desk.effects.append(Recall(session.stream.stream_id, sorted(item.token for item in items)))


def _drop_token(item: Item) -> None:
    session = item.session
    if session is not None:
        session.outstanding.pop(item.token, None)
        session.extended.pop(item.token, None)


def _fault(desk: Desk, settling: Nack | Extend | Reject) -> ServiceError | None:
    limits = desk.limits
    match settling:
        case Nack(delay_ms=int(delay_ms)) if not 0 <= delay_ms <= limits.nack_delay_ms_max:
            return invalid("nacks.delay", f"must be 0 to {limits.nack_delay_ms_max} ms")
        case Extend(extension_ms=ms) if not limits.extension_ms_min <= ms <= limits.extension_ms_max:
            return invalid(
                "extends.extension", f"must be {limits.extension_ms_min} to {limits.extension_ms_max} ms"
            )
        case Reject(reason=reason) if len(reason.encode()) > REASON_BYTES_MAX:
            return invalid("rejects.reason", f"at most {REASON_BYTES_MAX} bytes")
    return None


_STALE = ServiceError(
    Reason.STALE_ACK_TOKEN,
    "this token holds no delivery: it was settled, recalled, given again, or belongs to another instance",
)


def _refuse(desk: Desk, stream: Stream, token: int) -> None:
    desk.refuse_settling(stream.stream_id, token, _STALE)


def _token(item: Item) -> int:
    return item.token


def _sequence(item: Item) -> int:
    return item.envelope.sequence
