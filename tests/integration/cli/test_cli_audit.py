"""`muster audit query|tail|verify|prove` against a real plane, and against what was tampered with."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from agent_client import Agent, Delivery
from agent_client.audit import CHECKPOINT_FILE, KEY_FILE
from tests.integration.cli.cli_process import COMMAND, environment, items, muster, succeed
from tests.integration.cli.conftest import PlaneWithAgent

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def trusted(plane: PlaneWithAgent) -> Iterator[dict[str, Path]]:
    """What this side keeps of the log after a verification; put back after the test."""
    succeed("audit", "verify", home=plane.home)
    files = {name: plane.home / name for name in (KEY_FILE, CHECKPOINT_FILE)}
    before = {name: path.read_bytes() for name, path in files.items()}
    yield files
    for name, path in files.items():
        path.write_bytes(before[name])


def test_entries_are_found_by_their_conditions(plane: PlaneWithAgent) -> None:
    opened = items(
        "audit", "query", "--actor", f"agent/{plane.agent}", "--operation", "session.*", home=plane.home
    )
    assert {logged["entry"]["operation"] for logged in opened} == {"session.open"}
    muster("submit", "-", home=plane.home, given='{"tasks": []}')
    refused = succeed("audit", "query", "--outcome", "REFUSED", "--limit", "1", home=plane.home).splitlines()
    assert refused[0].split() == ["INDEX", "WHEN", "ACTOR", "OPERATION", "SUBJECT", "OUTCOME"]
    assert "collaboration.submit" in refused[1]
    assert "REFUSED" in refused[1]
    none = succeed("audit", "query", "--until", "2001-01-01T00:00", home=plane.home)
    assert none == "no entry matches\n"


def test_every_envelope_of_a_burst_is_found_and_proved(plane: PlaneWithAgent) -> None:
    """A2 with entries that record many: each envelope by its subject, what it caused, and its proof."""
    count = 60
    succeed("agents", "enroll", "burst", home=plane.home)
    asyncio.run(burst_of(plane, count))

    def find(operation: str, *conditions: str) -> list[dict[str, Any]]:
        found = items(
            *("audit", "query", "--operation", operation, "--limit", "1000", *conditions), home=plane.home
        )
        return [one | {"index": hit["leaf_index"]} for hit in found for one in told(hit)]

    def find_all(operation: str) -> list[dict[str, Any]]:
        # Recorded a moment after the answer; the test's own limit ends a wait for what does not come.
        while len(found := find(operation, "--subject", "envelope/burst/*")) < count:
            pass
        return found

    accepted, acked = find_all("envelope.accept"), find_all("envelope.ack")
    subjects = [one["subject"] for one in accepted]
    assert len(set(subjects)) == count
    for recorded in (accepted, acked):
        assert sorted(one["subject"] for one in recorded) == sorted(subjects)
        assert sorted(int(one["attributes"]["sequence"]) for one in recorded) == list(range(1, count + 1))
        assert {(one["actor"], one["attributes"]["receiver"]) for one in recorded} == {
            ("agent/burst", "burst")
        }
    # The point of it: fewer entries than envelopes.
    assert len({one["index"] for one in accepted}) < count
    wanted = subjects[7]
    lines = succeed("audit", "query", "--subject", wanted, home=plane.home).splitlines()
    assert [line.split()[-3:] for line in lines[1:]] == [
        ["envelope.accept", wanted, "OK"],
        ["envelope.ack", wanted, "OK"],
    ]
    assert [one["subject"] for one in find("envelope.*", "--cause", wanted.rpartition("/")[2])] == [
        wanted,
        wanted,
    ]
    for line in lines[1:]:
        said = succeed("audit", "prove", line.split()[0], "--subject", wanted, home=plane.home)
        assert f"{wanted}  OK  lane=NORMAL  receiver=burst  sequence=8  " in said
    refused = muster(
        "audit", "prove", lines[1].split()[0], "--subject", "envelope/burst/else", home=plane.home
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    together = succeed("audit", "query", "--operation", "envelope.accept", home=plane.home)
    assert re.search(r"envelope/burst/ \d+ from \S+ to \S+  OK", together)


async def burst_of(plane: PlaneWithAgent, count: int) -> None:
    """An agent writes to itself at once and acks all of it."""
    burst = Agent("burst", home=plane.home)
    heard: list[int] = []
    complete = asyncio.Event()

    @burst.on_message()
    async def hear(delivery: Delivery) -> None:
        heard.append(delivery.payload)
        if len(heard) == count:
            complete.set()

    async with burst, asyncio.timeout(60):
        await burst.wait_ready()
        for one in [burst.send("burst", number) for number in range(count)]:
            await one
        await complete.wait()


def told(hit: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the operations of one line of `muster audit query --json`."""
    return cast("list[dict[str, Any]]", hit.get("operations", [hit["entry"]]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("query", "--since", "yesterday"), "'yesterday' is no time such as 2026-07-01T12:00:00Z"),
        (("query", "--limit", "0"), "at least 1"),
        (("query", "--outcome", "MAYBE"), "invalid choice: 'MAYBE'"),
        (("prove", "--", "-1"), "'-1' is no whole number from 0 on"),
        (("tail", "--from-index", "x"), "'x' is no whole number"),
    ],
)
def test_a_wrong_condition_is_named(plane: PlaneWithAgent, arguments: tuple[str, ...], said: str) -> None:
    done = muster("audit", *arguments, home=plane.home)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_the_tail_follows_and_a_reader_may_leave(plane: PlaneWithAgent) -> None:
    command = [*COMMAND, "audit", "tail", "--from-index", "0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(plane.home)
    ) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        assert json.loads(tail.stdout.readline())["leaf_index"] == 0
        muster("submit", "-", home=plane.home, given='{"name": "told", "tasks": []}')
        for line in tail.stdout:
            if json.loads(line)["entry"]["outcome"] == "REFUSED":
                break
        tail.stdout.close()
        # It ends at the next thing that it has to say.
        muster("submit", "-", home=plane.home, given='{"name": "told", "tasks": []}')
        assert tail.wait(30) == 0
        assert tail.stderr.read() == ""


