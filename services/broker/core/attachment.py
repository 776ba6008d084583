"""Streams and sessions: who may receive, what a lost link means, which incarnation counts."""

from __future__ import annotations

from services.broker.core.burial import untold
from services.broker.core.desk import Desk
from services.broker.core.effects import End, NoteFenced, NoteOpened, TellTombstones, Welcome
from services.broker.core.events import StreamOpened
from services.broker.core.handover import enlist_for, let_go
from services.broker.core.model import IncarnationRecord
from services.broker.core.settlement import end_session, recall_from
from services.broker.core.state import Domain, Mailbox, Session, Stream
from services.broker.core.timers import TimerKind
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import NEVER, Instant, after


def open_stream(desk: Desk, event: StreamOpened, now: Instant) -> None:
    """Welcome a stream, or end it at once."""
    state, limits = desk.state, desk.limits
    sender = state.sender(event.address)
    if sender.streams >= limits.streams_max_per_agent:
        error = ServiceError(
            Reason.QUOTA_EXCEEDED,
            f"{event.actor} has {sender.streams} open Mailbox streams: close one first",
            metadata={"limit": "streams_max_per_agent"},
        )
        desk.effects.append(End(event.stream_id, error))
        return
    mailbox = state.mailbox(event.address)
    newest = mailbox.incarnations.get(event.instance, 0)
    if not event.send_only and event.incarnation < newest:
        _fence(desk, event.stream_id, event, event.incarnation, newest)
        return
    if event.address not in state.known:
        # Its certificate proves that it exists; the registry's news may still be on the way.
        state.known.add(event.address)
        desk.open.agents_known.append(event.address)
    stream = state.streams[event.stream_id] = Stream(event.stream_id, event.actor, sender)
    sender.streams += 1
    if event.send_only:
        desk.effects.append(Welcome(event.stream_id, 0, limits.send_window))
        return
    session = mailbox.sessions.get(event.instance)
    if session is not None and session.incarnation != event.incarnation:
        if session.stream is not None:
            _fence(desk, session.stream.stream_id, event, session.incarnation, event.incarnation)
            drop_stream(desk, session.stream)
        end_session(desk, session, now, lost=True)
        session = None
    resumed = session is not None
    if session is None:
        session = mailbox.sessions[event.instance] = Session(
            mailbox, event.instance, event.incarnation, limits
        )
        enlist_for(session)
        _remember(desk, mailbox, event)
    elif session.stream is not None:
        desk.effects.append(End(session.stream.stream_id, _taken_over()))
        drop_stream(desk, session.stream)
    _attach(desk, stream, session, event.resume_token)
    desk.effects.append(NoteOpened(event.actor, event.instance, event.incarnation, resumed))


def leave(desk: Desk, stream: Stream, now: Instant) -> None:
    """The client has sent its last frame: it takes nothing more, and gets the answers that it waits for."""
    stream.leaving = True
    session = stream.session
    if session is not None and session.stream is stream:
        stream.session = None
        end_session(desk, session, now, lost=False)


def close_stream(desk: Desk, stream: Stream, now: Instant) -> None:
    """The link is gone: what the session holds is kept for a while, in case its owner resumes."""
    session = stream.session
    drop_stream(desk, stream)
    if session is None or session.stream is not stream:
        return
    session.stream = None
    session.credits = session.emergency_credits = session.unflushed_bytes = 0
    if not session.outstanding and not session.extended:
        end_session(desk, session, now, lost=True)
        return
    session.lost_at = after(now, desk.limits.resume_window_ms)
    desk.timers.arm(session.lost_at, TimerKind.RESUME_WINDOW, session)


def resume_window_over(desk: Desk, session: Session, now: Instant) -> bool:
    """End a session that nobody resumed in time; return whether it ended."""
    if session.ended or session.stream is not None or session.lost_at > now:
        return False
    end_session(desk, session, now, lost=True)
    return True


def drop_stream(desk: Desk, stream: Stream) -> None:
    """Forget a stream; its answers have nobody to go to."""
    if desk.state.streams.pop(stream.stream_id, None) is not None:
        stream.sender.streams -= 1


def _attach(desk: Desk, stream: Stream, session: Session, resume_token: int) -> None:
    mailbox, stream_id = session.mailbox, stream.stream_id
    _recall_unreceived(desk, session, resume_token)
    stream.session, session.stream = session, stream
    session.lost_at = NEVER
    session.credits = session.emergency_credits = session.unflushed_bytes = 0
    held = len(session.outstanding) + len(session.extended)
    waiting_count = mailbox.count + mailbox.emergency_count - held
    desk.effects.append(Welcome(stream_id, waiting_count, desk.limits.send_window))
    for domain in mailbox.domains:
        if not domain.concerns(session):
            continue
        told = [stone for stone in domain.tombstones if not untold(domain, stone)]
        if told:
            desk.effects.append(TellTombstones(stream_id, domain.key, told))


def _recall_unreceived(desk: Desk, session: Session, resume_token: int) -> None:
    """Take back what went out on the link before and never arrived: it waits again and did not fail."""
    session.stream = None
    first: dict[Domain, int] = {}
    for token, item in (session.outstanding | session.extended).items():
        if token > resume_token:
            sequence = item.envelope.sequence
            first[item.domain] = min(sequence, first.get(item.domain, sequence))
    for domain, sequence in first.items():
        recall_from(desk, domain, sequence)
        let_go(domain)


def _remember(desk: Desk, mailbox: Mailbox, event: StreamOpened) -> None:
    """Keep the newest incarnation of an instance; the instance that was not seen for longest gives way."""
    newest = mailbox.incarnations.pop(event.instance, 0)
    mailbox.incarnations[event.instance] = event.incarnation
    if event.incarnation > newest:
        desk.open.incarnations.append(IncarnationRecord(mailbox.owner, event.instance, event.incarnation))
    if len(mailbox.incarnations) > desk.limits.instances_max_per_agent:
        idle = next((one for one in mailbox.incarnations if one not in mailbox.sessions), None)
        if idle is not None:
            del mailbox.incarnations[idle]
            desk.open.incarnations.append(IncarnationRecord(mailbox.owner, idle, 0))


def _fence(desk: Desk, stream_id: int, event: StreamOpened, incarnation: int, newest: int) -> None:
    error = ServiceError(
        Reason.INCARNATION_FENCED,
        f"incarnation {newest} of {event.actor}, instance {event.instance}, is live: this one must stop",
        metadata={"incarnation": str(newest)},
    )
    desk.effects += [End(stream_id, error), NoteFenced(event.actor, event.instance, incarnation, newest)]


def _taken_over() -> ServiceError:
    return ServiceError(
        Reason.WRONG_STATE,
        "another stream of the same instance and incarnation took over: give each copy its own instance_id",
        metadata={"state": "taken over"},
    )
