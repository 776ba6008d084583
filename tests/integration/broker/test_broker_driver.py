"""The driver's loop alone: nothing that happens at an awkward moment waits for something else to come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.model import Draft, Lane, Limits
from services.broker.driver import EVENTS_PER_TURN, Driver, DriverSettings
from services.broker.metrics import BrokerMetrics
from services.broker.recorder import AuditRecorder
from services.broker.store import MailboxStore, Retention
from services.broker.stores.memory import MemoryStore
from services.common.clock import SystemClock
from services.common.core.errors import ServiceError
from services.common.metrics import Metrics
from services.common.testing.faults import Faults
from services.common.testing.outbox import MemoryOutbox
from tests.conftest import Eventually

DRAFT = Draft("m-1", "beta", Lane.NORMAL, True, 300_000, 3, b"12345678", b"body")


class Listener:
    """A stream's outlet that remembers."""

    def __init__(self) -> None:
        self.effects: list[fx.StreamEffect] = []

    def carry(self, effect: fx.StreamEffect) -> None:
        self.effects.append(effect)

    def end(self, error: ServiceError | None) -> None:
        del error

    @property
    def answered(self) -> list[str]:
        return [
            outcome.message_id
            for effect in self.effects
            if isinstance(effect, fx.Answer)
            for outcome in effect.outcomes
        ]


def a_driver(store: MailboxStore) -> Driver:
    clock, metrics = SystemClock(), BrokerMetrics(Metrics("broker"))
    recorder = AuditRecorder(MemoryOutbox(), clock, metrics, messages="none", backlog_max=1_000, group_max=8)
    # No compaction meanwhile: it would wake the loop.
    settings = DriverSettings(Limits(), Retention(), 1024 * 1024, compaction_interval_ms=3_600_000)
    return Driver(store, clock, metrics, recorder, settings)


@pytest_asyncio.fixture
async def driver() -> AsyncIterator[Driver]:
    """A driver that runs on a store which answers at once."""
    made = a_driver(MemoryStore())
    await made.open()
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await made.close()


@pytest.mark.parametrize("turns", range(1, 7))
async def test_a_commit_that_ends_between_two_turns_does_not_hold_up_the_next(
    driver: Driver, eventually: Eventually, turns: int
) -> None:
    listener = Listener()
    stream_id = driver.attach(listener)
    driver.see_agents(ev.AgentsSeen(frozenset({"beta"}), complete=False))
    driver.submit(ev.StreamOpened(stream_id, "agent/alpha", "alpha", "0", 1, send_only=True))
    await eventually(lambda: driver.idle and listener.effects)
    # The first envelope's commit ends while the loop has more events than one turn takes; the last envelope
    # needs a commit of its own, and nothing comes after it that would wake the loop again.
    driver.submit(ev.FrameReceived(stream_id, drafts=[DRAFT]))
    for _ in range(turns * EVENTS_PER_TURN):
        driver.submit(ev.Flushed(0, 0))
    driver.submit(ev.FrameReceived(stream_id, drafts=[DRAFT._replace(message_id="m-2")]))
    await eventually(lambda: listener.answered == ["m-1", "m-2"], timeout=5)


async def test_a_frame_that_finds_nothing_under_way_is_committed_at_once(
    driver: Driver, eventually: Eventually
) -> None:
    listener = Listener()
    stream_id = driver.attach(listener)
    driver.see_agents(ev.AgentsSeen(frozenset({"beta"}), complete=False))
    driver.submit(ev.StreamOpened(stream_id, "agent/alpha", "alpha", "0", 1, send_only=True))
    await eventually(lambda: driver.idle and listener.effects)
    driver.hurry(ev.FrameReceived(stream_id, drafts=[DRAFT]), len(DRAFT.body))
    # The commit has begun before anybody else had a turn; what comes now gathers for the next one.
    assert not driver.machine.has_work
    driver.hurry(ev.FrameReceived(stream_id, drafts=[DRAFT._replace(message_id="m-2")]), len(DRAFT.body))
    assert not listener.answered
    await eventually(lambda: listener.answered == ["m-1", "m-2"], timeout=5)


async def test_receivers_hear_before_senders(driver: Driver, eventually: Eventually) -> None:
    listener = Listener()
    sending, receiving = driver.attach(listener), driver.attach(listener)
    driver.submit(ev.StreamOpened(receiving, "agent/beta", "beta", "0", 1, send_only=False))
    driver.submit(ev.StreamOpened(sending, "agent/alpha", "alpha", "0", 1, send_only=True))
    driver.submit(ev.FrameReceived(receiving, credits=1))
    await eventually(lambda: driver.idle and listener.effects)
    driver.hurry(ev.FrameReceived(sending, drafts=[DRAFT]), len(DRAFT.body))
    await eventually(lambda: listener.answered == ["m-1"], timeout=5)
    kinds = [type(effect) for effect in listener.effects if isinstance(effect, fx.Deliver | fx.Answer)]
    assert kinds == [fx.Deliver, fx.Answer]


async def test_a_defect_of_the_store_ends_the_driver(eventually: Eventually) -> None:
    broken = Faults()
    made = a_driver(broken.around(MemoryStore()))
    await made.open()
    running = asyncio.create_task(made.run())
    broken.fail_before("commit", error=lambda: ZeroDivisionError("a defect"))
    made.see_agents(ev.AgentsSeen(frozenset({"beta"}), complete=False))
    await eventually(running.done)
    with pytest.raises(ZeroDivisionError):
        running.result()
    await made.close()
