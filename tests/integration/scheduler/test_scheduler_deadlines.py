"""A deadline that will be missed, from the driver to whoever watches: stream, alert, audit, metric."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest_asyncio
from muster.scheduler.v1 import alert_pb2
from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb

from agent_client.views import DeadlineWarning, change_of
from services.common.core.errors import ServiceError
from services.common.core.ids import CollaborationId, RequestId
from services.common.core.instants import Instant
from services.common.metrics import Metrics
from services.common.testing.clock import FakeClock
from services.common.testing.election import MemoryBallot
from services.common.testing.outbox import MemoryOutbox
from services.scheduler.core.book import Settings
from services.scheduler.core.changes import Change, Progress
from services.scheduler.core.events import AgentsChanged, ReplyId, Submitted
from services.scheduler.core.model import CollaborationSpec, Submission
from services.scheduler.driver import Driver, DriverParts
from services.scheduler.metrics import SchedulerMetrics
from services.scheduler.stores.memory import MemoryPlane, MemoryStore
from services.scheduler.wire.profiles import alert_message
from tests.conftest import Eventually
from tests.unit.scheduler.scheduler_stage import task

NAME = CollaborationId("c-1")
MINUTE = 60_000


class Ear:
    """A watcher that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[collaboration_pb.CollaborationEvent] = []

    def wants(self, change: Change | Progress) -> bool:
        del change
        return True

    def offer(self, event: bytes) -> None:
        self.events.append(collaboration_pb.CollaborationEvent.FromString(event))

    def end(self, error: ServiceError) -> None:
        raise AssertionError(error)

    @property
    def warnings(self) -> list[DeadlineWarning]:
        changes = (change_of(event) for event in self.events)
        return [change for change in changes if isinstance(change, DeadlineWarning)]


class Rig:
    """One driver on a store in memory, by a clock that a test moves."""

    def __init__(self) -> None:
        self.clock, self.outbox, self.ear = FakeClock(), MemoryOutbox(), Ear()
        self.metrics = Metrics("scheduler")
        self._ballot = MemoryBallot()
        self._running: asyncio.Task[None] | None = None

    async def lead(self) -> Driver:
        leadership = await self._ballot.candidate().campaign(b"x")
        plane = MemoryPlane(lambda asked: self._ballot.holds(asked.guard))
        parts = DriverParts(
            MemoryStore(plane), self.outbox, self.clock, SchedulerMetrics(self.metrics), Settings(), "one"
        )
        driver = Driver(leadership, parts)
        self._running = asyncio.create_task(
            driver.run(lambda: AgentsChanged("agents", 0.5, (), snapshot=True))
        )
        await driver.serving.wait()
        driver.hub.watch_one(self.ear, NAME)
        return driver

    async def stop(self, driver: Driver) -> None:
        driver.stop()
        if self._running is not None:
            await self._running


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[tuple[Rig, Driver]]:
    made = Rig()
    driver = await made.lead()
    with contextlib.suppress(ServiceError):
        yield made, driver
    await made.stop(driver)


async def test_everybody_is_told_once_before_the_deadline_is_missed(
    rig: tuple[Rig, Driver], eventually: Eventually
) -> None:
    made, driver = rig
    deadline = Instant(made.clock.now() + 30 * MINUTE)
    spec = CollaborationSpec((task("a", estimated_duration_ms=10 * MINUTE),), deadline=deadline)
    submission = Submission("operator/admin", RequestId("r1"), spec, b"x")
    driver.request(lambda reply: Submitted("r1", submission, NAME, ReplyId(reply)), lambda _: None)
    await eventually(lambda: bool(made.ear.events))
    made.clock.advance(20 * MINUTE + 1)
    standing = await driver.query(lambda book: [*book.observed.alerts.newest_first(include_cleared=False)])
    # The question is answered from the batch whose news goes out now.
    assert [alert_message(alert).kind for alert in standing] == [alert_pb2.ALERT_KIND_LATE]
    [warning] = made.ear.warnings
    assert (warning.task_id, warning.cause_task_id, warning.stands) == ("", "a", True)
    assert warning.predicted_end is not None
    assert warning.deadline is not None
    assert warning.predicted_end > warning.deadline
    [entry] = [each for each in made.outbox.entries if each.operation == "deadline.warn"]
    assert entry.subject == "collaboration/c-1"
    made.clock.advance(MINUTE)
    await driver.query(lambda book: None)
    assert len(made.ear.warnings) == 1
    generations = [event.generation for event in made.ear.events]
    assert generations == [*range(1, len(generations) + 1)]
    counted = made.metrics.registry.get_sample_value(
        "muster_scheduler_deadline_warnings_total", {"outcome": "warned"}
    )
    assert counted == 1.0
