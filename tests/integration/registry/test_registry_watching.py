"""One watch: the snapshot first, then what changed, each agent once."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.common.core.ids import AgentId
from services.registry.watching import AgentWatch

A, B, C = AgentId("a"), AgentId("b"), AgentId("c")


async def test_an_empty_snapshot_is_complete_at_once() -> None:
    watch = AgentWatch([])
    assert await watch.take(10) == ([], True)


async def test_the_snapshot_comes_in_parts_and_ends_once() -> None:
    watch = AgentWatch([A, B, C])
    assert await watch.take(2) == ([A, B], False)
    watch.mark(A)
    # What is left of the snapshot first, though it changed later.
    watch.mark(C)
    assert await watch.take(2) == ([C, A], True)


async def test_a_change_is_waited_for_and_changes_of_one_agent_are_one() -> None:
    watch = AgentWatch([])
    await watch.take(1)
    waiting = asyncio.create_task(watch.take(5))
    await asyncio.sleep(0)
    assert not waiting.done()
    watch.mark(B)
    watch.mark(A)
    watch.mark(B)
    assert await waiting == ([B, A], False)


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]) | st.integers(1, 4), max_size=40))
def test_everything_known_is_sent_before_the_snapshot_is_complete(actions: list[str | int]) -> None:
    async def run() -> None:
        watch = AgentWatch([A, B, C])
        sent: list[AgentId] = []
        complete = 0
        owed = {A, B, C}
        for action in [*actions, 9, 9]:
            if isinstance(action, str):
                watch.mark(AgentId(action))
                owed.add(AgentId(action))
            elif owed or not complete:
                taken, last = await watch.take(action)
                assert len(taken) <= action
                owed -= set(taken)
                sent += taken
                complete += last
                assert not last or {A, B, C} <= set(sent)
        assert complete == 1
        assert not owed

    asyncio.run(run())
