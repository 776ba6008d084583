"""The broker's core: one mutating method. Everything else that it shows is read-only.

    effects = machine.step(event, now)

The parts: `attachment` (streams, sessions, incarnations), `admission` (sends), `handover` (who gets what
next), `settlement` (acks and what comes again), `burial` (dead letters and tombstones), `letters` (dead
letters sent once more), `routing` (who gets what names no receiver), `subscribing` (to topics), `durability`
(what a commit makes true), `withdrawal` (what a failed one takes back). The life of one envelope is the table
in `table`.
"""

from __future__ import annotations

from services.broker.core import (
    admission,
    attachment,
    durability,
    flow,
    handover,
    letters,
    settlement,
    subscribing,
    withdrawal,
)
from services.broker.core.desk import Desk
from services.broker.core.effects import Effect, End
from services.broker.core.events import (
    AgentsSeen,
    DrainBegan,
    DropAsked,
    Event,
    Flushed,
    FrameReceived,
    MembersSeen,
    Persisted,
    PersistFailed,
    ReplayAsked,
    StoreReady,
    StreamClosed,
    StreamLeaving,
    StreamOpened,
    SubscriptionAsked,
    Ticked,
)
from services.broker.core.model import Limits, Recovered
from services.broker.core.recovery import rebuild
from services.broker.core.state import Domain, Mailbox, Sender, Session, State
from services.broker.core.timers import TimerKind
from services.common.core.instants import Instant

# Operators have addresses too; the registry does not know them.
OPERATOR_PREFIX = "operator/"


class Machine:
    """See the module. `state` is for reading."""

    def __init__(self, recovered: Recovered, limits: Limits, now: Instant) -> None:
        self.state = State(limits, recovered.life)
        self._desk = Desk(self.state)
        rebuild(self._desk, recovered, now)

    def step(self, event: Event, now: Instant) -> list[Effect]:
        """Take in one event; return what to do. `now` must not go back."""
        desk = self._desk
        desk.effects = []
        match event:
            case FrameReceived():
                self._frame(event, now)
            case Persisted():
                durability.persisted(desk, now)
            case Flushed(stream_id=stream_id, weight=weight):
                self._flushed(stream_id, weight, now)
            case StoreReady():
                durability.cut(desk)
            case Ticked():
                self._tick(now)
            case StreamOpened():
                attachment.open_stream(desk, event, now)
                self._drain(event.address, now)
            case StreamLeaving(stream_id=stream_id) | StreamClosed(stream_id=stream_id):
                self._end(stream_id, now, leaving=isinstance(event, StreamLeaving))
            case PersistFailed(error=error):
                withdrawal.failed(desk, error, now)
            case _:
                self._rarely(event, now)
        effects, desk.effects = desk.effects, []
        return effects

    def next_due(self) -> Instant | None:
        """Return when to step `Ticked` next; None when nothing waits for time."""
        return self._desk.timers.next_due()

    @property
    def has_work(self) -> bool:
        """Whether `StoreReady` would lead to a commit."""
        return bool(self._desk.open)

    def _rarely(self, event: Event, now: Instant) -> None:
        desk = self._desk
        match event:
            case AgentsSeen():
                self._agents(event)
            case MembersSeen(collaboration_id=collaboration_id, members=members):
                self.state.see_members(collaboration_id, members)
            case SubscriptionAsked():
                subscribing.change(desk, event)
            case ReplayAsked():
                letters.replay(desk, event, now)
            case DropAsked():
                letters.drop(desk, event)
            case DrainBegan():
                self.state.draining = True

    def _frame(self, event: FrameReceived, now: Instant) -> None:
        desk = self._desk
        stream = self.state.streams.get(event.stream_id)
        if stream is None or stream.leaving:
            # Ended by us; what it still sends meets nobody.
            return
        session = stream.session
        if session is not None:
            if event.acks:
                settlement.ack(desk, stream, session, event.acks)
            for settling in event.settlings:
                settlement.settle(desk, stream, session, settling, now)
            error = flow.grant(session, event.credits, event.emergency_credits, desk.limits)
            if error is not None:
                desk.effects.append(End(stream.stream_id, error))
                attachment.close_stream(desk, stream, now)
                return
        if event.drafts:
            admission.admit(desk, stream, event.drafts, now)
        if session is not None and (event.settlings or event.credits or event.emergency_credits):
            handover.drain(desk, session.mailbox, now)

    def _flushed(self, stream_id: int, weight: int, now: Instant) -> None:
        stream = self.state.streams.get(stream_id)
        if stream is None or stream.session is None:
            return
        session = stream.session
        was_writable = flow.writable(session, self._desk.limits)
        session.unflushed_bytes = max(0, session.unflushed_bytes - weight)
        if not was_writable:
            handover.drain(self._desk, session.mailbox, now)

    def _end(self, stream_id: int, now: Instant, *, leaving: bool) -> None:
        stream = self.state.streams.get(stream_id)
        if stream is None:
            return
        session = stream.session
        if leaving:
            attachment.leave(self._desk, stream, now)
            durability.finish_if_done(self._desk, stream)
        else:
            attachment.close_stream(self._desk, stream, now)
        if session is not None:
            handover.drain(self._desk, session.mailbox, now)

    def _drain(self, address: str, now: Instant) -> None:
        mailbox = self.state.mailboxes.get(address)
        if mailbox is not None:
            handover.drain(self._desk, mailbox, now)

    def _agents(self, event: AgentsSeen) -> None:
        state, waiting = self.state, self._desk.open
        names, complete = event.names, event.complete
        if complete:
            state.profiles_complete = True
            for name in state.profiles.keys() - event.profiles.keys():
                state.see_profile(name, None)
        for name, profile in event.profiles.items():
            state.see_profile(name, profile)
        new = names - state.known
        state.known |= new
        waiting.agents_known += sorted(new)
        if complete:
            gone = {
                name
                for name in state.known - names
                if not name.startswith(OPERATOR_PREFIX) and not self._is_here(name)
            }
            state.known -= gone
            waiting.agents_forgotten += sorted(gone)

    def _is_here(self, name: str) -> bool:
        mailbox = self.state.mailboxes.get(name)
        return mailbox is not None and bool(mailbox.sessions)

    def _tick(self, now: Instant) -> None:
        desk = self._desk
        mailboxes: dict[Mailbox, None] = {}
        while (due := desk.timers.pop_due(now)) is not None:
            match due:
                case TimerKind.ACK_DEADLINE, Session() as session if not session.ended:
                    settlement.pass_deadlines(desk, session, now)
                    mailboxes[session.mailbox] = None
                case TimerKind.RESUME_WINDOW, Session() as session:
                    if attachment.resume_window_over(desk, session, now):
                        mailboxes[session.mailbox] = None
                case TimerKind.DELAY, Domain() as domain:
                    if settlement.delay_over(desk, domain, now):
                        mailboxes[domain.mailbox] = None
                case TimerKind.EXPIRY, Domain() as domain:
                    settlement.expire_waiting(desk, domain, now)
                    handover.watch_expiry(desk, domain, now)
                case TimerKind.DEDUP_WINDOW, Sender() as sender:
                    admission.shrink_window(desk, sender, now)
                case _:
                    # A timer of a session that has ended.
                    pass
        for mailbox in mailboxes:
            handover.drain(desk, mailbox, now)
