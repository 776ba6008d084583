"""`muster message …`: an operator talks with an agent."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import Any

import pytest

from tests.integration.cli.cli_process import COMMAND, environment, items, muster, succeed
from tests.integration.cli.conftest import PlaneWithAgent

pytestmark = pytest.mark.timeout(90)

OWN = "operator/admin"


def receive(plane: PlaneWithAgent, *arguments: str) -> list[dict[str, object]]:
    return items("message", "receive", *arguments, home=plane.home)


def test_an_agent_answers_to_the_operators_mailbox(plane: PlaneWithAgent) -> None:
    (sent,) = items(
        *("message", "send", plane.agent, '{"road": "r8"}', "--type", "resource-request"),
        *("--priority", "high", "--correlation-id", "talk-1"),
        home=plane.home,
    )
    assert sent["receiver_id"] == plane.agent
    (answer,) = receive(plane, "--count", "1")
    assert answer["sender_id"] == plane.agent
    assert answer["message_type"] == "RESOURCE_RESPONSE"
    assert answer["priority"] == "HIGH"
    assert answer["correlation_id"] == "talk-1"
    assert answer["payload"] == {"you said": {"road": "r8"}}
    assert answer["delivery_number"] == 1


def test_what_was_received_does_not_come_again(plane: PlaneWithAgent) -> None:
    for number in range(3):
        succeed("message", "send", OWN, str(number), home=plane.home)
    succeed("message", "send", OWN, "now", "--priority", "emergency", "--type", "emergency", home=plane.home)
    first, second = receive(plane, "--count", "2")
    assert first["payload"] == "now"
    rest = receive(plane, "--timeout", "2")
    assert [second["payload"], *(one["payload"] for one in rest)] == [0, 1, 2]
    assert {one["delivery_number"] for one in rest} == {1}
    (box,) = items("message", "box", home=plane.home)
    assert all(lane["waiting_count"] == 0 for lane in box["lanes"])


def test_payloads_are_json_or_text(plane: PlaneWithAgent) -> None:
    succeed("message", "send", OWN, "12", "--text", home=plane.home)
    succeed("message", "send", OWN, "-", home=plane.home, given="桥 is closed")
    assert [one["payload"] for one in receive(plane, "--count", "2")] == ["12", "桥 is closed"]
    succeed("message", "send", OWN, "hi", home=plane.home)
    (line,) = succeed("message", "receive", "--count", "1", home=plane.home).splitlines()
    assert line.endswith(f"{OWN}  STATUS_UPDATE  NORMAL  hi")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nobody", "hi"), 1, "AGENT_NOT_FOUND: no agent 'nobody' is registered: check the name"),
        (("Bad Name", "hi"), 2, "receiver_id"),
        ((OWN, "x" * 70_000), 2, "70,000 bytes, at most 65,536"),
        ((OWN, "hi", "--type", "gossip"), 2, "invalid choice: 'GOSSIP' (choose from 'TASK_REQUEST'"),
        ((OWN, "hi", "--ttl", "0"), 2, "'0' is no number of seconds greater than 0"),
        (("\udcff", "hi"), 2, "can not be written as UTF-8"),
        ((OWN, "hi", "--correlation-id", "\udcff"), 2, "can not be written as UTF-8"),
        (("topic/roads.*", "hi"), 2, "wildcards are for subscriptions only"),
    ],
)
def test_what_can_not_be_sent_is_said(
    plane: PlaneWithAgent, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = muster("message", "send", *arguments, home=plane.home)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert code == 2 or "`muster agents list` shows who is known" in done.stderr


def test_an_interrupted_receiver_loses_nothing_and_the_newest_takes_over(plane: PlaneWithAgent) -> None:
    command = [*COMMAND, "message", "receive", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, env=environment(plane.home), **pipes)  # type: ignore[call-overload]
    succeed("message", "send", OWN, "one", home=plane.home)
    assert json.loads(first.stdout.readline())["payload"] == "one"
    second = subprocess.Popen(command, env=environment(plane.home), **pipes)  # type: ignore[call-overload]
    _, complaint = first.communicate(timeout=30)
    assert first.returncode == 1
    assert "another `muster message receive` took over" in complaint
    succeed("message", "send", OWN, "two", home=plane.home)
    assert json.loads(second.stdout.readline())["payload"] == "two"
    second.send_signal(signal.SIGINT)
    _, complaint = second.communicate(timeout=30)
    assert (second.returncode, complaint) == (130, "")
    succeed("message", "send", OWN, "three", home=plane.home)
    assert [one["payload"] for one in receive(plane, "--timeout", "2")] == ["three"]


def dead_letters(plane: PlaneWithAgent) -> list[dict[str, Any]]:
    return items("message", "deadletters", "list", OWN, home=plane.home)


def test_dead_letters_are_listed_shown_replayed_and_dropped(plane: PlaneWithAgent) -> None:
    for said in ("one", "two", "three"):
        succeed("message", "send", OWN, said, "--ttl", "1", home=plane.home)
    # Nobody receives: they expire, each in the look for expired ones that comes every second.
    deadline = time.monotonic() + 30
    while len(letters := dead_letters(plane)) < 3 and time.monotonic() < deadline:
        pass
    first, second, third = (str(letter["dead_letter_id"]) for letter in letters)
    assert {letter["reason"] for letter in letters} == {"EXPIRED"}
    assert len(succeed("message", "deadletters", home=plane.home).splitlines()) == 4
    shown = succeed("message", "deadletters", "show", OWN, second, home=plane.home)
    assert "payload: two" in shown
    (as_json,) = items("message", "deadletters", "show", OWN, second, home=plane.home)
    assert as_json["envelope"]["payload"] == "two"
    # One that is there and one that is not: the first is done, the exit code tells of the second.
    half = muster("message", "deadletters", "replay", OWN, second, "999999", "--json", home=plane.home)
    assert half.returncode == 1
    assert "999999: MESSAGE_NOT_FOUND" in half.stderr
    done, refused = map(json.loads, half.stdout.splitlines())
    assert (str(done["dead_letter_id"]), refused["error"]["reason"]) == (second, "MESSAGE_NOT_FOUND")
    (again,) = receive(plane, "--count", "1")
    assert (again["payload"], again["sequence_number"]) == ("two", done["sequence_number"])
    assert succeed("message", "deadletters", "drop", OWN, first, home=plane.home) == f"{first} is forgotten\n"
    assert [str(letter["dead_letter_id"]) for letter in dead_letters(plane)] == [third]
    succeed("message", "deadletters", "drop", OWN, "--all", home=plane.home)
    assert dead_letters(plane) == []
    assert succeed("message", "deadletters", "drop", OWN, "--all", home=plane.home).startswith(
        "no dead letters"
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("show", OWN, "7777777"), 1, "has no dead letter 7777777"),
        (("show", OWN), 2, "show takes AGENT and one ID"),
        (("show", OWN, "x"), 2, "an ID of a dead letter is a number"),
        (("replay",), 2, "say whose"),
        (("drop", OWN), 2, "either IDs or --all"),
        (("drop", OWN, "1", "--all"), 2, "either IDs or --all"),
        (("one", "two"), 2, "list takes one AGENT"),
        (("drop", "nobody", "1"), 1, "AGENT_NOT_FOUND"),
    ],
)
def test_what_can_not_be_done_with_dead_letters_is_said(
    plane: PlaneWithAgent, words: tuple[str, ...], code: int, said: str
) -> None:
    done = muster("message", "deadletters", *words, home=plane.home)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_boxes_and_dead_letters(plane: PlaneWithAgent) -> None:
    text = succeed("message", "box", plane.agent, home=plane.home)
    assert [line.split()[0] for line in text.splitlines()[1:5]] == ["EMERGENCY", "HIGH", "NORMAL", "LOW"]
    assert "dead letters" in text
    assert succeed("message", "deadletters", plane.agent, home=plane.home).startswith("no dead letters for")
    unknown = muster("message", "box", "nobody", home=plane.home)
    assert unknown.returncode == 1
    assert "AGENT_NOT_FOUND" in unknown.stderr
    unknown = muster("message", "subscriptions", "nobody", home=plane.home)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "AGENT_NOT_FOUND" in unknown.stderr


def test_topics_and_skills(plane: PlaneWithAgent) -> None:
    assert items("message", "subscriptions", home=plane.home) == []
    (nobody,) = items("message", "publish", "roads.closed", "1", home=plane.home)
    assert nobody["receiver_count"] == 0
    refused = muster("message", "publish", "roads.closed", "1", "--require-receiver", home=plane.home)
    assert refused.returncode == 1
    assert "RECEIVER_NOT_FOUND" in refused.stderr
    assert "is subscribed to roads.*" in succeed(
        "message", "subscribe", "roads.*", "--agent", plane.agent, home=plane.home
    )
    (listed,) = items("message", "subscriptions", plane.agent, home=plane.home)
    assert listed == {"agent_id": plane.agent, "pattern": "roads.*"}
    published = succeed("message", "publish", "roads.closed", "r8", home=plane.home)
    assert "is stored for 1 receivers of topic/roads.closed" in published
    succeed("message", "unsubscribe", "roads.*", "--agent", plane.agent, home=plane.home)
    assert items("message", "subscriptions", plane.agent, home=plane.home) == []
    wrong = muster("message", "subscribe", "a..b", home=plane.home)
    assert wrong.returncode == 2
    unknown = muster("message", "send", "skill/nobody-has-it", "1", home=plane.home)
    assert (unknown.returncode, "RECEIVER_NOT_FOUND" in unknown.stderr) == (1, True)
