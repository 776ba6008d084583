"""Fair shares between requesters: dominant resource fairness over slots and declared needs.

A requester's dominant share is the largest of its shares: of all slots, and of each capacity that its tasks
need, divided by its weight. Inside a priority class the next task is that of the requester with the smallest
dominant share (progressive filling). Method: Ghodsi et al., "Dominant Resource Fairness: Fair Allocation of
Multiple Resource Types" (NSDI 2011), section 4.1; weights as in its section 4.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.common.core.instants import Instant


class Account:
    """What one requester's tasks hold of the fleet."""

    __slots__ = (
        "aged_turn",
        "held",
        "last_share",
        "name",
        "needs",
        "number",
        "open_count",
        "stamp",
        "weight",
    )

    def __init__(self, name: str, weight: float = 1.0, number: int = 0) -> None:
        self.name = name
        self.weight = weight
        #: Its place in arrays, small: no other open account has it.
        self.number = number
        #: Slots with an open attempt, and what these take of each capacity.
        self.held = 0
        self.needs: dict[str, int] = {}
        #: Collaborations that have not ended.
        self.open_count = 0
        #: When a task of it was last served for its age: as an instant, and as a number that only grows.
        self.aged_turn = Instant(0), 0
        #: The share that was computed last, and from which totals; None when what it holds has changed.
        self.last_share = 0.0
        self.stamp: int | None = None

    def __repr__(self) -> str:
        return f"<Account {self.name} weight {self.weight:g}: {self.held} held>"

    def take(self, needs: Iterable[tuple[str, int]]) -> None:
        """Note that it holds one more slot, with `needs` of its instance's capacities."""
        self.held += 1
        self.stamp = None
        for name, amount in needs:
            self.needs[name] = self.needs.get(name, 0) + amount

    def give(self, needs: Iterable[tuple[str, int]]) -> None:
        """Note that it holds one slot less, and `needs` less."""
        self.held -= 1
        self.stamp = None
        for name, amount in needs:
            self.needs[name] -= amount

    def share(self, totals: Totals) -> float:
        """Return its dominant share; computed anew only when it or the totals have changed."""
        if self.stamp != totals.changes:
            self.stamp = totals.changes
            self.last_share = dominant_share(self.held, self.needs, self.weight, totals)
        return self.last_share


class Accounts:
    """Every requester with open work. Owned by `SchedulerState`."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._accounts: dict[str, Account] = {}
        #: Numbers of accounts that are gone.
        self._spare: list[int] = []

    def __len__(self) -> int:
        return len(self._accounts)

    def open(self, requester: str) -> Account:
        """Return a requester's account, with one more collaboration open."""
        account = self._accounts.get(requester)
        if account is None:
            number = self._spare.pop() if self._spare else len(self._accounts)
            account = Account(requester, self._weights.get(requester, 1.0), number)
            self._accounts[requester] = account
        account.open_count += 1
        return account

    def close(self, account: Account) -> None:
        """Note the end of a collaboration; an account without any is forgotten."""
        account.open_count -= 1
        if account.open_count == 0:
            del self._accounts[account.name]
            self._spare.append(account.number)


class Totals:
    """What there is to share: slots, and each capacity by name."""

    __slots__ = ("capacities", "changes", "slots")

    def __init__(self) -> None:
        self.slots = 0
        self.capacities: dict[str, int] = {}
        #: Grows with every change.
        self.changes = 0


def dominant_share(held: int, needs: Mapping[str, int], weight: float, totals: Totals) -> float:
    """Return the largest share that `held` slots and `needs` are of the totals, divided by the weight."""
    share = held / totals.slots if totals.slots else 0.0
    for name, amount in needs.items():
        total = totals.capacities.get(name, 0)
        if total:
            share = max(share, amount / total)
    return share / weight
