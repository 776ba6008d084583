"""What a history says of envelopes whose receivers the broker finds. Part of the checker; knows nothing of
the core.

Who must get a copy follows from what subscribers were told: a subscription is firm from the answer to the
request for it until the next request about it, whatever crashed meanwhile.
"""

from __future__ import annotations

from services.broker.core.model import Chosen, Envelope, Route, RouteKind, SendOutcome
from tests.unit.broker.broker_checker import BrokenPromise


class RouteBook:
    """Feed it facts as they happen."""

    def __init__(self, receivers: frozenset[str]) -> None:
        self.receivers = receivers
        # By owner: True or False as it was told last; None while a request is open or was lost.
        self.firm: dict[str, bool | None] = dict.fromkeys(receivers, False)
        # By (sender, id): who must and who may get a copy; the sequence numbers of the copies on the disk;
        # the first answer.
        self.must: dict[tuple[str, str], frozenset[str]] = {}
        self.may: dict[tuple[str, str], frozenset[str]] = {}
        self.copies: dict[tuple[str, str], dict[str, int]] = {}
        self.answers: dict[tuple[str, str], tuple[int, Chosen]] = {}

    def arrived(self, sender: str, message_id: str, route: Route) -> None:
        """An envelope reached the broker, perhaps again: any of its arrivals may be the one that counts."""
        what = sender, message_id
        if route.kind is RouteKind.TOPIC:
            must = frozenset(owner for owner, state in self.firm.items() if state)
            may = frozenset(owner for owner, state in self.firm.items() if state is not False)
        else:
            must = self.receivers if route.kind is RouteKind.COLLABORATION else frozenset()
            may = self.receivers
        self.must[what] = self.must.get(what, must) & must
        self.may[what] = self.may.get(what, may) | may

    def written(self, envelope: Envelope) -> None:
        """A copy is on the disk."""
        key = envelope.key
        copies = self.copies.setdefault((key.sender, envelope.draft.message_id), {})
        if copies.setdefault(key.receiver, envelope.sequence) != envelope.sequence:
            raise BrokenPromise("M2", f"{envelope.draft.message_id} was stored twice for {key.receiver}")

    def accepted(self, sender: str, route: Route, outcome: SendOutcome) -> dict[str, int]:
        """The sender was told for whom an envelope was accepted; return the copies' numbers by receiver."""
        what, chosen = (sender, outcome.message_id), outcome.chosen
        if chosen is None:
            raise BrokenPromise("M2", f"{what} was answered without saying for whom")
        if self.answers.setdefault(what, (outcome.sequence, chosen)) != (outcome.sequence, chosen):
            raise BrokenPromise("M2", f"{what} was answered {self.answers[what]} and {chosen}")
        copies = self.copies.get(what, {})
        if len(copies) != chosen.receiver_count:
            raise BrokenPromise("M1", f"{what} was accepted for {chosen} and is on the disk for {copies}")
        got = frozenset(copies)
        if not self.must[what] <= got:
            raise BrokenPromise("M8", f"{what} was accepted without {set(self.must[what] - got)}")
        if not got <= self.may[what]:
            raise BrokenPromise(
                "M8", f"{what} was accepted for {set(got - self.may[what])}, who must not get it"
            )
        if route.kind is RouteKind.SKILL and copies != {chosen.receiver: outcome.sequence}:
            raise BrokenPromise("M2", f"{what} was answered {chosen} and is on the disk for {copies}")
        return copies
