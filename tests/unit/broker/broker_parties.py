"""Senders and receivers of the simulated plant, well-behaved and otherwise."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.machine import Machine
from services.broker.core.model import (
    Delivery,
    DomainKey,
    Draft,
    Lane,
    Limits,
    Recovered,
    Route,
    RoutedDraft,
    RouteKind,
)
from services.common.core.errors import Reason
from services.common.core.instants import Instant
from tests.unit.broker.broker_checker import BrokenPromise, Sent
from tests.unit.broker.broker_disks import Disk
from tests.unit.broker.broker_world import Plant

# Rounds of 200 ms after the trouble, and how many of them all has to have been over: longer than any
# delivery, resume window or delay of a retry could wait.
PEACE_ROUNDS_MAX = 60
QUIET_ROUNDS = 4


@dataclass
class Message:
    """What a sender means to send."""

    draft: Draft | RoutedDraft
    answered: bool = False


@dataclass(eq=False)
class Sender:
    name: str
    stream_id: int = 0
    outbox: list[Message] = field(default_factory=list)
    # On the current stream, in the order sent.
    unanswered: deque[Draft | RoutedDraft] = field(default_factory=deque)
    made: int = 0


@dataclass(eq=False)
class Receiver:
    """One instance of one agent, over several incarnations."""

    name: str
    instance: str
    incarnation: int = 1
    stream_id: int = 0
    greatest_token: int = 0
    held: dict[int, Delivery] = field(default_factory=dict)
    # Settled, recalled or lost; sometimes acked once more, too late.
    past_tokens: deque[int] = field(default_factory=lambda: deque(maxlen=8))

    @property
    def session(self) -> object:
        return (self.name, self.instance, self.incarnation)


class World(Plant):
    """One run."""

    def __init__(
        self,
        seed: int,
        disk: Disk,
        make: Callable[[Recovered, Limits, Instant], Machine] = Machine,
        *,
        inspects: bool = True,
        burst: int = 6,
    ) -> None:
        # How many envelopes a sender sends at once.
        self.burst = burst
        self.senders = [Sender(name) for name in ("s1", "s2", "s3")]
        self.receivers = [Receiver("r1", "0"), Receiver("r1", "1"), Receiver("r2", "0")]
        super().__init__(seed, disk, make, inspects=inspects)

    # -- what comes from the broker

    def told(self, effect: fx.Deliver | fx.Answer | fx.Recall) -> None:
        stream_id = effect.stream_id
        match effect:
            case fx.Answer():
                self._answers(stream_id, effect)
            case fx.Deliver(deliveries=deliveries):
                self._to_receiver(stream_id, lambda receiver: self._take(receiver, deliveries))
            case fx.Recall(tokens=tokens):
                self._to_receiver(stream_id, lambda receiver: self._drop(receiver, tokens))

    def hung_up(self, stream_id: int | None) -> None:
        parties: list[Sender | Receiver] = [*self.senders, *self.receivers]
        for party in parties:
            if stream_id in {None, party.stream_id}:
                party.stream_id = 0

    def receiving_streams(self) -> Iterable[int]:
        return [receiver.stream_id for receiver in self.receivers]

    # -- senders

    def connect_sender(self, sender: Sender) -> None:
        if sender.stream_id:
            return
        sender.stream_id = self.open_stream()
        sender.unanswered.clear()
        hello = ev.StreamOpened(
            sender.stream_id, f"agent/{sender.name}", sender.name, "send", 0, send_only=True
        )
        self.checker.opened(sender.stream_id, sender.name, ("sender", sender.name))
        self.to_broker(sender.stream_id, hello)
        # Everything unanswered again, in order.
        self._send(sender, [message for message in sender.outbox if not message.answered])

    def make_message(self, sender: Sender) -> Message:
        rng = self.random
        sender.made += 1
        style = rng.random()
        message_id = f"{sender.name}-{sender.made}" if style < 0.7 else f"{sender.name}x{sender.made:04}"
        lane = rng.choice([Lane.EMERGENCY, Lane.HIGH, Lane.NORMAL, Lane.NORMAL, Lane.LOW])
        ttl_ms = rng.choice([300, 1_000, 60_000, 60_000, 60_000])
        requires_ack = rng.random() < 0.9
        retry_max = rng.choice([0, 1, 3, 50])
        content = rng.randbytes(8)
        receiver = rng.choice(["r1", "r2", "r1#0", "r1#1", "r2"])
        draft = Draft(message_id, receiver, lane, requires_ack, ttl_ms, retry_max, content, content * 5)
        kind = rng.choice([None, None, None, None, None, None, *RouteKind])
        message = Message(draft if kind is None else self._routed(sender, draft, kind))
        sender.outbox.append(message)
        return message

    def _routed(self, sender: Sender, draft: Draft, kind: RouteKind) -> RoutedDraft:
        name = {
            RouteKind.SKILL: "plans",
            RouteKind.COLLABORATION: f"team-{sender.name}",
            RouteKind.TOPIC: "roads.closed",
        }[kind]
        requires_receiver = self.random.random() < 0.3
        return RoutedDraft(
            draft.message_id, Route(kind, name), requires_receiver, draft._replace(receiver="")
        )

    def send_new(self, sender: Sender) -> None:
        if not sender.stream_id or self.calm:
            return
        room = self.limits.send_window - sum(not message.answered for message in sender.outbox)
        fresh = [self.make_message(sender) for _ in range(min(room, self.random.randint(1, self.burst)))]
        again = []
        if sender.outbox and self.random.random() < 0.2:
            again.append(self.random.choice(sender.outbox))
        if sender.outbox and self.random.random() < 0.1:
            again.append(Message(_reuse(self.random.choice(sender.outbox).draft), answered=True))
        self._send(sender, [*again, *fresh])

    def _send(self, sender: Sender, messages: list[Message]) -> None:
        drafts = [message.draft for message in messages][: self.limits.send_window]
        if drafts and sender.stream_id:
            sender.unanswered += drafts
            self.to_broker(sender.stream_id, ev.FrameReceived(sender.stream_id, drafts=drafts))

    def _answers(self, stream_id: int, answer: fx.Answer) -> None:
        sender = next((one for one in self.senders if one.stream_id == stream_id), None)
        if sender is None:
            return
        again = False
        for outcome in answer.outcomes:
            # Answers come in the order sent, so that each has its draft even when ids repeat.
            draft = sender.unanswered.popleft() if sender.unanswered else None
            if draft is None or draft.message_id != outcome.message_id:
                raise BrokenPromise("M8", f"{outcome.message_id} was answered out of turn")
            if outcome.error is None and isinstance(draft, RoutedDraft):
                for receiver, sequence in self.routes.accepted(sender.name, draft.route, outcome).items():
                    self._accepted(sender, draft.draft._replace(receiver=receiver), sequence)
            elif outcome.error is None and isinstance(draft, Draft):
                self._accepted(sender, draft, outcome.sequence)
            full = outcome.error is not None and outcome.error.reason in {
                Reason.DISK_FULL,
                Reason.QUOTA_EXCEEDED,
            }
            again |= full
            for message in sender.outbox:
                if message.draft == draft and not full:
                    message.answered = True
        # What met a full disk or quota is sent again; other refusals are final.
        if again:
            waiting = [message for message in sender.outbox if not message.answered]
            self.later(20, lambda: self._send(sender, [one for one in waiting if not one.answered]))

    def _accepted(self, sender: Sender, draft: Draft, sequence: int) -> None:
        key = DomainKey(sender.name, draft.receiver, draft.lane)
        place = self.checker.places.get((key, sequence))
        expire_at = place.expire_at if place is not None else self.now + draft.ttl_ms
        record = self.domains.get(key)
        self.checker.accepted(
            sender.name,
            draft.message_id,
            Sent(key, draft.fingerprint, sequence, expire_at, draft.requires_ack),
            durable=record is not None and sequence < record.next_sequence,
            settled=self.is_settled(key, sequence),
            now=self.now,
        )

    # -- receivers

    def connect_receiver(self, receiver: Receiver) -> None:
        if receiver.stream_id:
            return
        receiver.stream_id = stream_id = self.open_stream()
        own = f"{receiver.name}#{receiver.instance}"
        self.checker.opened(stream_id, receiver.name, receiver.session, own)
        hello = ev.StreamOpened(
            stream_id,
            f"agent/{receiver.name}",
            receiver.name,
            receiver.instance,
            receiver.incarnation,
            send_only=False,
            resume_token=receiver.greatest_token,
        )
        self.to_broker(stream_id, hello)
        self.grant(receiver)

    def grant(self, receiver: Receiver) -> None:
        if receiver.stream_id:
            many = self.calm or self.random.random() < 0.5
            event = ev.FrameReceived(
                receiver.stream_id, credits=40 if many else 3, emergency_credits=20 if many else 1
            )
            self.to_broker(receiver.stream_id, event)

    def restart_receiver(self, receiver: Receiver) -> None:
        if self.calm:
            return
        stream_id = receiver.stream_id
        receiver.stream_id = 0
        receiver.held.clear()
        receiver.past_tokens.clear()
        receiver.incarnation += 1
        receiver.greatest_token = 0
        if stream_id:
            self.cut(stream_id)
        self.later(self.random.randint(0, 100), lambda: self.connect_receiver(receiver))

    def drop_link(self, receiver: Receiver) -> None:
        stream_id = receiver.stream_id
        if stream_id and not self.calm:
            receiver.stream_id = 0
            self.cut(stream_id)
            self.later(self.random.randint(0, 250), lambda: self.connect_receiver(receiver))

    def leave_well(self, receiver: Receiver) -> None:
        stream_id = receiver.stream_id
        if stream_id and not self.calm:
            self.to_broker(stream_id, ev.StreamLeaving(stream_id))
            self.later(self.random.randint(0, 100), lambda: self.connect_receiver(receiver))

    def _to_receiver(self, stream_id: int, deliver: Callable[[Receiver], None]) -> None:
        receiver = next((one for one in self.receivers if one.stream_id == stream_id), None)
        if receiver is not None:
            # One delay per link keeps its order: the agenda is stable for equal times.
            self.later(3, lambda: deliver(receiver) if receiver.stream_id == stream_id else None)

    def _take(self, receiver: Receiver, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.token:
                receiver.greatest_token = max(receiver.greatest_token, delivery.token)
                receiver.held[delivery.token] = delivery
        delay_ms = 5 if self.calm else self.random.choice([1, 5, 20, 600])
        self.later(delay_ms, lambda: self.work(receiver))
        self.grant(receiver)

    def _drop(self, receiver: Receiver, tokens: Sequence[int]) -> None:
        for token in tokens:
            if receiver.held.pop(token, None) is not None and self.random.random() < 0.3:
                receiver.past_tokens.append(token)

    def work(self, receiver: Receiver) -> None:
        """Settle some of what is held, sometimes wrongly or late."""
        stream_id, rng = receiver.stream_id, self.random
        if not stream_id:
            return
        acks: list[int] = []
        settlings: list[ev.Nack | ev.Extend | ev.Reject] = []
        for token in list(receiver.held):
            dice = 0.0 if self.calm else rng.random()
            if dice > 0.97:
                continue
            if dice > 0.95:
                settlings.append(ev.Extend(token, rng.choice([100, 600])))
                continue
            del receiver.held[token]
            receiver.past_tokens.append(token)
            if dice < 0.8:
                acks.append(token)
            elif dice < 0.92:
                settlings.append(ev.Nack(token, rng.choice([None, 0, 30])))
            elif dice < 0.93:
                settlings.append(ev.Reject(token, "no"))
        if receiver.past_tokens and not self.calm and rng.random() < 0.3:
            acks.append(rng.choice(list(receiver.past_tokens)))
        rng.shuffle(acks)
        self.to_broker(stream_id, ev.FrameReceived(stream_id, acks=acks, settlings=settlings))
        if receiver.held:
            self.later(50, lambda: self.work(receiver))

    # -- a whole run

    def play(self, duration_ms: int = 1_500) -> None:
        """Trouble for a while, then peace until everything has ended."""
        start = self.now
        for sender in self.senders:
            self.later(0, partial(self.connect_sender, sender))
        for receiver in self.receivers:
            self.later(self.random.randint(0, 200), partial(self.connect_receiver, receiver))
        for receiver in self.receivers[1:]:
            self.later(
                self.random.randint(0, 100), partial(self.ask_subscription, receiver.name, wanted=True)
            )
        for _ in range(40):
            one = self.random.choice(self.senders)
            self.later(self.random.randint(0, duration_ms), partial(self.send_new, one))
        for action in self._troubles():
            self.later(self.random.randint(0, duration_ms), action)
        self.run_until(start + duration_ms)
        self.calm = True
        quiet = 0
        for _ in range(PEACE_ROUNDS_MAX):
            quiet = quiet + 1 if self.is_over() else 0
            if quiet > QUIET_ROUNDS:
                break
            for sender in self.senders:
                self.connect_sender(sender)
            for receiver in self.receivers:
                self.connect_receiver(receiver)
                self.grant(receiver)
                self.work(receiver)
            self.run_until(self.now + 200)
        self.checker.finished({*self._streams()})

    def is_over(self) -> bool:
        """Return whether all that was sent is answered and settled."""
        return (
            self.committing is None
            and all(message.answered for sender in self.senders for message in sender.outbox)
            and self.checker.is_over()
        )

    def _streams(self) -> Iterator[int]:
        for sender in self.senders:
            yield sender.stream_id
        for receiver in self.receivers:
            yield receiver.stream_id

    def _troubles(self) -> list[Callable[[], None]]:
        rng = self.random
        kinds: list[Callable[[], None]] = [self.crash] * rng.randint(0, 2)
        for _ in range(rng.randint(0, 4)):
            receiver = rng.choice(self.receivers)
            action = rng.choice([self.drop_link, self.restart_receiver, self.leave_well])
            kinds.append(partial(action, receiver))
        for _ in range(rng.randint(0, 3)):
            kinds.append(partial(self.ask_subscription, rng.choice(["r1", "r2"]), wanted=rng.random() < 0.6))
            kinds.append(self.hear_registry)
        kinds += [partial(self._drop_sender, rng.choice(self.senders)) for _ in range(rng.randint(0, 3))]
        return kinds

    def _drop_sender(self, sender: Sender) -> None:
        stream_id, sender.stream_id = sender.stream_id, 0
        if stream_id:
            self.cut(stream_id)
        self.later(self.random.randint(0, 100), lambda: self.connect_sender(sender))


def _reuse(old: Draft | RoutedDraft) -> Draft | RoutedDraft:
    """Return other content under the same id."""
    if isinstance(old, Draft):
        return old._replace(fingerprint=b"otherone", body=b"other")
    return old._replace(draft=old.draft._replace(fingerprint=b"otherone", body=b"other"))
