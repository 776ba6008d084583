"""The driver on stores in memory, without sockets: what waits for what, and what waits for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from services.common.clock import SystemClock
from services.common.core.entries import EntryDraft
from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId, Skill
from services.common.lifecycle import TaskSupervisor
from services.common.metrics import Metrics
from services.common.testing.outbox import MemoryOutbox
from services.registry.core import events
from services.registry.core.effects import Ack, Change, Welcome
from services.registry.core.model import AgentState, HelloFields, Limits, LinkId, Load, SkillLevel
from services.registry.core.registry import Registry
from services.registry.driver import Driver
from services.registry.exchange import StoreRewoundError
from services.registry.metrics import RegistryMetrics
from services.registry.store import FleetChanges, FleetSnapshot, Outcome
from services.registry.stores.memory import MemoryStore, Shelf
from tests.integration.registry.conftest import Eventually

HELLO = HelloFields(skills=(SkillLevel(Skill("maps")),))


@dataclass
class RecordedLink:
    """A link that notes what it is told."""

    log: list[str]
    welcomes: list[Welcome] = field(default_factory=list)
    acks: list[Ack] = field(default_factory=list)
    ends: list[ServiceError | None] = field(default_factory=list)

    def welcome(self, welcome: Welcome) -> None:
        self.log.append("welcome")
        self.welcomes.append(welcome)

    def ack(self, ack: Ack) -> None:
        self.acks.append(ack)

    def end(self, error: ServiceError | None) -> None:
        self.log.append("end")
        self.ends.append(error)


class GatedStore(MemoryStore):
    """A store whose commits can be held up or made to fail."""

    def __init__(self, shelf: Shelf, log: list[str]) -> None:
        super().__init__(shelf)
        self.log = log
        self.open = asyncio.Event()
        self.open.set()
        self.failing = False
        self.groups: list[int] = []

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        await self.open.wait()
        self.groups.append(len(changes))
        if self.failing:
            return [ServiceError(Reason.STORE_UNAVAILABLE, "away")] * len(changes)
        self.log.append("commit")
        return await super().commit(changes)


class GatedOutbox(MemoryOutbox):
    """An outbox whose disk can be held up."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.open = asyncio.Event()
        self.open.set()

    async def record(self, entries: Sequence[EntryDraft], *, privileged: bool = False) -> None:
        await self.open.wait()
        self.log.append("record")
        await super().record(entries, privileged=privileged)


