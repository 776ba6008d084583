"""Which envelope goes to which receiver next.

The order of the decisions: EMERGENCY first, on its own credit; then the lane that `lanes.LaneShares` names;
inside a lane the order domains take turns, so that one sender does not fill another's way; inside a domain
strictly by sequence number. A domain that a session holds goes on with that session (two instances never
work on one domain at once); a free one goes to whichever session has credit, the least loaded first, and one
that is for one instance only to the session of that.
"""

from __future__ import annotations

from services.broker.core import flow
from services.broker.core.burial import EXPIRED_WAITING, bury
from services.broker.core.desk import Desk, Release
from services.broker.core.effects import Deliver
from services.broker.core.model import Delivery, Lane
from services.broker.core.state import Domain, Item, Mailbox, Ring, Session, advance_all
from services.broker.core.table import DeliveryInput
from services.broker.core.timers import TimerKind
from services.common.core.instants import NEVER, Instant, after

# Envelopes of one domain in a row before the next domain of the lane has its turn.
TURN = 64
# An expired envelope that nobody asks for is found at most this much later.
EXPIRY_SCAN_MS = 1_000
_SHARED = (Lane.HIGH, Lane.NORMAL, Lane.LOW)
# What a delivery weighs in a buffer beyond its body.
DELIVERY_OVERHEAD_BYTES = 64


def enlist(domain: Domain) -> None:
    """Put a domain where it is looked for: in line if it is ready, out of it if not."""
    line = _line(domain)
    if line is None:
        return
    if domain.ready:
        line[domain] = None
    else:
        line.pop(domain, None)


def enlist_for(session: Session) -> None:
    """Put what is for a new session's instance only where that session looks."""
    for domain in session.mailbox.domains:
        if domain.instance == session.instance:
            enlist(domain)


def hold(domain: Domain, session: Session) -> None:
    """Bind a free domain to the session that works on it."""
    domain.mailbox.ready[domain.key.lane].pop(domain, None)
    domain.session = session
    enlist(domain)


def let_go(domain: Domain) -> None:
    """Free a domain of which nothing is held any more."""
    session = domain.session
    if session is not None and not domain.held:
        session.ready[domain.key.lane].pop(domain, None)
        domain.session = None
    enlist(domain)


def drain(desk: Desk, mailbox: Mailbox, now: Instant) -> None:
    """Hand over all that may be handed over now."""
    limits = desk.limits
    able = [
        session
        for session in mailbox.sessions.values()
        if (session.credits or session.emergency_credits) and flow.writable(session, limits)
    ]
    # The least loaded first, then turn by turn, so that several instances share what there is.
    able.sort(key=_load)
    parcels = [_Parcel(session) for session in able]
    busy = parcels
    while busy:
        busy = [
            parcel
            for parcel in busy
            if flow.writable(parcel.session, limits) and _turn(desk, mailbox, parcel, now)
        ]
    for parcel in parcels:
        stream = parcel.session.stream
        if parcel.deliveries and stream is not None:
            desk.effects.append(Deliver(stream.stream_id, parcel.deliveries, parcel.weight))


def watch_deadlines(desk: Desk, session: Session, deadline: Instant) -> None:
    """See to it that `session` is looked at when `deadline` has passed."""
    if deadline < session.due:
        session.due = deadline
        desk.timers.arm(deadline, TimerKind.ACK_DEADLINE, session)


def watch_expiry(desk: Desk, domain: Domain, now: Instant) -> None:
    """See to it that what waits is looked at when the first of it expires."""
    if not domain.waiting or domain.expire_first == NEVER:
        return
    due = max(domain.expire_first, after(now, EXPIRY_SCAN_MS))
    # One that came later may expire earlier than what is watched already.
    if due < domain.expiry_due:
        domain.expiry_due = due
        desk.timers.arm(due, TimerKind.EXPIRY, domain)


class _Parcel:
    """What one session gets in one step."""

    __slots__ = ("deliveries", "session", "weight")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.deliveries: list[Delivery] = []
        self.weight = 0


def _load(session: Session) -> int:
    return len(session.outstanding) + len(session.extended)


