"""Half a character is refused with the name of the argument, before anything is asked of the plane."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from agent_client import Client, InvalidRequestError
from agent_client.audit import AuditLog
from agent_client.insight import Insight
from agent_client.texts import refuses_half_characters

HALF = "road \ud800"


@refuses_half_characters
class Speaker:
    """Says what it is given."""

    async def say(self, text: str, *, to: str = "") -> str:
        return f"{to}:{text}"

    async def murmur(self, text: str) -> AsyncGenerator[str, None]:
        yield text

    def count(self, texts: list[str], most: int) -> int:
        return min(len(texts), most)


async def test_a_text_with_half_a_character_names_its_argument() -> None:
    speaker = Speaker()
    with pytest.raises(InvalidRequestError, match="text: must be a text that can be written as UTF-8") as bad:
        await speaker.say(HALF)
    assert [violation.field for violation in bad.value.violations] == ["text"]
    with pytest.raises(InvalidRequestError, match="to: "):
        await speaker.say("x", to=HALF)
    with pytest.raises(InvalidRequestError, match="text: "):
        speaker.murmur(HALF)


async def test_every_other_text_goes_through() -> None:
    speaker = Speaker()
    assert await speaker.say("路\U0001f600", to="") == ":路\U0001f600"
    assert [each async for each in speaker.murmur("é")] == ["é"]
    assert speaker.count(["a"], 3) == 1
    assert inspect.iscoroutinefunction(speaker.say)


@pytest.mark.parametrize(
    "name",
    ["get", "cancel", "pause", "resume", "locks", "agents", "agent", "mailbox", "subscribe", "dead_letters"],
)
async def test_the_client_looks_at_what_it_is_given(name: str) -> None:
    # Nothing is asked of the plane: there is none.
    client: Any = object.__new__(Client)
    with pytest.raises(InvalidRequestError, match="UTF-8"):
        await getattr(client, name)(HALF)


async def test_learned_things_and_the_log_are_asked_for_by_texts_too() -> None:
    insight: Any = object.__new__(Insight)
    with pytest.raises(InvalidRequestError, match="name: "):
        await insight.agent_profile(HALF)
    log: Any = object.__new__(AuditLog)
    with pytest.raises(InvalidRequestError, match="subject: "):
        await log.query(subject=HALF)
