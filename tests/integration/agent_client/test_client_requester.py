"""The requester's side against stand-in services: new leaders, broken streams, answers that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from muster.scheduler.v1 import collaboration_pb2, task_pb2
from muster.scheduler.v1 import scheduler_service_pb2 as scheduler

from agent_client import (
    AccessError,
    CallTimeoutError,
    Client,
    CollaborationFailedError,
    CollaborationInfo,
    Event,
    Gap,
    InvalidRequestError,
    LimitError,
    Progress,
    TaskInfo,
    UnavailableError,
)
from services.common.core.errors import FieldViolation, Reason, ServiceError
from tests.conftest import Eventually
from tests.integration.agent_client.fake_plane import FakePlane

SPEC = {"tasks": [{"task_id": "a", "required_skills": ["s"]}]}
ACTIVE = collaboration_pb2.COLLABORATION_STATE_ACTIVE
COMPLETED = collaboration_pb2.COLLABORATION_STATE_COMPLETED


@pytest_asyncio.fixture
async def client(plane: FakePlane) -> AsyncIterator[Client]:
    async with Client(home=plane.home, patience=5) as made:
        yield made


async def test_what_can_not_be_asked_of_dead_letters_is_refused_by_field(client: Client) -> None:
    anything: Any = client
    for field, asked in (
        ("limit", client.dead_letters("field-1", limit=-1)),
        ("limit", anything.dead_letters("field-1", limit="all")),
        ("dead_letter_ids", client.replay_dead_letters("field-1", [1, -1])),
        ("dead_letter_ids", anything.drop_dead_letters("field-1", ["x"])),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            await asked
        assert refused.value.violations[0].field == field


def collaboration(
    generation: int, state: collaboration_pb2.CollaborationState.ValueType = ACTIVE, **fields: Any
) -> collaboration_pb2.CollaborationEvent:
    return collaboration_pb2.CollaborationEvent(
        collaboration_id="c1",
        generation=generation,
        collaboration=collaboration_pb2.Collaboration(collaboration_id="c1", state=state, **fields),
    )


def task(generation: int, task_id: str = "a") -> collaboration_pb2.CollaborationEvent:
    spec = task_pb2.TaskSpec(task_id=task_id)
    return collaboration_pb2.CollaborationEvent(
        collaboration_id="c1", generation=generation, task=task_pb2.Task(collaboration_id="c1", spec=spec)
    )


def frame(*events: collaboration_pb2.CollaborationEvent) -> scheduler.WatchCollaborationsResponse:
    return scheduler.WatchCollaborationsResponse(events=events)


async def test_a_submission_follows_the_leader(plane: FakePlane, client: Client) -> None:
    submitted = await client.submit(SPEC, request_id="r-1")
    assert (submitted.id, submitted.warnings, submitted.already_accepted) == ("c1", ("mind the gap",), False)
    plane.leader = "scheduler2"
    # The old leader names the new one; the client goes there without asking the registry.
    await plane.down("registry")
    again = await client.submit(SPEC, request_id="r-1")
    assert again.already_accepted
    assert [request.request_id for request in plane.submissions] == ["r-1", "r-1"]


async def test_what_may_have_happened_is_asked_again_under_the_same_id(
    plane: FakePlane, client: Client
) -> None:
    plane.refusals = [
        ServiceError(Reason.STORE_UNAVAILABLE, "etcd did not answer"),
        ServiceError(Reason.QUOTA_EXCEEDED, "slow down", retry_after_ms=20),
    ]
    await client.submit(SPEC)
    ids = {request.request_id for request in plane.submissions}
    assert len(plane.submissions) == 3
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("error", "family"),
    [
        (
            ServiceError(Reason.INVALID_FIELD, "bad", (FieldViolation("collaboration.name", "too long"),)),
            InvalidRequestError,
        ),
        (ServiceError(Reason.ACCESS_DENIED, "no"), AccessError),
    ],
)
async def test_a_refusal_is_final_and_typed(
    plane: FakePlane, client: Client, error: ServiceError, family: type[Exception]
) -> None:
    plane.refusals = [error]
    with pytest.raises(family):
        await client.submit(SPEC)
    assert len(plane.submissions) == 1


async def test_patience_ends(plane: FakePlane) -> None:
    async with Client(home=plane.home, patience=0.2) as client:
        plane.refusals = [ServiceError(Reason.QUOTA_EXCEEDED, "later", retry_after_ms=60_000)]
        with pytest.raises(LimitError, match="later"):
            await client.submit(SPEC)
        plane.leader = ""
        with pytest.raises(UnavailableError, match="no scheduler leads"):
            await client.submit(SPEC)


async def test_an_absent_plane_is_said_with_the_next_step(plane: FakePlane) -> None:
    await plane.down("registry")
    async with Client(home=plane.home, patience=0.1) as client:
        with pytest.raises(UnavailableError, match="is the plane up\\? `muster up` starts one"):
            await client.submit(SPEC)


async def test_a_watch_shows_every_kind_of_change_and_ends(
    plane: FakePlane, client: Client, eventually: Eventually
) -> None:
    """T6, the watcher's side."""
    seen: list[Event] = []

    async def watch() -> None:
        async for event in client.watch("c1"):
            seen.append(event)  # noqa: PERF401  # seen as they come

    watching = asyncio.create_task(watch())
    await eventually(lambda: plane.watches)
    assert plane.watches[0].hello.from_generation == 0
    progress = collaboration_pb2.CollaborationEvent(
        collaboration_id="c1",
        progress=collaboration_pb2.TaskProgress(task_id="a", attempt_number=1, progress=0.5, stage="s"),
    )
    plane.watches[0].say(frame(collaboration(3), task(3), progress))
    plane.watches[0].say(frame(collaboration(4, COMPLETED)))
    await watching
    assert [type(event.change) for event in seen] == [
        CollaborationInfo,
        TaskInfo,
        Progress,
        CollaborationInfo,
    ]
    assert [event.generation for event in seen] == [3, 3, 0, 4]
    # The client left, and the call with it.
    await eventually(lambda: plane.watches[0].ended)