def test_the_log_is_verified_and_may_only_grow(plane: PlaneWithAgent, trusted: dict[str, Path]) -> None:
    (again,) = items("audit", "verify", home=plane.home)
    assert again["verified"] is True
    assert again["tree_size"] >= again["previous_size"] > 0
    assert "is whole" in succeed("audit", "verify", home=plane.home)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in trusted.values())


def test_an_entry_is_proved(plane: PlaneWithAgent) -> None:
    assert succeed("audit", "prove", "0", home=plane.home).startswith("Entry 0 is in the log of ")
    (proven,) = items("audit", "prove", "1", home=plane.home)
    assert proven["leaf_index"] == 1
    assert proven["proof"]
    missing = muster("audit", "prove", "999999", home=plane.home)
    assert missing.returncode == 1
    assert "ENTRY_NOT_FOUND" in missing.stderr
    assert "`muster audit query`" in missing.stderr


@pytest.mark.parametrize("verb", [("verify",), ("prove", "0")])
@pytest.mark.parametrize("name", [KEY_FILE, CHECKPOINT_FILE])
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00nonsense"], ids=["one byte", "empty", "nonsense"])
def test_a_tampered_trust_file_is_refused(
    plane: PlaneWithAgent,
    trusted: dict[str, Path],
    verb: tuple[str, ...],
    name: str,
    content: bytes | None,
) -> None:
    path = trusted[name]
    if content is None:
        changed = bytearray(path.read_bytes())
        changed[len(changed) // 2] ^= 1
        content = bytes(changed)
    path.write_bytes(content)
    done = muster("audit", *verb, home=plane.home)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"TrustFileError: {path}" in done.stderr
    assert "restore it, or remove it" in done.stderr
    assert path.read_bytes() == content


def test_the_key_of_another_log_is_refused(plane: PlaneWithAgent, trusted: dict[str, Path]) -> None:
    other = "muster.internal/audit+f5e17d4d+AQOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4"
    trusted[CHECKPOINT_FILE].unlink()
    key = trusted[KEY_FILE]
    key.write_text(other)
    done = muster("audit", "verify", home=plane.home)
    assert done.returncode == 1
    assert "SignatureError" in done.stderr or "TrustFileError" in done.stderr
    assert str(key) in done.stderr
