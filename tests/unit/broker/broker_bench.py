"""A core, its disk and a clock, for tests that go step by step."""

from __future__ import annotations

from typing import TypeVar

from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.machine import Machine
from services.broker.core.model import Draft, Lane, Limits, RoutedDraft, SendOutcome
from services.broker.stores.memory import MemoryStore
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant
from tests.unit.broker.broker_invariants import validate

E = TypeVar("E", bound=fx.Effect)

NOW = Instant(1_700_000_000_000)
AGENTS = ev.AgentsSeen(frozenset({"alpha", "beta", "gamma"}), complete=True)
DISK_FULL = ServiceError(Reason.DISK_FULL, "no room left")


class Bench:
    """A core, its disk and a clock that a test moves; every step is followed by a look at the invariants."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.store = MemoryStore()
        self.limits = limits or Limits(redelivery_base_ms=100, lane_share_low_percent=10)
        self.now = NOW
        self.stream_ids = 0
        self.machine = Machine(self.store.load_now(self.now), self.limits, self.now)
        self.step(AGENTS)
        self.commit()

    def step(self, event: ev.Event) -> list[fx.Effect]:
        effects = self.machine.step(event, self.now)
        validate(self.machine._desk)
        return effects

    def commit(self) -> list[fx.Effect]:
        """Let the disk answer until nothing waits for it; return what that led to."""
        effects: list[fx.Effect] = []
        while cut := of(self.step(ev.StoreReady()), fx.Commit):
            self.store.commit_now(cut[0].batch)
            effects += self.step(ev.Persisted(cut[0].batch.number))
        return effects

    def fail(self) -> list[fx.Effect]:
        """Let the disk refuse."""
        (cut,) = of(self.step(ev.StoreReady()), fx.Commit)
        return self.step(ev.PersistFailed(cut.batch.number, DISK_FULL))

    def pass_time(self, ms: int) -> list[fx.Effect]:
        self.now = Instant(self.now + ms)
        return self.step(ev.Ticked())

    def restart(self) -> None:
        self.machine = Machine(self.store.load_now(self.now), self.limits, self.now)

    def open(self, address: str, **fields: object) -> int:
        self.stream_ids += 1
        values: dict[str, object] = {"instance": "0", "incarnation": 1, "send_only": False} | fields
        self.step(ev.StreamOpened(self.stream_ids, f"agent/{address}", address, **values))  # type: ignore[arg-type]
        return self.stream_ids

    def receiver(self, address: str = "beta", credits_: int = 100, **fields: object) -> int:
        stream = self.open(address, **fields)
        self.step(ev.FrameReceived(stream, credits=credits_, emergency_credits=credits_))
        return stream

    def send(self, stream: int, *drafts: Draft | RoutedDraft) -> list[fx.Effect]:
        self.step(ev.FrameReceived(stream, drafts=drafts))
        return self.commit()


def of(effects: list[fx.Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def numbers(effects: list[fx.Effect]) -> list[int]:
    return [one.envelope.sequence for effect in of(effects, fx.Deliver) for one in effect.deliveries]


def tokens(effects: list[fx.Effect]) -> list[int]:
    return [one.token for effect in of(effects, fx.Deliver) for one in effect.deliveries]


def outcomes(effects: list[fx.Effect]) -> list[SendOutcome]:
    return [outcome for effect in of(effects, fx.Answer) for outcome in effect.outcomes]


def draft(message_id: str, receiver: str = "beta", lane: Lane = Lane.NORMAL, **fields: int) -> Draft:
    made = Draft(message_id, receiver, lane, True, 60_000, 3, b"12345678", b"body")
    return made._replace(**fields)  # type: ignore[arg-type]  # ttl_ms and retry_max are numbers