async def test_a_snapshot_of_what_has_ended_shows_its_tasks_too(
    plane: FakePlane, client: Client, eventually: Eventually
) -> None:
    async def watch() -> list[type]:
        return [type(event.change) async for event in client.watch("c1")]

    watching = asyncio.create_task(watch())
    await eventually(lambda: plane.watches)
    plane.watches[0].say(frame(collaboration(9, COMPLETED, task_count=2), task(9, "a")))
    # Broken inside the snapshot, so that it has to be begun again.
    plane.watches[0].say(ServiceError(Reason.SHUTTING_DOWN, "bye"))
    await eventually(lambda: len(plane.watches) == 2)
    assert plane.watches[1].hello.from_generation == 0
    plane.watches[1].say(frame(collaboration(9, COMPLETED, task_count=2), task(9, "a"), task(9, "b")))
    assert await watching == [CollaborationInfo, TaskInfo, CollaborationInfo, TaskInfo, TaskInfo]


async def test_a_broken_watch_goes_on_where_it_was(
    plane: FakePlane, client: Client, eventually: Eventually
) -> None:
    """T6, the watcher's side."""
    generations: list[int] = []

    async def watch() -> None:
        async for event in client.watch("c1", from_generation=2):
            generations.append(event.generation)  # noqa: PERF401  # seen as they come

    watching = asyncio.create_task(watch())
    await eventually(lambda: plane.watches)
    plane.watches[0].say(frame(task(3), task(4)))
    await eventually(lambda: generations == [3, 4])
    plane.watches[0].say(ServiceError(Reason.SHUTTING_DOWN, "bye"))
    await eventually(lambda: len(plane.watches) == 2)
    assert plane.watches[1].hello.from_generation == 4
    # History is gone on this leader: a gap, then a snapshot.
    gap = collaboration_pb2.CollaborationEvent(
        collaboration_id="c1",
        gap=collaboration_pb2.WatchGap(from_generation=5, to_generation=9),
    )
    plane.watches[1].say(frame(gap, collaboration(9), task(9)))
    await eventually(lambda: len(generations) == 5)
    plane.watches[1].say(ServiceError(Reason.NOT_COORDINATOR, "another leads"))
    await eventually(lambda: len(plane.watches) == 3)
    assert plane.watches[2].hello.from_generation == 0
    plane.watches[2].say(frame(collaboration(10, COMPLETED)))
    await watching


async def test_results_and_failures(plane: FakePlane, client: Client, eventually: Eventually) -> None:
    handle = client.collaboration("c1")
    waiting = asyncio.create_task(handle.result())
    await eventually(lambda: plane.watches)
    # The last change has the whole story, and its tasks are not asked for.
    assert plane.watches[0].hello.collaborations_only
    failed = collaboration_pb2.COLLABORATION_STATE_FAILED
    why = task_pb2.TaskFailure(reason="NO_ROAD", message="no road leads there")
    plane.watches[0].say(frame(collaboration(3), collaboration(4, failed, failure=why)))
    with pytest.raises(CollaborationFailedError, match="NO_ROAD"):
        await waiting
    with pytest.raises(CallTimeoutError, match="it goes on"):
        await handle.result(timeout=0.05)


async def test_a_result_that_is_there_comes_with_the_snapshot(
    plane: FakePlane, client: Client, eventually: Eventually
) -> None:
    waiting = asyncio.create_task(client.collaboration("c1").result())
    await eventually(lambda: plane.watches)
    plane.watches[0].say(frame(collaboration(7, COMPLETED, task_count=3)))
    assert (await waiting).collaboration_id == "c1"


async def test_gap_is_told(plane: FakePlane, client: Client, eventually: Eventually) -> None:
    events = client.watch("c1", from_generation=1)
    first = asyncio.ensure_future(anext(events))
    await eventually(lambda: plane.watches)
    plane.watches[0].say(
        frame(
            collaboration_pb2.CollaborationEvent(
                collaboration_id="c1", gap=collaboration_pb2.WatchGap(from_generation=2, to_generation=7)
            )
        )
    )
    assert (await first).change == Gap("c1", 2, 7)
    await events.aclose()


async def test_pages_are_fetched_until_the_limit(plane: FakePlane, client: Client) -> None:
    assert len(await client.collaborations(limit=450)) == 450
    assert [page.page_size for page in plane.pages] == [200, 200, 50]
    assert [page.page_token for page in plane.pages] == ["", "200", "400"]
    with pytest.raises(InvalidRequestError, match="'DONE' is none of INITIALIZING"):
        await client.collaborations(states=["DONE"])
