"""Deliveries that wait in this process for the agent's code, in an order that keeps each domain's order.

An order domain is one sender in one lane. Emergencies come first; otherwise the order of arrival counts.
After a nack the broker takes back what it had sent beyond the nacked envelope and gives everything again in
order. Until it has confirmed the nack the domain pauses, so that what it takes back is not handled first.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from typing import NamedTuple

from agent_client.core.inbox import Domain, Key


class Waiting(NamedTuple):
    """One delivery in line."""

    key: Key
    domain: Domain
    emergency: bool


class DeliveryQueue:
    """A line of deliveries. `serial`: the next one of a domain waits until the one before is settled.

    Taking the next one costs O(log domains), however many of a busy domain wait.
    """

    def __init__(self, *, serial: bool) -> None:
        self._serial = serial
        self._arrivals = 0
        # Each domain's deliveries with their arrival numbers, oldest first. No domain is empty.
        self._lines: dict[Domain, OrderedDict[Key, tuple[int, Waiting]]] = {}
        # (not emergency, arrival number, domain) of heads. Those that are no longer at the head of a domain
        # that may be handled are skipped when they come up.
        self._heads: list[tuple[bool, int, Domain]] = []
        self._busy: set[Domain] = set()
        # Nacks that the broker has not confirmed, by domain.
        self._paused: Counter[Domain] = Counter()

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __repr__(self) -> str:
        return f"DeliveryQueue({len(self)} waiting, {len(self._paused)} paused, {len(self._busy)} busy)"

    def put(self, waiting: Waiting) -> None:
        """A delivery arrived."""
        self._arrivals += 1
        line = self._lines.get(waiting.domain)
        if line is None:
            line = self._lines[waiting.domain] = OrderedDict()
        line[waiting.key] = self._arrivals, waiting
        if len(line) == 1:
            self._offer(waiting.domain)

    def take(self) -> Waiting | None:
        """Return the next delivery that may be handled now."""
        heads = self._heads
        while heads:
            _, arrival, domain = heads[0]
            line = self._lines.get(domain)
            if line is None or domain in self._paused or domain in self._busy:
                heapq.heappop(heads)
                continue
            key, (number, waiting) = next(iter(line.items()))
            if number != arrival:
                heapq.heappop(heads)
                continue
            del line[key]
            if self._serial:
                self._busy.add(domain)
            if not line:
                del self._lines[domain]
                heapq.heappop(heads)
            elif self._serial:
                heapq.heappop(heads)
            else:
                number, following = next(iter(line.values()))
                heapq.heapreplace(heads, (not following.emergency, number, domain))
            return waiting
        return None

    def settled(self, domain: Domain) -> None:
        """A delivery that was taken from this line is decided."""
        if domain in self._busy:
            self._busy.remove(domain)
            self._offer(domain)

    def nacked(self, domain: Domain) -> None:
        """A delivery of this domain, from this line or another, goes back to the broker."""
        self._paused[domain] += 1

    def nack_confirmed(self, domain: Domain) -> None:
        """The broker confirmed a nack; what it took back for it is out of the line by now."""
        self._paused[domain] -= 1
        if self._paused[domain] <= 0:
            del self._paused[domain]
            self._offer(domain)

    def recalled(self, key: Key, domain: Domain) -> bool:
        """The broker took a delivery back. Returns whether it was still in line."""
        if key not in self._lines.get(domain, ()):
            return False
        self._remove(domain, key)
        return True

    def _remove(self, domain: Domain, key: Key) -> None:
        line = self._lines[domain]
        del line[key]
        if line:
            self._offer(domain)
        else:
            del self._lines[domain]

    def _offer(self, domain: Domain) -> None:
        line = self._lines.get(domain)
        if line and domain not in self._paused and domain not in self._busy:
            number, waiting = next(iter(line.values()))
            heapq.heappush(self._heads, (not waiting.emergency, number, domain))
