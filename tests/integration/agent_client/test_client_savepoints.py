"""Handlers that are asked to make room: what they save is what the next attempt begins from."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agent_client import Agent, Task
from agent_client.testing import InMemoryPlane


@pytest.mark.parametrize("coroutine", [True, False])
async def test_what_on_suspend_gives_is_where_the_next_attempt_begins(coroutine: bool) -> None:
    agent, begun = Agent("a"), asyncio.Event()

    @agent.handler("count")
    async def count(task: Task) -> Any:
        if task.resumed_from is not None:
            return [task.token.number, task.resumed_from]

        async def later() -> int:
            return 7

        task.on_suspend(later if coroutine else lambda: 7)
        begun.set()
        await asyncio.Event().wait()
        return None

    async with InMemoryPlane() as plane:
        plane.add(agent)
        handle = plane.start({"tasks": {"t": {"required_skills": "count"}}})
        await begun.wait()
        handle.suspend("t")
        assert (await handle.result()).outputs == {"t": [2, 7]}


async def test_a_plain_function_polls_and_goes_on_from_what_it_saved() -> None:
    agent, begun = Agent("a"), threading.Event()

    @agent.handler("count")
    def count(task: Task) -> Any:
        if task.resumed_from is not None:
            return task.resumed_from
        begun.set()
        assert task.wait_suspending(10)
        task.savepoint({"done": 3})
        task.check_suspending()
        return "never"

    async with InMemoryPlane() as plane:
        plane.add(agent)
        handle = plane.start({"tasks": {"t": {"required_skills": "count"}}})
        await asyncio.to_thread(begun.wait)
        handle.suspend("t")
        assert (await handle.result()).outputs == {"t": {"done": 3}}


async def test_a_result_in_time_counts_although_it_was_asked_to_make_room() -> None:
    agent, begun = Agent("a"), threading.Event()

    @agent.handler("count")
    def count(task: Task) -> Any:
        begun.set()
        assert task.wait_suspending(10)
        return task.token.number

    async with InMemoryPlane() as plane:
        plane.add(agent)
        handle = plane.start({"tasks": {"t": {"required_skills": "count"}}})
        await asyncio.to_thread(begun.wait)
        handle.suspend("t")
        assert (await handle.result()).outputs == {"t": 1}


async def test_a_function_that_can_not_save_makes_room_without() -> None:
    agent, begun = Agent("a"), asyncio.Event()

    @agent.handler("count")
    async def count(task: Task) -> Any:
        if task.token.number > 1:
            return task.resumed_from

        def broken() -> int:
            raise ValueError("no")

        task.on_suspend(broken)
        begun.set()
        await asyncio.Event().wait()
        return None

    async with InMemoryPlane() as plane:
        plane.add(agent)
        handle = plane.start({"tasks": {"t": {"required_skills": "count"}}})
        await begun.wait()
        handle.suspend("t")
        assert (await handle.result()).outputs == {"t": None}
