"""`muster audit query|tail|verify|prove` against a real plane, and against what was tampered with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

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
