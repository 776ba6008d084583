"""Checks a history of one simulated broker against guarantees M1 to M8. Knows nothing of the core.

A history is what the outside saw and did, in order. The checker keeps its own small model of what that
entitles everybody to; the first fact that contradicts it raises `BrokenPromise` naming the guarantee.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.broker.core.model import DeadReason, Delivery, DomainKey, Lane, Tombstone

# A deliverable envelope with a willing receiver is handed over within this; commits take at most 6 ms here.
STALL_MS = 150
COMMIT_MS_MAX = 6


class BrokenPromise(Exception):
    """A guarantee that the history contradicts."""

    def __init__(self, promise: str, story: str) -> None:
        super().__init__(f"{promise}: {story}")
        self.promise = promise


@dataclass
class Sent:
    """What a sender asked for under one id, the first time that it was accepted."""

    key: DomainKey
    content: bytes
    sequence: int
    expire_at: int
    requires_ack: bool


@dataclass
class Place:
    """One number of one domain."""

    message_id: str
    expire_at: int
    requires_ack: bool
    handed: int = 0
    # The newest hand-over: (stream's session, token), None when it was taken back or failed.
    holder: tuple[object, int] | None = None
    failed: bool = False
    acked: bool = False
    confirmed: bool = False
    buried: bool = False
    told: bool = False
    waiting_since: int = 0


@dataclass
class Link:
    """One stream as the checker sees it."""

    session: object
    mailbox: str
    # The address of this instance alone.
    own: str
    credits: int = 0
    emergency_credits: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)


class Checker:
    """Feed it facts as they happen."""

    def __init__(self, shares: dict[Lane, int]) -> None:
        self.shares = shares
        # By sender, message_id and receiver: an envelope to several has as many copies.
        self.ids: dict[tuple[str, str, str], Sent] = {}
        self.places: dict[tuple[DomainKey, int], Place] = {}
        self.tokens: dict[int, tuple[DomainKey, int]] = {}
        self.links: dict[int, Link] = {}
        self.newest: Counter[DomainKey] = Counter()
        # When `idle` was called last, and what it was told.
        self.looked_at = 0
        self.was_able: dict[str, set[Lane]] = {}
        # Hand-overs to a stream in a row that went past a lane that waited.
        self.lane_gap: Counter[tuple[int, Lane]] = Counter()

    # -- streams and credits

    def opened(self, stream_id: int, mailbox: str, session: object, own: str = "") -> None:
        self.links[stream_id] = Link(session, mailbox, own)

    def closed(self, stream_id: int) -> None:
        self.links.pop(stream_id, None)

    def granted(self, stream_id: int, credits_: int, emergency_credits: int) -> None:
        link = self.links[stream_id]
        link.credits += credits_
        link.emergency_credits += emergency_credits

    def recovered(
        self, unsettled: set[tuple[DomainKey, int]], dead: dict[tuple[DomainKey, int], str]
    ) -> None:
        """The broker died and came back with this on its disk, ids of what is dead; every link is gone."""
        self.links.clear()
        self.lane_gap.clear()
        for where, message_id in dead.items():
            # Stored and given up, each in a commit of which nobody was told.
            self.places.setdefault(where, Place(message_id, 0, requires_ack=True))
        for (key, sequence), place in self.places.items():
            where = key, sequence
            if where in unsettled:
                if place.confirmed:
                    raise BrokenPromise("M1", f"#{sequence} of {key} was confirmed as settled and came back")
                place.acked = False
                # Whatever held it holds it no more.
                place.failed |= place.holder is not None
                place.holder = None
            elif where in dead:
                place.buried = True
            elif place.acked or not place.requires_ack:
                # The ack, or the note that it was on its way out, had reached the disk.
                place.acked = place.confirmed = True
            else:
                raise BrokenPromise("M1", f"#{sequence} of {key} was accepted and is not on the disk")

    # -- sending

    def sent(self, stream_id: int, message_id: str) -> None:
        self.links[stream_id].unanswered[message_id] += 1

    def answered(self, stream_id: int, message_id: str) -> None:
        link = self.links.get(stream_id)
        if link is None:
            return
        if link.unanswered[message_id] <= 0:
            raise BrokenPromise("M8", f"{message_id} was answered twice")
        link.unanswered[message_id] -= 1

    def accepted(
        self, sender: str, message_id: str, sent: Sent, *, durable: bool, settled: bool, now: int
    ) -> None:
        if not durable:
            raise BrokenPromise("M1", f"{message_id} was accepted before it was durable")
        first = self.ids.setdefault((sender, message_id, sent.key.receiver), sent)
        if first.content != sent.content:
            raise BrokenPromise("M2", f"{message_id} was accepted again with other content")
        if first.sequence != sent.sequence:
            raise BrokenPromise("M2", f"{message_id} has numbers {first.sequence} and {sent.sequence}")
        place = self.places.get((first.key, first.sequence))
        if place is None:
            # It may be settled already when this is the answer to a repeat after a crash.
            place = Place(message_id, first.expire_at, first.requires_ack, waiting_since=now)
            place.acked = place.confirmed = settled
            self.places[first.key, first.sequence] = place
        elif place.message_id != message_id:
            raise BrokenPromise("M3", f"{message_id} and {place.message_id} are both number {first.sequence}")
        self.newest[first.key] = max(self.newest[first.key], first.sequence)

    # -- receiving

    def handed_over(
        self, stream_id: int, deliveries: Sequence[Delivery], now: int, waiting: frozenset[Lane]
    ) -> None:
        """Note deliveries; `waiting` lanes had an envelope for this receiver before and after."""
        shared_seen = False
        for delivery in deliveries:
            key = delivery.envelope.key
            if key.lane is Lane.EMERGENCY and shared_seen:
                raise BrokenPromise("M6", "an EMERGENCY envelope went behind others")
            shared_seen |= key.lane is not Lane.EMERGENCY
            if key.receiver not in {self.links[stream_id].mailbox, self.links[stream_id].own}:
                raise BrokenPromise("M8", f"an envelope to {key.receiver} came to {self.links[stream_id]}")
            self._spend(stream_id, key.lane)
            self._share(stream_id, key.lane, waiting)
            self._hand_over(self.links[stream_id].session, delivery, now)

    def _spend(self, stream_id: int, lane: Lane) -> None:
        link = self.links[stream_id]
        if lane is Lane.EMERGENCY:
            link.emergency_credits -= 1
        else:
            link.credits -= 1
        if link.credits < 0 or link.emergency_credits < 0:
            raise BrokenPromise("M8", f"more was handed over than the receiver's credit in lane {lane.name}")

    def _share(self, stream_id: int, lane: Lane, waiting: frozenset[Lane]) -> None:
        if lane is Lane.EMERGENCY:
            return
        for lower, percent in self.shares.items():
            if lower is lane or lower not in waiting:
                self.lane_gap[stream_id, lower] = 0
                continue
            self.lane_gap[stream_id, lower] += 1
            # Twice the share's distance: what wants no ack takes its turn now and is seen a commit later.
            if self.lane_gap[stream_id, lower] > 2 * (100 // percent) + len(self.shares):
                gap = self.lane_gap[stream_id, lower]
                raise BrokenPromise(
                    "M6", f"lane {lower.name} of stream {stream_id} waited while {gap} went past it"
                )

    def _hand_over(self, session: object, delivery: Delivery, now: int) -> None:
        key, sequence = delivery.envelope.key, delivery.envelope.sequence
        place = self.places.get((key, sequence))
        if place is None:
            # Durable and not answered yet: its sender's stream is gone.
            draft = delivery.envelope.draft
            expire_at = delivery.envelope.accepted_at + draft.ttl_ms
            place = self.places[key, sequence] = Place(
                draft.message_id, expire_at, draft.requires_ack, waiting_since=now
            )
        if place.message_id != delivery.envelope.draft.message_id:
            raise _broken("M3", key, sequence, "is two envelopes")
        if place.acked or place.confirmed or place.buried:
            raise _broken("M2", key, sequence, "came again after it was settled")
        # What wants no ack is committed as done between the decision and the hand-over, behind the commit
        # that is under way then.
        if place.expire_at <= now - (0 if place.requires_ack else 2 * COMMIT_MS_MAX):
            raise _broken("M5", key, sequence, "was handed over after its ttl")
        if not place.requires_ack and place.handed:
            raise _broken("M2", key, sequence, "wants no ack and came twice")
        self._check_order(session, key, sequence)
        place.handed += 1
        place.failed = False
        if place.requires_ack:
            if delivery.token in self.tokens:
                raise _broken("M7", key, sequence, "came under a token that was used before")
            self.tokens[delivery.token] = (key, sequence)
            place.holder = (session, delivery.token)
        else:
            place.acked = place.confirmed = True
        self.newest[key] = max(self.newest[key], sequence)

    def _check_order(self, session: object, key: DomainKey, sequence: int) -> None:
        for number in range(1, sequence):
            before = self.places.get((key, number))
            if before is None:
                raise _broken("M5", key, sequence, f"came and #{number} was never heard of")
            if before.acked or before.confirmed:
                continue
            if before.buried:
                if not before.told and not before.handed:
                    raise _broken("M5", key, sequence, f"came before the tombstone of #{number}")
                continue
            if before.holder is None or before.holder[0] != session:
                raise _broken("M3", key, sequence, f"came while #{number} was not with the same receiver")

        for number in range(sequence + 1, self.newest[key] + 1):
            after = self.places.get((key, number))
            if after is not None and after.holder is not None and not (after.acked or after.failed):
                raise _broken("M3", key, sequence, f"came again and #{number} was not taken back")

    def taken_back(self, tokens: Sequence[int], *, failed: bool) -> None:
        for token in tokens:
            place = self._held(token)
            if place is not None and not place.acked:
                place.holder = None
                place.failed |= failed

    def session_lost(self, session: object) -> None:
        """A session may have ended: its deliveries may come elsewhere, or go on if it is resumed."""
        for place in self.places.values():
            if place.holder is not None and place.holder[0] == session and not place.acked:
                place.failed = True

    def session_left(self, session: object, after_token: int = -1) -> None:
        """What a receiver holds under tokens greater than `after_token` is not outstanding any more."""
        for place in self.places.values():
            holder = place.holder
            if holder is not None and holder[0] == session and holder[1] > after_token and not place.acked:
                place.holder = None
                place.failed = True

    def ack_in(self, session: object, token: int) -> bool:
        """Note an ack that reached the broker; return whether it has to be taken."""
        place = self._held(token)
        if place is None or place.acked or place.holder is None or place.holder[0] != session:
            return False
        place.acked = True
        return True

    def nack_in(self, session: object, token: int) -> None:
        """Note a nack that reached the broker."""
        if self.ack_in(session, token):
            place = self._held(token)
            assert place is not None
            place.acked, place.failed, place.holder = False, True, None

    def settling_refused(self, token: int) -> None:
        """The broker refused what looked valid: a nack in the same frame recalled the delivery, or its
        deadline passed while its receiver's link was down.
        """
        place = self._held(token)
        if place is not None and not place.confirmed:
            place.acked, place.failed = False, True

    def commit_failed(self) -> None:
        """The broker learned that nothing since its last good commit is durable."""
        for place in self.places.values():
            if place.acked and not place.confirmed:
                place.acked, place.failed = False, True

    def confirmed(self, session: object, token: int, *, durable: bool) -> None:
        if not durable:
            raise BrokenPromise("M1", f"token {token} was confirmed as settled and is not durable")
        place = self._held(token)
        if place is None or place.holder is None or place.holder[0] != session:
            raise BrokenPromise("M7", f"token {token} settled an envelope that it did not hold")
        if not place.buried:
            if not place.acked:
                raise BrokenPromise("M7", f"token {token} settled an envelope and nobody had acked with it")
            place.confirmed = True

    def done(self, key: DomainKey, sequence: int) -> None:
        """The broker noted for the log that it is done, whether its receiver's link still stands or not."""
        place = self.places.get((key, sequence))
        if place is not None:
            place.acked = place.confirmed = True

    def dead(self, key: DomainKey, sequence: int, message_id: str, reason: DeadReason) -> None:
        place = self.places.setdefault((key, sequence), Place(message_id, 0, requires_ack=True))
        if place.confirmed:
            raise BrokenPromise("M2", f"#{sequence} of {key} was settled and then given up")
        if reason is DeadReason.EXPIRED and place.acked:
            raise BrokenPromise("M5", f"#{sequence} of {key} was acked and then given up as expired")
        place.buried = True

    def told(self, key: DomainKey, stones: Sequence[Tombstone]) -> None:
        for stone in stones:
            for number in range(stone.first_sequence, stone.sequence + 1):
                place = self.places.get((key, number))
                if place is not None:
                    if not place.buried and not place.confirmed and stone.first_sequence == stone.sequence:
                        raise BrokenPromise("M5", f"a tombstone for #{number} of {key}, which is not dead")
                    place.told = True

    def _held(self, token: int) -> Place | None:
        """Return the place whose newest hand-over has this token."""
        where = self.tokens.get(token)
        place = self.places.get(where) if where else None
        if place is None or place.holder is None or place.holder[1] != token:
            return None
        return place

    # -- progress and the end

    def idle(self, now: int, able: dict[str, set[Lane]]) -> None:
        """Nothing more happens at `now`; `able` says which lanes of whom have a receiver with credit."""
        if now - self.looked_at > STALL_MS // 3:
            # Nobody looked for a while: what waited for whom in between is unknown.
            self.was_able = {}
        self.looked_at = now
        heads: set[DomainKey] = set()
        open_places = [
            one for one in self.places.items() if not (one[1].acked or one[1].confirmed or one[1].buried)
        ]
        for (key, _), place in sorted(open_places):
            if key in heads:
                place.waiting_since = now
                continue
            heads.add(key)
            held = place.holder is not None or place.failed
            is_able = all(key.lane in one.get(key.receiver, ()) for one in (able, self.was_able))
            if held or not is_able or place.expire_at <= now + STALL_MS:
                place.waiting_since = now
            elif now - place.waiting_since > STALL_MS:
                raise BrokenPromise(
                    "M4", f"{key} waits with {place.message_id} though its receiver has credit"
                )
        self.was_able = able

    def is_over(self) -> bool:
        """Return whether nothing is left that must still happen."""
        return all(
            place.confirmed or (place.buried and (place.told or place.handed))
            for place in self.places.values()
        )

    def finished(self, open_streams: set[int]) -> None:
        """Everything was given time to end well."""
        for (key, sequence), place in self.places.items():
            if not (place.confirmed or place.buried or place.acked):
                raise BrokenPromise("M2", f"#{sequence} of {key} was accepted and never settled")
            if place.buried and not place.handed and not place.told:
                raise BrokenPromise("M5", f"#{sequence} of {key} is gone without a tombstone")
        for stream_id in open_streams & set(self.links):
            silent = +self.links[stream_id].unanswered
            if silent:
                raise BrokenPromise("M8", f"no answer to {dict(silent)}")


def _broken(promise: str, key: DomainKey, sequence: int, story: str) -> BrokenPromise:
    # Named only here: to name what keeps its promise takes a tenth of a world's time.
    return BrokenPromise(promise, f"{key.sender}->{key.receiver}/{key.lane.name} #{sequence} {story}")