def _turn(desk: Desk, mailbox: Mailbox, parcel: _Parcel, now: Instant) -> bool:
    """Hand one run of one domain to a session; return whether there was any."""
    session = parcel.session
    if session.emergency_credits:
        domain = _next(mailbox, session, Lane.EMERGENCY)
        if domain is not None:
            session.emergency_credits -= _run(desk, domain, parcel, session.emergency_credits, now)
            return True
    if not session.credits:
        return False
    waiting = [lane for lane in _SHARED if mailbox.ready[lane] or session.ready[lane]]
    if not waiting:
        return False
    lane, allowance = session.shares.choose(waiting)
    domain = _next(mailbox, session, lane)
    assert domain is not None  # noqa: S101  # the lane was in `waiting`
    count = _run(desk, domain, parcel, min(session.credits, allowance), now)
    session.credits -= count
    session.shares.charge(lane, count, waiting)
    return True


def _next(mailbox: Mailbox, session: Session, lane: Lane) -> Domain | None:
    line, other = mailbox.ready[lane], session.ready[lane]
    if line and other:
        # Domains that the session holds already and free ones take turns.
        session.free_next = not session.free_next
        if not session.free_next:
            line = other
    return next(iter(line or other), None)


def _run(desk: Desk, domain: Domain, parcel: _Parcel, limit: int, now: Instant) -> int:
    """Hand over up to `limit` envelopes of one domain in order; return how many credits that took."""
    session = parcel.session
    waiting = domain.waiting
    head = waiting[0]
    if head.expire_at > now and not head.envelope.draft.requires_ack:
        return _release(desk, domain, session, limit, now)
    state = desk.state
    deadline = after(now, desk.limits.ack_deadline_ms)
    deliveries, outstanding = parcel.deliveries, session.outstanding
    token = state.token
    given: list[Item] = []
    weight = count = 0
    limit = min(limit, TURN)
    while count < limit and waiting:
        item = waiting[0]
        envelope = item.envelope
        if item.expire_at <= now:
            waiting.popleft()
            bury(desk, item, EXPIRED_WAITING, now)
            break
        if not envelope.draft.requires_ack:
            break
        waiting.popleft()
        token += 1
        count += 1
        item.token = token
        item.deadline = deadline
        item.session = session
        number = item.handed_over = item.handed_over + 1
        outstanding[token] = item
        given.append(item)
        # tuple.__new__ spares the Python function that makes a NamedTuple.
        deliveries.append(tuple.__new__(Delivery, (token, envelope, number, deadline)))
        weight += len(envelope.draft.body) + DELIVERY_OVERHEAD_BYTES
    if count:
        advance_all(given, DeliveryInput.HANDED_OVER)
        state.token = token
        domain.held += count
        session.unflushed_bytes += weight
        parcel.weight += weight
        desk.count(DeliveryInput.HANDED_OVER, count)
        if domain.session is None:
            hold(domain, session)
        watch_deadlines(desk, session, deadline)
    _requeue(domain)
    return count


def _release(desk: Desk, domain: Domain, session: Session, limit: int, now: Instant) -> int:
    """Take envelopes that want no ack; they are handed over when it is durable that they are done.

    At most once: a crash between the commit and the hand-over loses them, never doubles them.
    """
    waiting = domain.waiting
    items: list[Item] = []
    while waiting and len(items) < min(limit, TURN):
        item = waiting[0]
        if item.envelope.draft.requires_ack or item.expire_at <= now:
            break
        waiting.popleft()
        item.advance(DeliveryInput.RELEASED)
        item.session = session
        item.handed_over += 1
        domain.settled.add(item.envelope.sequence)
        items.append(item)
    domain.blocked += len(items)
    desk.count(DeliveryInput.RELEASED, len(items))
    desk.open.touched[domain] = None
    desk.open.releases.append(Release(session, session.stream, items))
    _requeue(domain)
    return len(items)


def _requeue(domain: Domain) -> None:
    """After its turn a domain goes to the end of its line, or out of it."""
    line = _line(domain)
    if line is not None:
        line.pop(domain, None)
        if domain.ready:
            line[domain] = None
    if not domain.waiting:
        domain.expire_first = NEVER


def _line(domain: Domain) -> Ring | None:
    """Return where whoever may take of a domain looks for it; None while its only instance is away."""
    mailbox, session = domain.mailbox, domain.session
    if session is None and domain.instance is not None:
        session = mailbox.sessions.get(domain.instance)
        if session is None:
            return None
    return (mailbox if session is None else session).ready[domain.key.lane]
