"""What happens when the disk has answered: the only place where promises are made.

While one batch is being written the next one gathers (group commit).
"""

from __future__ import annotations

from services.broker.core import flow
from services.broker.core.burial import announce, drop_tombstones
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
    NoteUnheard,
    TellLetters,
    TellSubscription,
    TellTombstones,
)
from services.broker.core.handover import (
    DELIVERY_OVERHEAD_BYTES,
    drain,
    enlist,
    let_go,
    watch_expiry,
)
from services.broker.core.model import Delivery, Lane
from services.broker.core.state import Domain, Item, Mailbox, Stream, advance_all
from services.broker.core.table import DeliveryInput
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
    if done.acks:
        _all_acked(desk, done.acks, mailboxes)
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
    desk.effects += [TellSubscription(work.event.request_id, None) for work in done.subscriptions]
    desk.effects += [TellLetters(work.request_id, work.outcomes) for work in done.letters]
    # Receivers first: an agent waits for the work, its sender only for the receipt.
    for mailbox in mailboxes:
        drain(desk, mailbox, now)
    for answers in done.answers:
        answer(desk, answers)
    fresh = [item.envelope for item in done.accepted if item not in done.replayed]
    if fresh:
        desk.effects.append(NoteAccepted(fresh))
    unheard = [one for one in done.routed if not one.receiver_count]
    if unheard:
        desk.effects.append(NoteUnheard(unheard))
    for domain in domains:
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
    return domains


def _all_acked(desk: Desk, frames: list[Acks], mailboxes: dict[Mailbox, None]) -> None:
    for acks in frames:
        _acked(desk, acks, mailboxes)
    desk.effects.append(NoteDone([item.envelope for acks in frames for item in acks.items], acked=True))


def _acked(desk: Desk, acks: Acks, mailboxes: dict[Mailbox, None]) -> None:
    items = acks.items
    advance_all(items, DeliveryInput.PERSISTED)
    desk.count(DeliveryInput.PERSISTED, len(items))
    for domain, mine in _by_domain(items).items():
        domain.held -= len(mine)
        discharge(desk, domain, mine)
        if domain.tombstones and drop_tombstones(domain, mine[-1]):
            desk.open.touched[domain] = None
        if not domain.held:
            let_go(domain)
            mailboxes[domain.mailbox] = None
    stream = acks.stream
    stream.settling -= 1
    if stream.stream_id in desk.state.streams:
        desk.effects.append(ConfirmSettled(stream.stream_id, [item.token for item in items]))
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
    discharge(desk, domain, release.items)
    desk.count(DeliveryInput.PERSISTED, len(release.items))
    domain.blocked -= len(release.items)
    enlist(domain)
    mailboxes[domain.mailbox] = None
    if session.stream is not None and _has_credit(release):
        weight = sum(len(item.envelope.draft.body) + DELIVERY_OVERHEAD_BYTES for item in release.items)
        session.unflushed_bytes += weight
        deliveries = [Delivery(0, item.envelope, item.handed_over, Instant(0)) for item in release.items]
        desk.effects.append(Deliver(session.stream.stream_id, deliveries, weight))
    # Without a link, or without credit on a new one, they are lost, as "at most once" allows.
    desk.effects.append(NoteDone([item.envelope for item in release.items], acked=False))


def _has_credit(release: Release) -> bool:
    """Return whether the receiver will accept what was released; a stream that came since must pay for it."""
    session, count = release.session, len(release.items)
    if session.stream is release.stream:
        return True
    if release.items[0].domain.key.lane is Lane.EMERGENCY:
        if session.emergency_credits < count:
            return False
        session.emergency_credits -= count
        return True
    if session.credits < count:
        return False
    session.credits -= count
    return True


def _buried(desk: Desk, burial: Burial, mailboxes: dict[Mailbox, None]) -> None:
    item = burial.item
    domain = item.domain
    item.advance(DeliveryInput.PERSISTED)
    discharge(desk, domain, [item])
    domain.blocked -= 1
    stone = announce(desk, burial)
    for session in domain.mailbox.sessions.values():
        if session.stream is not None and domain.concerns(session):
            desk.effects.append(TellTombstones(session.stream.stream_id, domain.key, [stone]))
    enlist(domain)
    mailboxes[domain.mailbox] = None
    if burial.stream is not None:
        burial.stream.settling -= 1
        if burial.stream.stream_id in desk.state.streams:
            desk.effects.append(ConfirmSettled(burial.stream.stream_id, [item.token]))
        finish_if_done(desk, burial.stream)


def discharge(desk: Desk, domain: Domain, items: list[Item]) -> None:
    """Take envelopes of one domain out of every count: they are done, dead or withdrawn for good."""
    if domain.failures:
        for item in items:
            domain.failures.pop(item.envelope.sequence, None)
    size = sum([len(item.envelope.draft.body) for item in items])
    flow.charge(desk.state, domain, -len(items), -size)


def answer(desk: Desk, answers: Answers) -> None:
    """Tell a sender what became of one frame's envelopes."""
    stream = answers.stream
    stream.unanswered -= len(answers.outcomes)
    if stream.stream_id in desk.state.streams:
        desk.effects.append(Answer(stream.stream_id, answers.outcomes))
    finish_if_done(desk, stream)
