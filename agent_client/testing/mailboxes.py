"""The messages of the in-memory plane: stored at once, in order per sender and lane, until decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from agent_client.core.inbox import Domain, Key, Verdict
from agent_client.errors import NotFoundError, RequestReusedError
from agent_client.link import Delivered, Envelope, Sink

RETRY_MAX_DEFAULT = 3


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
    """Every agent's mailbox. `later(seconds, step)` runs a step after a delay."""

    def __init__(self, later: Callable[[float, Callable[[], None]], None]) -> None:
        self._later = later
        # Receivers that take deliveries; others' messages wait.
        self._open: dict[str, Sink] = {}
        self._mail: dict[str, dict[Key, _Mail]] = {}
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._seen: dict[Key, Envelope] = {}
        self.accepted: list[Envelope] = []
        self.dead_letters: list[DeadLetter] = []

    def add(self, name: str) -> None:
        """Give an agent a mailbox."""
        self._mail.setdefault(name, {})

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

    def send(self, sender: str, envelope: Envelope) -> int:
        """Store an envelope; return its number in its order domain."""
        box = self._mail.get(envelope.receiver)
        if box is None:
            raise NotFoundError(f"no agent {envelope.receiver!r} is registered", reason="AGENT_NOT_FOUND")
        key = sender, envelope.message_id
        known = self._seen.get(key)
        if known is not None:
            if known.payload != envelope.payload:
                raise RequestReusedError(f"{envelope.message_id} was used for another message")
            return known.sequence_number
        domain = sender, envelope.receiver, envelope.priority
        number = self._numbers[domain] = self._numbers.get(domain, 0) + 1
        stored = replace(envelope, sender=sender, sequence_number=number, accepted_time=datetime.now(UTC))
        self._seen[key] = stored
        self.accepted.append(stored)
        box[key] = _Mail(stored)
        self._deliver_domain(envelope.receiver, stored.domain)
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
            self._open[name].delivered([Delivered(mail.envelope, mail.delivery_count) for mail in due])

    def _domain(self, name: str, domain: Domain) -> list[_Mail]:
        # A mailbox keeps its messages in the order of acceptance, which is that of each domain too.
        return [mail for mail in self._mail[name].values() if mail.envelope.domain == domain]
