"""The messages of the in-memory plane: stored at once, in order per sender and lane, until decided."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from agent_client.core.addresses import has_copies, is_routed, matches, split_instance, topic_of
from agent_client.core.inbox import Domain, Key, Verdict
from agent_client.errors import InvalidRequestError, NotFoundError, RequestReusedError, Violation
from agent_client.link import Delivered, Envelope, Receipt, Sink

RETRY_MAX_DEFAULT = 3
_SEGMENT = r"(?:[A-Za-z0-9_-]+|\*)"
_PATTERN = re.compile(rf"(?:{_SEGMENT}\.){{0,7}}(?:{_SEGMENT}|\*\*)")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up, and why."""

    envelope: Envelope
    reason: str


@dataclass(slots=True)
class _Mail:
    envelope: Envelope
    delivery_count: int = 0
    # Handed over and not decided.
    out: bool = False
    # Nacked, and its delay is not over.
    again_due: bool = False


class Mailboxes:
    """Every agent's mailbox.

    `later(seconds, step)` runs a step after a delay. `find(sender, address)` returns the agents that an
    address of a skill or a collaboration means for `sender`, or raises why it means none.
    """

    def __init__(
        self,
        later: Callable[[float, Callable[[], None]], None],
        find: Callable[[str, str], list[str]],
    ) -> None:
        self._later, self._find = later, find
        # Receivers that take deliveries; others' messages wait.
        self._open: dict[str, Sink] = {}
        self._mail: dict[str, dict[Key, _Mail]] = {}
        self._instances: dict[str, str] = {}
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._seen: dict[Key, tuple[Envelope, Receipt]] = {}
        # Patterns by owner.
        self._subscriptions: dict[str, set[str]] = {}
        self.accepted: list[Envelope] = []
        self.dead_letters: list[DeadLetter] = []

    def add(self, name: str, instance: str) -> None:
        """Give an agent, which has this one instance, a mailbox."""
        self._mail.setdefault(name, {})
        self._instances[name] = instance

    def close(self, name: str) -> None:
        """An agent left: what was not decided waits for it."""
        self._open.pop(name, None)
        for mail in self._mail.get(name, {}).values():
            mail.out = False

    def open(self, name: str, sink: Sink) -> None:
        """An agent takes deliveries from now on."""
        if name not in self._open:
            self._open[name] = sink
            for domain in {mail.envelope.domain: None for mail in self._mail[name].values()}:
                self._deliver_domain(name, domain)

    def waiting_count(self, name: str) -> int:
        """Return how many messages of an agent are not done."""
        return len(self._mail[name])

    def subscribe(self, name: str, pattern: str, *, wanted: bool) -> None:
        """Add or end a subscription."""
        if not _PATTERN.fullmatch(pattern):
            raise InvalidRequestError(
                f"pattern: {pattern!r} is no topic or pattern", violations=[Violation("pattern", "roads.*")]
            )
        patterns = self._subscriptions.setdefault(name, set())
        if wanted:
            patterns.add(pattern)
        else:
            patterns.discard(pattern)

    def subscriptions(self, name: str) -> list[str]:
        """Return the patterns that an agent is subscribed to."""
        return sorted(self._subscriptions.get(name, ()))

    def send(self, sender: str, envelope: Envelope) -> Receipt:
        """Store an envelope for whomever it is for."""
        key = sender, envelope.message_id
        if key in self._seen:
            known, receipt = self._seen[key]
            if known.payload != envelope.payload:
                raise RequestReusedError(f"{envelope.message_id} was used for another message")
            return receipt
        address = envelope.receiver
        receivers = self._receivers(sender, envelope)
        numbers = [self._store(sender, envelope, receiver) for receiver in receivers]
        many = has_copies(address)
        receipt = Receipt(0, "", len(receivers)) if many else Receipt(numbers[0], receivers[0])
        self._seen[key] = envelope, receipt
        return receipt

    def _receivers(self, sender: str, envelope: Envelope) -> list[str]:
        address = envelope.receiver
        if not is_routed(address):
            name, instance = split_instance(address)
            if name not in self._mail:
                raise NotFoundError(f"no agent {name!r} is registered", reason="AGENT_NOT_FOUND")
            if instance not in {"", self._instances[name]}:
                raise NotFoundError(f"{name} has no instance {instance!r}", reason="RECEIVER_NOT_FOUND")
            return [address]
        if topic := topic_of(address):
            found = [
                owner
                for owner, patterns in self._subscriptions.items()
                if owner != sender and any(matches(pattern, topic) for pattern in patterns)
            ]
        else:
            found = self._find(sender, address)
        if not found and (envelope.requires_receiver or not has_copies(address)):
            raise NotFoundError(f"{address} means nobody", reason="RECEIVER_NOT_FOUND")
        return sorted(found) if has_copies(address) else found[:1]

    def _store(self, sender: str, envelope: Envelope, receiver: str) -> int:
        domain = sender, receiver, envelope.priority
        number = self._numbers[domain] = self._numbers.get(domain, 0) + 1
        stored = envelope._replace(
            sender=sender,
            receiver=receiver,
            address=envelope.receiver if is_routed(envelope.receiver) else "",
            sequence_number=number,
            accepted_time=datetime.now(UTC),
        )
        self.accepted.append(stored)
        name, _ = split_instance(receiver)
        self._mail[name][stored.key] = _Mail(stored)
        self._deliver_domain(name, stored.domain)
        return number

    def settle(self, name: str, key: Key, verdict: Verdict, delay: float | None, reason: str) -> None:
        """An agent decided about a delivery."""
        mail = self._mail[name].get(key)
        if mail is None or not mail.out:
            return
        retry_max = RETRY_MAX_DEFAULT if mail.envelope.retry_max is None else mail.envelope.retry_max
        if verdict is Verdict.NACK and mail.delivery_count <= retry_max:
            self._give_back(name, mail, delay or 0.0)
        else:
            del self._mail[name][key]
            if verdict is not Verdict.ACK:
                self.dead_letters.append(DeadLetter(mail.envelope, reason or "deliveries exhausted"))
            self._deliver_domain(name, mail.envelope.domain)
        if verdict is Verdict.NACK and name in self._open:
            self._open[name].nack_confirmed(mail.envelope.domain)

    def recall_answered(self, name: str, key: Key, *, dropped: bool) -> None:
        """A delivery that was taken back was dropped before it was seen: it comes again in its order."""
        mail = self._mail[name].get(key)
        if mail is not None and dropped:
            mail.out = False
            # Taken back is not a delivery that failed.
            mail.delivery_count -= 1

    def _give_back(self, name: str, mail: _Mail, delay: float) -> None:
        """Give a nacked message again before everything that follows it in its order domain."""
        mail.out = False
        mail.again_due = True
        for other in self._domain(name, mail.envelope.domain):
            if other.out and other.envelope.sequence_number > mail.envelope.sequence_number:
                self._open[name].recalled(other.envelope.key)
        self._later(delay, lambda: self._again(name, mail))

    def _again(self, name: str, mail: _Mail) -> None:
        mail.again_due = False
        self._deliver_domain(name, mail.envelope.domain)

    def _deliver_domain(self, name: str, domain: Domain) -> None:
        """Deliver what waits in a domain, up to a message that was nacked and is not decided yet."""
        if name not in self._open:
            return
        due: list[_Mail] = []
        for mail in self._domain(name, domain):
            if mail.again_due:
                break
            if not mail.out:
                mail.out = True
                mail.delivery_count += 1
                due.append(mail)
            if mail.delivery_count > 1:
                break
        if due:
            self._open[name].delivered([Delivered.of(mail.envelope, mail.delivery_count) for mail in due])

    def _domain(self, name: str, domain: Domain) -> list[_Mail]:
        # A mailbox keeps its messages in the order of acceptance, which is that of each domain too.
        return [mail for mail in self._mail[name].values() if mail.envelope.domain == domain]
