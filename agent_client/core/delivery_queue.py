"""Deliveries that wait in this process for the agent's code, in an order that keeps each domain's order.

An order domain is one sender in one lane. Emergencies come first; otherwise the order of arrival counts.
After a nack the broker takes back what it had sent beyond the nacked envelope and gives everything again in
order. Until it has confirmed the nack the domain pauses, so that what it takes back is not handled first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from agent_client.core.inbox import Domain, Key


@dataclass(frozen=True, slots=True)
class Waiting:
    """One delivery in line."""

    key: Key
    domain: Domain
    emergency: bool


class DeliveryQueue:
    """A line of deliveries. `serial`: the next one of a domain waits until the one before is settled."""

    def __init__(self, *, serial: bool) -> None:
        self._serial = serial
        self._urgent: OrderedDict[Key, Waiting] = OrderedDict()
        self._normal: OrderedDict[Key, Waiting] = OrderedDict()
        self._busy: set[Domain] = set()
        # Nacks that the broker has not confirmed, by domain.
        self._paused: Counter[Domain] = Counter()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._normal)

    def __repr__(self) -> str:
        return f"DeliveryQueue({len(self)} waiting, {len(self._paused)} paused, {len(self._busy)} busy)"

    def put(self, waiting: Waiting) -> None:
        """A delivery arrived."""
        line = self._urgent if waiting.emergency else self._normal
        line[waiting.key] = waiting

    def take(self) -> Waiting | None:
        """Return the next delivery that may be handled now."""
        for line in (self._urgent, self._normal):
            for waiting in line.values():
                if waiting.domain in self._paused or waiting.domain in self._busy:
                    continue
                del line[waiting.key]
                if self._serial:
                    self._busy.add(waiting.domain)
                return waiting
        return None

    def settled(self, domain: Domain) -> None:
        """A delivery that was taken from this line is decided."""
        self._busy.discard(domain)

    def nacked(self, domain: Domain) -> None:
        """A delivery of this domain, from this line or another, goes back to the broker."""
        self._paused[domain] += 1

    def nack_confirmed(self, domain: Domain) -> None:
        """The broker confirmed a nack; what it took back for it is out of the line by now."""
        self._paused[domain] -= 1
        if self._paused[domain] <= 0:
            del self._paused[domain]

    def recalled(self, key: Key) -> bool:
        """The broker took a delivery back. Returns whether it was still in line."""
        return self._urgent.pop(key, None) is not None or self._normal.pop(key, None) is not None
