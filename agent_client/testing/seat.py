"""An agent's place in the in-memory plane: the link that its handlers speak to."""

from __future__ import annotations

from agent_client.agent import Agent
from agent_client.core.inbox import Key, Verdict
from agent_client.core.records import AttemptRef, Outcome, Payload
from agent_client.errors import MusterError, ResourceHeldError
from agent_client.link import Delivered, Envelope, LockWish, Receipt, Sink
from agent_client.pending import Pending
from agent_client.testing.engine import Engine
from agent_client.testing.locks import Request


class Seat:
    """Implements `Link`."""

    def __init__(self, engine: Engine, agent: Agent) -> None:
        self._engine, self.agent = engine, agent
        self.sink: Sink
        self.attempts: set[AttemptRef] = set()
        self._requests: dict[int, Request] = {}

    def begin(self, sink: Sink) -> None:
        """Bring work and messages to `sink`."""
        self.sink = sink

    def started(self, attempt: AttemptRef) -> None:
        """The handler of an attempt runs."""
        self._engine.started(attempt)

    def progressed(self, attempt: AttemptRef, fraction: float, stage: str) -> None:
        """The handler of an attempt reported."""
        self._engine.progressed(attempt, fraction, stage)

    def saved(self, attempt: AttemptRef, savepoint: Payload, durable: Pending[None]) -> None:
        """The handler of an attempt saved."""
        self._engine.saved(attempt, savepoint, durable)

    def ended(self, attempt: AttemptRef, outcome: Outcome) -> None:
        """The handler of an attempt returned."""
        self._engine.ended(self, attempt, outcome)

    def lock(self, wish: LockWish) -> None:
        """Ask for locks."""
        with self._engine.lock:
            request = Request(self.agent.name, wish.claims, wish.attempt, wish.granted.resolve)
            self._requests[wish.handle] = request
            if wish.wait_ms == 0:
                if not self._engine.locks.try_once(request):
                    self._refuse(wish, request)
                return
            self._engine.locks.ask(request)
        if wish.wait_ms is not None:
            self._engine.later(wish.wait_ms / 1000, lambda: self._refuse(wish, request))

    def unlock(self, handle: int) -> None:
        """Give locks back, or withdraw a wish."""
        with self._engine.lock:
            request = self._requests.pop(handle, None)
            if request is not None:
                self._engine.locks.end(request)
        self._engine.place()

    def send(self, envelope: Envelope, accepted: Pending[Receipt]) -> None:
        """Store an envelope."""
        try:
            with self._engine.lock:
                receipt = self._engine.post.send(self.agent.name, envelope)
        except MusterError as error:
            accepted.fail(error)
        else:
            accepted.resolve(receipt)

    def subscribe(self, pattern: str, done: Pending[None], *, wanted: bool) -> None:
        """Add or end a subscription."""
        try:
            with self._engine.lock:
                self._engine.post.subscribe(self.agent.name, pattern, wanted=wanted)
        except MusterError as error:
            done.fail(error)
        else:
            done.resolve(None)

    def subscriptions(self, found: Pending[list[str]]) -> None:
        """Tell the patterns that this agent is subscribed to."""
        with self._engine.lock:
            found.resolve(self._engine.post.subscriptions(self.agent.name))

    def want_messages(self) -> None:
        """Deliver what waits, and what comes."""
        with self._engine.lock:
            self._engine.post.open(self.agent.name, self.sink)

    def taken(self, key: Key, *, kept: bool) -> None:
        """Nothing to note: nothing here has an ack deadline."""

    def recall_answered(self, key: Key, *, dropped: bool) -> None:
        """Whether a recalled delivery was still in line."""
        with self._engine.lock:
            self._engine.post.recall_answered(self.agent.name, key, dropped=dropped)

    def settle(self, delivered: Delivered, verdict: Verdict, *, delay: float | None, reason: str) -> None:
        """The code decided about a delivery."""
        with self._engine.lock:
            self._engine.post.settle(self.agent.name, delivered.envelope.key, verdict, delay, reason)

    def extend(self, key: Key, seconds: float) -> None:
        """Nothing to note: nothing here has an ack deadline."""

    def _refuse(self, wish: LockWish, request: Request) -> None:
        with self._engine.lock:
            if request.held:
                return
            holder = self._engine.locks.blocker(request)
            self._engine.locks.end(request)
        resources = ", ".join(claim.resource for claim in wish.claims)
        error = ResourceHeldError(
            f"{resources} is held by agent/{holder}", metadata={"resource": resources, "holder": holder}
        )
        wish.granted.fail(error)
