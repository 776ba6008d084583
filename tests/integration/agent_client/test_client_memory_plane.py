"""The in-memory plane that users test their agents with."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agent_client import (
    Agent,
    CallTimeoutError,
    CollaborationFailedError,
    Delivery,
    InvalidRequestError,
    LockLostError,
    NotFoundError,
    PermanentFailure,
    PreconditionError,
    ResourceHeldError,
    Task,
    TransientFailure,
)
from agent_client.testing import InMemoryPlane
from tests.conftest import Eventually


def task(task_id: str, skill: str = "add", *needs: str, **fields: Any) -> dict[str, Any]:
    return {"task_id": task_id, "required_skills": [skill], "dependencies": list(needs), **fields}


async def test_a_dag_runs_with_inputs_context_and_contributions() -> None:
    adder, printer = Agent("adder"), Agent("printer", ["print"])

    @adder.handler("add")
    async def add(task: Task) -> Any:
        return task.payload + sum(task.inputs.values()) + task.shared_context

    @printer.handler("print")
    def show(task: Task) -> str:
        return f"{task.collaboration_name}: {task.inputs['c']}"

    async with InMemoryPlane() as plane:
        plane.add(adder, printer)
        result = await plane.submit(
            {
                "name": "sum",
                "shared_context": 100,
                "tasks": {
                    "a": {"required_skills": "add", "payload": 1},
                    "b": {"required_skills": "add", "payload": 2},
                    "c": {"required_skills": "add", "payload": 0, "dependencies": ["a", "b"]},
                    "d": {"required_skills": "print", "dependencies": ["c"]},
                },
            }
        )
    assert result.outputs == {"d": "sum: 303"}
    assert result["d"] == "sum: 303"
    assert [(row.task_id, row.agent_id) for row in result.contributions][2:] == [
        ("c", "adder"),
        ("d", "printer"),
    ]


async def test_transient_failures_are_retried_and_permanent_ones_are_not() -> None:
    agent, tries = Agent("a"), list[int]()

    @agent.handler("flaky")
    async def flaky(task: Task) -> str:
        tries.append(task.token.number)
        if task.token.number < 3:
            raise TransientFailure("not yet")
        return "at last"

    @agent.handler("hopeless")
    async def hopeless(_: Task) -> None:
        raise PermanentFailure("no road leads there", reason="NO_ROAD")

    async with InMemoryPlane() as plane:
        plane.add(agent)
        assert (await plane.submit({"tasks": [task("t", "flaky")]}))["t"] == "at last"
        assert tries == [1, 2, 3]
        with pytest.raises(CollaborationFailedError, match=r"NO_ROAD.*no road leads there"):
            await plane.submit({"tasks": [task("t", "hopeless"), task("u", "flaky", "t")]})
        with pytest.raises(CollaborationFailedError, match="not yet"):
            await plane.submit({"tasks": [task("t", "flaky", retry_policy={"attempt_max": 2})]})


async def test_bad_collaborations_are_refused_by_field() -> None:
    async with InMemoryPlane() as plane:
        with pytest.raises(InvalidRequestError, match="a -> c -> b -> a") as cycle:
            plane.start({"tasks": [task("a", "add", "c"), task("b", "add", "a"), task("c", "add", "b")]})
        assert cycle.value.reason == "CYCLIC_DEPENDENCY"
        with pytest.raises(InvalidRequestError) as bad:
            plane.start({"tasks": [task("a"), task("a", "add", "z"), {"task_id": "b"}]})
        assert {violation.field for violation in bad.value.violations} == {
            "collaboration.tasks[1].task_id",
            "collaboration.tasks[1].dependencies",
            "collaboration.tasks[2].required_skills",
        }
        with pytest.raises(PreconditionError, match="no agent has the skill add"):
            plane.start({"tasks": [task("a")], "unknown_skill_policy": "FAIL"})


async def test_what_hangs_says_why_and_goes_on_when_an_agent_comes() -> None:
    agent = Agent("late")
    agent.handler("add")(lambda task: "done")
    async with InMemoryPlane() as plane:
        running = plane.start({"tasks": [task("a")]})
        with pytest.raises(CallTimeoutError, match="a is READY, waits for an agent with the skills add"):
            await running.result(timeout=0.01)
        plane.add(agent)
        assert (await running.result())["a"] == "done"


async def test_locks_exclude_and_can_be_tried(eventually: Eventually) -> None:
    agent, inside, most = Agent("a", slots=4), 0, 0
    tokens: list[int] = []

    @agent.handler("use")
    async def use(task: Task) -> None:
        nonlocal inside, most
        async with task.lock("bridge-3") as held:
            inside += 1
            most = max(most, inside)
            tokens.append(held.token.number)
            await asyncio.sleep(0)
            with pytest.raises(ResourceHeldError, match="held by agent/a"):
                async with agent.lock("bridge-3", wait=0):
                    pytest.fail("entered a held lock")
            with pytest.raises(ResourceHeldError):
                async with agent.lock("bridge-3", shared=True, wait=0.01):
                    pytest.fail("entered a held lock")
            inside -= 1

    @agent.handler("declared")
    def declared(task: Task) -> int:
        return task.locks["bridge-3"].number

    async with InMemoryPlane() as plane:
        plane.add(agent)
        await plane.submit({"tasks": [task(f"t{number}", "use") for number in range(4)]})
        assert most == 1
        assert tokens == sorted(tokens)
        declared_task = task("d", "declared", resources=["bridge-3"])
        assert (await plane.submit({"tasks": [declared_task]}))["d"] > tokens[-1]
        assert plane.lock_holders == {}


async def test_shared_locks_are_held_together_and_several_all_or_none() -> None:
    agent = Agent("a", slots=3)
    meet = asyncio.Barrier(2)

    @agent.handler("read")
    async def read(task: Task) -> None:
        async with task.lock("map", shared=True):
            await meet.wait()

    async with InMemoryPlane() as plane:
        plane.add(agent)
        await plane.submit({"tasks": [task("r1", "read"), task("r2", "read")]})
        async with agent.lock("x"):
            both = asyncio.ensure_future(agent.lock("x", "y").__aenter__())
            await asyncio.sleep(0)
            # It waits for x and so takes nothing of y away from itself; later wishes queue behind it.
            assert plane.lock_holders == {"x": ["a"]}
        await both
        assert plane.lock_holders == {"x": ["a"], "y": ["a"]}


async def test_messages_reach_handlers_readers_and_requesters(eventually: Eventually) -> None:
    chief, scout = Agent("chief"), Agent("scout", ["look"])
    heard: list[Any] = []

    @chief.on_message("status_update")
    async def note(delivery: Delivery) -> None:
        heard.append((delivery.sender, delivery.payload, delivery.sequence_number))

    @chief.on_message("collaboration_request")
    def answer(delivery: Delivery) -> str:
        return f"yes, {delivery.payload}"

    @scout.handler("look")
    async def look(task: Task) -> Any:
        await task.send("chief", "one")
        await task.send("chief", "two")
        with pytest.raises(NotFoundError):
            await task.send("nobody", "lost")
        return await task.request("chief", "please")

    async with InMemoryPlane() as plane:
        plane.add(chief, scout)
        assert (await plane.submit({"tasks": [task("t", "look")]}))["t"] == "yes, please"
        await eventually(lambda: len(heard) == 2)
        assert heard == [("scout", "one", 1), ("scout", "two", 2)]
        assert [envelope.receiver for envelope in plane.messages] == ["chief", "chief", "chief", "scout#0"]
        await chief.send("scout", "kept until somebody reads")
        messages = scout.messages()
        delivery = await anext(messages)
        assert delivery.payload == "kept until somebody reads"
        delivery.reject("no")
        assert [letter.reason for letter in plane.dead_letters] == ["no"]


async def test_nacked_messages_come_again_in_order(eventually: Eventually) -> None:
    receiver, sender = Agent("receiver", ["r"]), Agent("sender", ["s"])
    handled: list[Any] = []

    @receiver.on_message()
    async def note(delivery: Delivery) -> None:
        handled.append((delivery.payload, delivery.delivery_number))
        if delivery.payload == 1 and delivery.delivery_number < 3:
            raise ValueError("again, please")

    async with InMemoryPlane() as plane:
        plane.add(receiver, sender)
        for number in range(1, 4):
            await sender.send("receiver", number)
        await eventually(lambda: len(handled) == 5)
    assert [payload for payload, _ in handled] == [1, 1, 1, 2, 3]


async def test_a_message_that_always_fails_becomes_a_dead_letter(eventually: Eventually) -> None:
    receiver, sender = Agent("receiver", ["r"]), Agent("sender", ["s"])

    @receiver.on_message()
    async def note(delivery: Delivery) -> None:
        raise ValueError("never")

    async with InMemoryPlane() as plane:
        plane.add(receiver, sender)
        await sender.send("receiver", 1)
        await eventually(lambda: plane.dead_letters)
        assert plane.dead_letters[0].reason == "deliveries exhausted"


async def test_cancel_timeout_and_fence(eventually: Eventually) -> None:
    agent, ended = Agent("a", slots=4), list[str]()
    numbers: list[int] = []

    @agent.handler("wait")
    async def wait(task: Task) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(task.id)

    @agent.handler("thread")
    def wait_in_thread(task: Task) -> int:
        numbers.append(task.token.number)
        if task.token.number == 1:
            task.wait_cancelled(30)
        return task.token.number

    async with InMemoryPlane() as plane:
        plane.add(agent)
        running = plane.start({"tasks": [task("t", "wait")]})
        await eventually(lambda: running.task("t").state == "RUNNING")
        running.cancel("changed our minds")
        with pytest.raises(CollaborationFailedError, match="changed our minds"):
            await running.result()
        await eventually(lambda: ended == ["t"])
        with pytest.raises(CollaborationFailedError, match=r"ran longer than 0\.02 s"):
            await plane.submit(
                {"tasks": [task("u", "wait", attempt_timeout=0.02, retry_policy={"attempt_max": 1})]}
            )
        running = plane.start({"tasks": [task("v", "thread")]})
        await eventually(lambda: numbers == [1])
        running.fence("v")
        assert (await running.result())["v"] == 2


async def test_a_fenced_attempt_loses_its_locks(eventually: Eventually) -> None:
    agent = Agent("a", slots=2)
    errors: list[BaseException] = []
    tries: list[int] = []

    @agent.handler("use")
    async def use(task: Task) -> str:
        tries.append(task.token.number)
        try:
            async with task.lock("bridge-3") as held:
                if task.token.number == 1:
                    await asyncio.Event().wait()
                return str(held.lost)
        except (LockLostError, asyncio.CancelledError) as error:
            errors.append(error)
            raise

    async with InMemoryPlane() as plane:
        plane.add(agent)
        running = plane.start({"tasks": [task("t", "use")]})
        await eventually(lambda: plane.lock_holders)
        running.fence("t")
        assert (await running.result())["t"] == "False"
    assert tries == [1, 2]
    assert len(errors) == 1


async def test_handlers_are_cancelled_when_the_plane_closes() -> None:
    agent = Agent("a", slots=2)
    ended, running = list[str](), threading.Event()

    @agent.handler("wait")
    async def wait(_: Task) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("async")

    @agent.handler("thread")
    def wait_in_thread(task: Task) -> None:
        running.set()
        task.wait_cancelled(30)
        ended.append("thread")

    async with InMemoryPlane() as plane:
        plane.add(agent)
        plane.start({"tasks": [task("a", "wait"), task("b", "thread")]})
        while not running.is_set():
            await asyncio.sleep(0)
    assert sorted(ended) == ["async", "thread"]