class Rig:
    """One driver and its surroundings."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.log: list[str] = []
        self.shelf = Shelf()
        self.store = GatedStore(self.shelf, self.log)
        self.outbox = GatedOutbox(self.log)
        self.metrics = Metrics("registry")
        self.supervisor = TaskSupervisor()
        self.driver = Driver(
            Registry("registry-0", limits or Limits()),
            self.store,
            self.outbox,
            SystemClock(),
            RegistryMetrics(self.metrics),
            watchers_max=2,
        )

    async def open(self, agent: str = "a-agent") -> tuple[LinkId, RecordedLink]:
        link = RecordedLink(self.log)
        number = self.driver.connect(link)
        await self.driver.submit(events.OpenRequested("hello", number, AgentId(agent), HELLO))
        return number, link


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    made.driver.start(made.supervisor)
    await made.driver.wait_ready()
    yield made
    await made.supervisor.stop()
    assert made.supervisor.error is None


async def test_a_welcome_follows_the_commit_and_the_record(rig: Rig, eventually: Eventually) -> None:
    rig.outbox.open.clear()
    with rig.driver.watch() as watch:
        assert await watch.take(10) == ([], True)
        _, link = await rig.open()
        # Published as soon as it is durable, said when it is recorded too.
        assert await watch.take(10) == (["a-agent"], False)
    assert rig.driver.agent(AgentId("a-agent")) is not None
    assert link.welcomes == []
    rig.outbox.open.set()
    await eventually(lambda: link.welcomes)
    assert rig.log == ["commit", "record", "welcome"]


async def test_heartbeats_wait_for_neither_store_nor_outbox(rig: Rig, eventually: Eventually) -> None:
    number, link = await rig.open()
    await eventually(lambda: link.welcomes)
    rig.store.open.clear()
    rig.outbox.open.clear()
    _, waiting = await rig.open("b-agent")
    await rig.driver.submit(events.DrainRequested("drain", number))
    for beat in range(1, 6):
        await rig.driver.submit(events.HeartbeatReceived("beat", number, beat, Load()))
    await eventually(lambda: len(link.acks) == 5)
    assert waiting.welcomes == []
    rig.store.open.set()
    rig.outbox.open.set()
    await eventually(lambda: waiting.welcomes)
    assert rig.metrics.value("heartbeats_total") == 5


async def test_changes_that_wait_share_one_commit(rig: Rig, eventually: Eventually) -> None:
    rig.store.open.clear()
    links = [(await rig.open(f"agent-{number}"))[1] for number in range(50)]
    rig.store.open.set()
    await eventually(lambda: all(link.welcomes for link in links))
    assert len(rig.store.groups) <= 2
    assert rig.metrics.value("changes_total", outcome="applied") == 50


async def test_a_store_that_refuses_every_write_is_not_hammered(rig: Rig, eventually: Eventually) -> None:
    number, link = await rig.open()
    await eventually(lambda: link.welcomes)
    rig.store.failing = True
    rig.store.groups.clear()
    await rig.driver.submit(events.DrainRequested("drain", number))
    await eventually(lambda: len(rig.store.groups) >= 4)
    # Reads work and are fast, so without a pause there would be thousands.
    assert rig.metrics.value("changes_total", outcome="failed") < 10
    _, refused = await rig.open()
    await eventually(lambda: refused.ends)
    error = refused.ends[0]
    assert error is not None
    assert error.reason is Reason.STORE_UNAVAILABLE
    rig.store.failing = False

    def drains() -> bool:
        record = rig.driver.agent(AgentId("a-agent"))
        return record is not None and record.instances[0].state is AgentState.DRAINING

    await eventually(drains)


async def test_a_farewell_is_committed_and_recorded_before_the_stream_ends(
    rig: Rig, eventually: Eventually
) -> None:
    number, link = await rig.open()
    await eventually(lambda: link.welcomes)
    rig.log.clear()
    await rig.driver.submit(events.FarewellReceived("bye", number))
    await eventually(lambda: link.ends)
    await rig.driver.wait_settled()
    assert rig.log == ["commit", "record", "end"]
    assert link.ends == [None]


async def test_a_full_inbox_is_waited_for(
    rig: Rig, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.registry.driver.INBOX_EVENTS_MAX", 3)
    number, link = await rig.open()
    await eventually(lambda: link.welcomes)
    for beat in range(1, 12):
        await rig.driver.submit(events.HeartbeatReceived("beat", number, beat, Load()))
    await eventually(lambda: len(link.acks) == 11)


async def test_silence_is_noticed_by_one_timer() -> None:
    rig = Rig(Limits(lease_ttl_ms=400, suspect_after_ms=200, pause_ms_max=5_000))
    rig.driver.start(rig.supervisor)
    await rig.driver.wait_ready()
    timers: list[Any] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def counted(*arguments: Any, **named: Any) -> asyncio.TimerHandle:
        timers.append(arguments)
        return call_later(*arguments, **named)

    loop.call_later = counted  # type: ignore[method-assign,assignment]
    try:
        links = [(await rig.open(f"agent-{number}"))[1] for number in range(200)]
        async with asyncio.timeout(10):
            while not all(link.ends for link in links):
                await rig.shelf.wait_moved()
                await rig.driver.wait_settled()
    finally:
        loop.call_later = call_later  # type: ignore[method-assign]
        await rig.supervisor.stop()
    assert {error.reason for link in links for error in link.ends if error} == {Reason.PEER_SILENT}
    # Four hundred deadlines: the timers follow their distinct instants, not the sessions.
    assert len(timers) < 100


async def test_watchers_are_bounded(rig: Rig) -> None:
    with rig.driver.watch(), rig.driver.watch():
        with pytest.raises(ServiceError) as caught:
            rig.driver.watch().__enter__()
        assert caught.value.metadata == {"limit": "watchers_max"}
    with rig.driver.watch():
        assert rig.metrics.value("watchers") == 1
    assert rig.metrics.value("limits_reached_total", limit="watchers_max") == 1


async def test_a_store_that_went_back_in_time_stops_the_service(eventually: Eventually) -> None:
    rig = Rig()

    async def follow() -> AsyncGenerator[FleetSnapshot | FleetChanges, None]:
        yield FleetSnapshot(90, ())
        yield FleetSnapshot(7, ())

    rig.store.follow = follow  # type: ignore[method-assign]
    rig.driver.start(rig.supervisor)
    await eventually(rig.supervisor.failed.is_set)
    assert isinstance(rig.supervisor.error, StoreRewoundError)
    await rig.supervisor.stop()
