"""The simulated plant around the real core: time, a disk that may be full, a broker that may die at any
moment (also between the disk's commit and its own knowing of it), links that lose what is in flight.

`broker_parties.World` adds the senders and receivers. Everything follows from the seed.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import compress, product

from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.machine import Machine
from services.broker.core.model import (
    AgentProfile,
    Batch,
    DomainKey,
    Lane,
    Limits,
    Reach,
    Recovered,
    RoutedDraft,
    Subscription,
)
from services.common.core.instants import Instant
from tests.unit.broker.broker_checker import Checker
from tests.unit.broker.broker_disks import Disk
from tests.unit.broker.broker_invariants import validate
from tests.unit.broker.broker_routes import RouteBook

LIMITS = Limits(
    ack_deadline_ms=400,
    resume_window_ms=150,
    redelivery_base_ms=20,
    redelivery_max_ms=200,
    extension_ms_min=10,
    retry_horizon_ms=20_000,
    lane_share_normal_percent=20,
    lane_share_low_percent=10,
    send_window=32,
    unflushed_bytes_max=2_000,
)
SENDERS, RECEIVERS = frozenset({"s1", "s2", "s3"}), frozenset({"r1", "r2"})
# Both match what is published.
PATTERNS = {"r1": "roads.*", "r2": "roads.closed"}
# The set of lanes of which something is true, by whether it is true of each.
LANE_SETS = {truths: frozenset(compress(Lane, truths)) for truths in product((False, True), repeat=len(Lane))}


class Plant:
    """One broker's surroundings."""

    def __init__(
        self,
        seed: int,
        disk: Disk,
        make: Callable[[Recovered, Limits, Instant], Machine] = Machine,
        *,
        inspects: bool = True,
    ) -> None:
        self.random = random.Random(seed)
        self.disk, self.make, self.limits = disk, make, LIMITS
        # Whether the core's invariants are looked at; a double that breaks promises breaks them too.
        self.inspects = inspects
        self.now = Instant(1_700_000_000_000)
        self.checker = Checker(
            {Lane.NORMAL: LIMITS.lane_share_normal_percent, Lane.LOW: LIMITS.lane_share_low_percent}
        )
        self.agenda: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.stream_ids = 0
        self.calm = False
        self.committing: Batch | None = None
        self.dies_in_commit = False
        self.last_trouble = 0
        self.look_again = 0
        self.steps = 0
        self.nacked: set[int] = set()
        # Acks and rejects of the frame on its way that look valid.
        self.taken_for_good: set[int] = set()
        # Which lanes had something for which stream after the last step.
        self.waiting: dict[int, frozenset[Lane]] = {}
        self.inbound: dict[int, deque[ev.Event]] = {}
        self.story: list[str] = []
        # Ids of what was given up for good.
        self.durable_dead: dict[tuple[DomainKey, int], str] = {}
        self.routes = RouteBook(RECEIVERS)
        # Open requests about subscriptions: whose, what, and the newest of each owner.
        self.asked: dict[int, tuple[str, bool]] = {}
        self.request_ids = 0
        self._boot()

    # -- time

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        self.count += 1
        heappush(self.agenda, (self.now + delay_ms, self.count, action))

    def run_until(self, end: int) -> None:
        while True:
            due = self.broker.next_due()
            next_action = self.agenda[0][0] if self.agenda else end
            if due is not None and max(due, self.now) <= min(next_action, end):
                self.now = Instant(max(due, self.now))
                self.step(ev.Ticked())
                continue
            if next_action > end or not self.agenda:
                self.now = Instant(end)
                return
            at, _, action = heappop(self.agenda)
            self.now = Instant(max(at, self.now))
            action()
            self._idle()

    # -- the broker and its disk

    def _boot(self) -> None:
        recovered = self.disk.load_now(self.now)
        unsettled = {(one.key, one.sequence) for one in recovered.envelopes}
        assert len(unsettled) == len(recovered.envelopes)
        self.checker.recovered(unsettled, self.durable_dead)
        self.domains = {record.key: record for record in recovered.domains}
        self.broker = self.make(recovered, self.limits, self.now)
        self.waiting = {}
        self.committing = None
        self.inbound.clear()
        self.asked.clear()
        self.hear_registry()
        for sender in sorted(SENDERS):
            self.step(ev.MembersSeen(f"team-{sender}", RECEIVERS | {sender}))

    def hear_registry(self) -> None:
        """The registry says who exists and what they do."""
        profiles = {
            name: AgentProfile(
                frozenset({"plans"}), self.random.choice(list(Reach)), 4, self.random.randint(0, 4)
            )
            for name in sorted(RECEIVERS)
        }
        self.step(ev.AgentsSeen(SENDERS | RECEIVERS, complete=True, profiles=profiles))

    def ask_subscription(self, owner: str, *, wanted: bool) -> None:
        """Somebody subscribes or no longer wants to be."""
        self.request_ids += 1
        self.routes.firm[owner] = None
        # Only the newest request of an owner says how it ends.
        self.asked = {number: one for number, one in self.asked.items() if one[0] != owner}
        self.asked[self.request_ids] = owner, wanted
        subscription = Subscription(owner, PATTERNS[owner])
        self.step(ev.SubscriptionAsked(self.request_ids, subscription, wanted, own=True))

    def crash(self) -> None:
        if self.calm:
            return
        if self.committing is None and not self.dies_in_commit and self.random.random() < 0.7:
            # The worst moment is soon to come.
            self.dies_in_commit = True
            return
        self.story.append(f"{self.now} crash")
        committing = self.committing
        self.dies_in_commit = False
        if self.disk.lose_now(committing, self.now) and committing is not None:
            self._written(committing)
        self.hung_up(None)
        self._boot()

    def _written(self, batch: Batch) -> None:
        self.domains.update({record.key: record for record in batch.domains})
        for envelope in batch.envelopes:
            self.routes.written(envelope)
        for letter in batch.dead_letters:
            envelope = letter.envelope
            self.durable_dead[envelope.key, envelope.sequence] = envelope.draft.message_id

    def _settle_commit(self, batch: Batch) -> None:
        if self.committing is not batch:
            return
        self.committing = None
        # A double that breaks promises need not get over a full disk as well.
        if self.inspects and not self.calm and self.random.random() < 0.03:
            error = self.disk.commit_full_now(batch)
            if error is not None:
                self.last_trouble = self.now
                self.checker.commit_failed()
                self.step(ev.PersistFailed(batch.number, error))
                return
        else:
            self.disk.commit_now(batch, self.now)
        self._written(batch)
        self.step(ev.Persisted(batch.number))

    def step(self, event: ev.Event) -> None:
        before = self.waiting
        effects = self.broker.step(event, self.now)
        self._look_inside()
        self.waiting = after = self._lanes_waiting()
        self._learn(event, effects)
        for effect in effects:
            self._carry_out(effect, before, after)
        if self.committing is None and self.broker.has_work and not isinstance(event, ev.StoreReady):
            self.step(ev.StoreReady())

    def _learn(self, event: ev.Event, effects: list[fx.Effect]) -> None:
        """Tell the checker what the answers to one event say about deliveries held before."""
        if isinstance(event, ev.StreamOpened):
            for effect in effects:
                if isinstance(effect, fx.NoteOpened):
                    session = self.checker.links[event.stream_id].session
                    self.checker.session_left(session, event.resume_token if effect.resumed else -1)
        if isinstance(event, ev.FrameReceived) and self.taken_for_good:
            asked = Counter(event.acks) + Counter(one.token for one in event.settlings)
            refused = [effect.tokens for effect in effects if isinstance(effect, fx.RefuseSettling)]
            asked -= Counter(token for tokens in refused for token in tokens)
            for token in self.taken_for_good - set(asked):
                self.checker.settling_refused(token)

    def _carry_out(
        self, effect: fx.Effect, before: dict[int, frozenset[Lane]], after: dict[int, frozenset[Lane]]
    ) -> None:
        checker = self.checker
        match effect:
            case fx.Commit(batch=batch):
                self.committing = batch
                if self.dies_in_commit:
                    self.later(0, self.crash)
                self.later(self.random.randint(1, 6), lambda: self._settle_commit(batch))
            case fx.Deliver(stream_id=stream_id, deliveries=deliveries, weight=weight):
                waiting = before.get(stream_id, frozenset()) & after.get(stream_id, frozenset())
                checker.handed_over(stream_id, deliveries, self.now, waiting)
                self.later(self.random.randint(0, 4), lambda: self._flush(stream_id, weight))
                self.told(effect)
            case fx.Answer(stream_id=stream_id, outcomes=outcomes):
                for outcome in outcomes:
                    checker.answered(stream_id, outcome.message_id)
                self.told(effect)
            case fx.ConfirmSettled(stream_id=stream_id, tokens=tokens):
                session = checker.links[stream_id].session
                for token in tokens:
                    if token in self.nacked:
                        continue
                    where = checker.tokens.get(token)
                    checker.confirmed(session, token, durable=where is not None and self.is_settled(*where))
            case fx.Recall(stream_id=stream_id, tokens=tokens):
                checker.taken_back(tokens, failed=True)
                self.told(effect)
            case fx.TellTombstones(key=key, tombstones=tombstones):
                checker.told(key, tombstones)
            case fx.NoteDone(envelopes=envelopes):
                for envelope in envelopes:
                    checker.done(envelope.key, envelope.sequence)
            case fx.NoteDead(dead_letters=letters):
                for letter in letters:
                    envelope = letter.envelope
                    checker.dead(envelope.key, envelope.sequence, envelope.draft.message_id, letter.reason)
            case fx.TellSubscription(request_id=request_id, error=error):
                if error is None and (asked := self.asked.pop(request_id, None)) is not None:
                    self.routes.firm[asked[0]] = asked[1]
            case fx.End(stream_id=stream_id) | fx.Finish(stream_id=stream_id):
                self._ended(stream_id)

    def is_settled(self, key: DomainKey, sequence: int) -> bool:
        record = self.domains.get(key)
        return record is not None and (sequence <= record.cursor or sequence in record.above)

    def _look_inside(self) -> None:
        # Each look costs more than the step; every sixth finds what is broken early enough.
        self.steps += 1
        if self.inspects and self.steps % 6 == 0:
            validate(self.broker._desk)

    def _lanes_waiting(self) -> dict[int, frozenset[Lane]]:
        """Which lanes have something that could go to which stream now."""
        found = {}
        for stream_id, stream in self.broker.state.streams.items():
            session = stream.session
            if session is not None:
                # By lane; the first is nobody's.
                _, held_1, held_2, held_3, held_4 = session.ready
                _, free_1, free_2, free_3, free_4 = session.mailbox.ready
                found[stream_id] = LANE_SETS[
                    bool(held_1 or free_1),
                    bool(held_2 or free_2),
                    bool(held_3 or free_3),
                    bool(held_4 or free_4),
                ]
        return found

    def _idle(self) -> None:
        if self.now - self.last_trouble < 300:
            self.checker.was_able = {}
            return
        if self.now < self.look_again:
            return
        self.look_again = self.now + 20
        able: dict[str, set[Lane]] = {}
        for stream_id in self.receiving_streams():
            link = self.checker.links.get(stream_id)
            if link is not None:
                lanes = {Lane.EMERGENCY} if link.emergency_credits else set()
                lanes |= {Lane.HIGH, Lane.NORMAL, Lane.LOW} if link.credits else set()
                for address in (link.mailbox, link.own):
                    able.setdefault(address, set()).update(lanes)
        self.checker.idle(self.now, able)

    def _flush(self, stream_id: int, weight: int) -> None:
        self.step(ev.Flushed(stream_id, weight))

    # -- links: in order, late, and gone when they break

    def open_stream(self) -> int:
        self.stream_ids += 1
        self.inbound[self.stream_ids] = deque()
        return self.stream_ids

    def to_broker(self, stream_id: int, event: ev.Event) -> None:
        queue = self.inbound.get(stream_id)
        if queue is None or (queue and isinstance(queue[-1], ev.StreamLeaving)):
            return
        queue.append(event)
        self.later(self.random.randint(0, 5), lambda: self._arrive(stream_id))

    def _arrive(self, stream_id: int) -> None:
        queue = self.inbound.get(stream_id)
        if not queue:
            return
        event = queue.popleft()
        link = self.checker.links.get(stream_id)
        if isinstance(event, ev.StreamLeaving):
            del self.inbound[stream_id]
            if link is not None:
                self.checker.session_left(link.session)
        if isinstance(event, ev.FrameReceived) and link is not None:
            for draft in event.drafts:
                self.checker.sent(stream_id, draft.message_id)
                if isinstance(draft, RoutedDraft):
                    self.routes.arrived(link.mailbox, draft.message_id, draft.route)
            session = link.session
            self.taken_for_good = {token for token in event.acks if self.checker.ack_in(session, token)}
            for settling in event.settlings:
                if isinstance(settling, ev.Nack):
                    self.nacked.add(settling.token)
                    self.checker.nack_in(session, settling.token)
                elif isinstance(settling, ev.Reject) and self.checker.ack_in(session, settling.token):
                    self.taken_for_good.add(settling.token)
            self.checker.granted(stream_id, event.credits, event.emergency_credits)
        self.step(event)

    def cut(self, stream_id: int) -> None:
        """The link breaks: what was on its way is gone; the broker learns of it a little later."""
        if self.inbound.pop(stream_id, None) is None:
            return
        self.later(self.random.randint(0, 60), lambda: self._closed(stream_id))

    def _closed(self, stream_id: int) -> None:
        link = self.checker.links.get(stream_id)
        if link is not None:
            self.checker.session_lost(link.session)
        self.checker.closed(stream_id)
        self.step(ev.StreamClosed(stream_id))

    def _ended(self, stream_id: int) -> None:
        self.inbound.pop(stream_id, None)
        link = self.checker.links.get(stream_id)
        if link is not None:
            self.checker.session_lost(link.session)
        self.checker.closed(stream_id)
        self.hung_up(stream_id)

    # -- what the parties do

    def told(self, effect: fx.Deliver | fx.Answer | fx.Recall) -> None:
        """Bring an effect to the party at the other end of its stream."""

    def hung_up(self, stream_id: int | None) -> None:
        """Tell the party that its stream is gone; None means all."""

    def receiving_streams(self) -> Iterable[int]:
        """Return the streams on which somebody receives."""
        return ()
