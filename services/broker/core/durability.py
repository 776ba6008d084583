"""What happens when the disk has answered: the only place where promises are made, and taken back.

While one batch is being written the next one gathers (group commit). A failed commit takes back both, since
what gathered meanwhile was numbered behind what is now gone.
"""

from __future__ import annotations

from services.broker.core import flow
from services.broker.core.burial import announce, drop_tombstones, unbury
from services.broker.core.desk import Acks, Answers, Burial, Desk, Release, Tentative
from services.broker.core.effects import (
    Answer,
    Commit,
    ConfirmSettled,
    Deliver,
    Finish,
    NoteAccepted,
    NoteDead,
    NoteDone,
    RefuseSettling,
    TellTombstones,
)
from services.broker.core.handover import (
    DELIVERY_OVERHEAD_BYTES,
    drain,
    enlist,
    let_go,
    watch_deadlines,
    watch_expiry,
)
from services.broker.core.model import Delivery, Lane, SendOutcome
from services.broker.core.settlement import put_back, recall_from
from services.broker.core.state import Domain, Item, Mailbox, Stream, advance_all
from services.broker.core.table import DeliveryInput
from services.common.core.errors import ServiceError
from services.common.core.instants import Instant


def cut(desk: Desk) -> None:
    """Begin a commit if somebody waits for one and none is under way."""
    if desk.in_flight is not None or not desk.open:
        return
    desk.number += 1
    desk.in_flight, desk.open = desk.open, Tentative()
    desk.effects.append(Commit(desk.in_flight.batch(desk.number, desk.limits.retry_horizon_ms)))


def persisted(desk: Desk, now: Instant) -> None:
    """The batch in flight is durable: answer, confirm, hand over."""
    done = desk.in_flight
    if done is None:
        return
    desk.in_flight = None
    mailboxes: dict[Mailbox, None] = {}
    for acks in done.acks:
        _acked(desk, acks, mailboxes)
    for stream, token in done.nacks:
        stream.settling -= 1
        if stream.stream_id in desk.state.streams:
            desk.effects.append(ConfirmSettled(stream.stream_id, [token]))
        finish_if_done(desk, stream)
    for release in done.releases:
        _released(desk, release, mailboxes)
    if done.burials:
        desk.count(DeliveryInput.PERSISTED, len(done.burials))
        desk.effects.append(NoteDead([burial.letter for burial in done.burials]))
    for burial in done.burials:
        _buried(desk, burial, mailboxes)
    domains = _accepted(desk, done.accepted, mailboxes)
    for answers in done.answers:
        _answer(desk, answers)
    for mailbox in mailboxes:
        drain(desk, mailbox, now)
    for domain in domains:
        watch_expiry(desk, domain, now)


def failed(desk: Desk, error: ServiceError, now: Instant) -> None:
    """Nothing of what was decided since the last good commit is durable: take it back, newest first."""
    lost = [one for one in (desk.in_flight, desk.open) if one is not None]
    desk.in_flight, desk.open = None, Tentative()
    for one in lost:
        # Facts that nobody waits for are kept for the next commit.
        desk.open.touched.update(one.touched)
        desk.open.agents_known += one.agents_known
        desk.open.agents_forgotten += one.agents_forgotten
        desk.open.incarnations += one.incarnations
        desk.open.nacks += one.nacks
        desk.open.urgent |= one.urgent
    for one in reversed(lost):
        _withdraw(desk, one.accepted)
        _unsettle(desk, one, error)
    for one in lost:
        for answers in one.answers:
            _answer(desk, _failed_answers(answers, error))
    for domain in list(desk.open.touched):
        if domain.waiting:
            # What was taken back must not come after what it precedes.
            recall_from(desk, domain, domain.waiting[0].envelope.sequence)
        let_go(domain)
        drain(desk, domain.mailbox, now)
        watch_expiry(desk, domain, now)


def finish_if_done(desk: Desk, stream: Stream) -> None:
    """End a leaving stream that has all its answers."""
    waits = stream.unanswered or stream.settling
    if stream.leaving and not waits and desk.state.streams.pop(stream.stream_id, None) is not None:
        stream.sender.streams -= 1
        desk.effects.append(Finish(stream.stream_id))


def _accepted(desk: Desk, items: list[Item], mailboxes: dict[Mailbox, None]) -> dict[Domain, None]:
    domains: dict[Domain, None] = {}
    domain: Domain | None = None
    advance_all(items, DeliveryInput.PERSISTED)
    for item in items:
        if item.domain is not domain:
            domain = item.domain
            domains[domain] = None
        domain.waiting.append(item)
        if item.expire_at < domain.expire_first:  # noqa: PLR1730  # min() is a call per envelope
            domain.expire_first = item.expire_at
    for domain in domains:
        enlist(domain)
        mailboxes[domain.mailbox] = None
    desk.count(DeliveryInput.PERSISTED, len(items))
    if items:
        desk.effects.append(NoteAccepted([item.envelope for item in items]))
    return domains


def _acked(desk: Desk, acks: Acks, mailboxes: dict[Mailbox, None]) -> None:
    items = acks.items
    advance_all(items, DeliveryInput.PERSISTED)
    desk.count(DeliveryInput.PERSISTED, len(items))
    for domain, mine in _by_domain(items).items():
        domain.held -= len(mine)
        _discharge(desk, domain, mine)
        if domain.tombstones and drop_tombstones(domain, mine[-1]):
            desk.open.touched[domain] = None
        if not domain.held:
            let_go(domain)
            mailboxes[domain.mailbox] = None
    stream = acks.stream
    stream.settling -= 1
    if stream.stream_id in desk.state.streams:
        desk.effects.append(ConfirmSettled(stream.stream_id, [item.token for item in items]))
    desk.effects.append(NoteDone([item.envelope for item in items], acked=True))
    finish_if_done(desk, stream)


def _by_domain(items: list[Item]) -> dict[Domain, list[Item]]:
    if all(item.domain is items[0].domain for item in items):
        return {items[0].domain: items}
    grouped: dict[Domain, list[Item]] = {}
    for item in items:
        grouped.setdefault(item.domain, []).append(item)
    return grouped


def _released(desk: Desk, release: Release, mailboxes: dict[Mailbox, None]) -> None:
    session = release.session
    domain = release.items[0].domain
    advance_all(release.items, DeliveryInput.PERSISTED)
    _discharge(desk, domain, release.items)
    desk.count(DeliveryInput.PERSISTED, len(release.items))
    domain.blocked -= len(release.items)
    enlist(domain)
    mailboxes[domain.mailbox] = None
    if session.stream is not None:
        weight = sum(len(item.envelope.draft.body) + DELIVERY_OVERHEAD_BYTES for item in release.items)
        session.unflushed_bytes += weight
        deliveries = [Delivery(0, item.envelope, item.handed_over, Instant(0)) for item in release.items]
        desk.effects.append(Deliver(session.stream.stream_id, deliveries, weight))
    # Without a link they are lost, as "at most once" allows; what is recorded is that they are done.
    desk.effects.append(NoteDone([item.envelope for item in release.items], acked=False))


def _buried(desk: Desk, burial: Burial, mailboxes: dict[Mailbox, None]) -> None:
    item = burial.item
    domain = item.domain
    item.advance(DeliveryInput.PERSISTED)
    _discharge(desk, domain, [item])
    domain.blocked -= 1
    stone = announce(desk, burial)
    for session in domain.mailbox.sessions.values():
        if session.stream is not None:
            desk.effects.append(TellTombstones(session.stream.stream_id, domain.key, [stone]))
    enlist(domain)
    mailboxes[domain.mailbox] = None
    if burial.stream is not None:
        burial.stream.settling -= 1
        if burial.stream.stream_id in desk.state.streams:
            desk.effects.append(ConfirmSettled(burial.stream.stream_id, [item.token]))
        finish_if_done(desk, burial.stream)


def _discharge(desk: Desk, domain: Domain, items: list[Item]) -> None:
    """Take envelopes of one domain out of every count: they are done, dead or withdrawn for good."""
    if domain.failures:
        for item in items:
            domain.failures.pop(item.envelope.sequence, None)
    size = sum([len(item.envelope.draft.body) for item in items])
    flow.charge(desk.state, domain, -len(items), -size)


def _answer(desk: Desk, answers: Answers) -> None:
    stream = answers.stream
    stream.unanswered -= len(answers.outcomes)
    if stream.stream_id in desk.state.streams:
        desk.effects.append(Answer(stream.stream_id, answers.outcomes))
    finish_if_done(desk, stream)


def _failed_answers(answers: Answers, error: ServiceError) -> Answers:
    outcomes = []
    for outcome in answers.outcomes:
        # A repeat of an id that was accepted earlier keeps its first outcome.
        kept = outcome.error is not None or answers.stream.sender.window.find(outcome.message_id)
        outcomes.append(outcome if kept else SendOutcome(outcome.message_id, 0, error))
    return Answers(answers.stream, outcomes)


def _unsettle(desk: Desk, lost: Tentative, error: ServiceError) -> None:
    back: dict[Domain, list[Item]] = {}
    unsettled: dict[Domain, list[int]] = {}
    for acks in lost.acks:
        _unack(desk, acks, error, back)
        _note_sequences(acks.items, unsettled)
    for release in lost.releases:
        _unrelease(release, back)
        _note_sequences(release.items, unsettled)
    for burial in lost.burials:
        item = burial.item
        item.advance(DeliveryInput.PERSIST_FAILED)
        unbury(burial)
        back.setdefault(item.domain, []).append(item)
        _note_sequences([item], unsettled)
        if burial.stream is not None:
            burial.stream.settling -= 1
            _refuse(desk, burial.stream, item.token, error)
            finish_if_done(desk, burial.stream)
    for domain, sequences in unsettled.items():
        domain.settled.take_back(sequences)
    for domain, items in back.items():
        put_back(domain, items)


def _unack(desk: Desk, acks: Acks, error: ServiceError, back: dict[Domain, list[Item]]) -> None:
    session = acks.session
    acks.stream.settling -= 1
    for item in acks.items:
        _refuse(desk, acks.stream, item.token, error)
        item.advance(DeliveryInput.PERSIST_FAILED)
        if session.ended:
            item.advance(DeliveryInput.RECALLED)
            item.domain.held -= 1
            back.setdefault(item.domain, []).append(item)
        else:
            session.extended[item.token] = item
    if not session.ended:
        watch_deadlines(desk, session, Instant(min(item.deadline for item in acks.items)))
    finish_if_done(desk, acks.stream)


def _unrelease(release: Release, back: dict[Domain, list[Item]]) -> None:
    domain, session = release.items[0].domain, release.session
    domain.blocked -= len(release.items)
    # Nothing went out, so that nothing of the receiver's credit is used.
    if domain.key.lane is Lane.EMERGENCY:
        session.emergency_credits += len(release.items)
    else:
        session.credits += len(release.items)
    for item in release.items:
        item.advance(DeliveryInput.PERSIST_FAILED)
    back.setdefault(domain, []).extend(release.items)


def _note_sequences(items: list[Item], unsettled: dict[Domain, list[int]]) -> None:
    for item in items:
        unsettled.setdefault(item.domain, []).append(item.envelope.sequence)


def _withdraw(desk: Desk, items: list[Item]) -> None:
    for item in reversed(items):
        item.advance(DeliveryInput.PERSIST_FAILED)
        item.domain.next_sequence -= 1
        window = item.domain.sender.window
        before = window.bytes_used
        window.take_back(item.envelope.draft.message_id)
        desk.state.dedup_bytes += window.bytes_used - before
        _discharge(desk, item.domain, [item])


def _refuse(desk: Desk, stream: Stream, token: int, error: ServiceError) -> None:
    if stream.stream_id in desk.state.streams:
        desk.effects.append(RefuseSettling(stream.stream_id, token, error))
