"""`muster agents|submit|watch|collaborations|task|cancel|locks|services` against a real plane."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.cli_process import items, muster, muster_process, succeed
from tests.integration.cli.conftest import PlaneWithAgent

pytestmark = pytest.mark.timeout(90)

GREETING = {"task_id": "hello", "required_skills": ["greet"], "payload": {"name": "Ada"}}
PATIENCE_S = 30.0


def collaboration(*tasks: Mapping[str, Any], **more: Any) -> str:
    return json.dumps({"name": "from the shell", "tasks": tasks, **more})


def submit(plane: PlaneWithAgent, *tasks: Mapping[str, Any], **more: Any) -> str:
    (accepted,) = items("submit", "-", home=plane.home, given=collaboration(*tasks, **more))
    identifier: str = accepted["collaboration_id"]
    return identifier


def wait_task(plane: PlaneWithAgent, identifier: str, task: str, state: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        shown: dict[str, Any] = items("task", "show", identifier, task, home=plane.home)[0]
        if shown["state"] == state:
            return shown
        assert time.monotonic() < deadline, f"{task} is not {state}: {shown}"


def test_as_a_process_it_prints_and_complains_alike(plane: PlaneWithAgent) -> None:
    listed = muster_process("agents", "list", home=plane.home)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "\x1b" not in listed.stdout
    unknown = muster_process("agents", "show", "nobody", home=plane.home)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "AGENT_NOT_FOUND" in unknown.stderr


def test_agents_are_listed_and_shown(plane: PlaneWithAgent) -> None:
    header, row = succeed("agents", "list", home=plane.home).splitlines()
    assert header.split() == ["AGENT", "STATE", "SKILLS", "INSTANCES", "SLOTS", "USED"]
    assert row.split()[:2] == [plane.agent, "READY"]
    assert "greet, hold, stumble" in row
    assert succeed("agents", "list", "--skill", "fly", home=plane.home).startswith("no agent has registered")
    (listed,) = items("agents", "list", "--skill", "greet", home=plane.home)
    (shown,) = items("agents", "show", plane.agent, home=plane.home)
    assert listed["agent_id"] == shown["agent_id"] == plane.agent
    text = succeed("agents", "show", plane.agent, home=plane.home)
    assert "INCARNATION" in text
    assert " ms" in text


def test_an_unknown_agent_and_a_bad_name(plane: PlaneWithAgent) -> None:
    unknown = muster("agents", "show", "nobody", home=plane.home)
    assert unknown.returncode == 1
    assert "AGENT_NOT_FOUND" in unknown.stderr
    assert "`muster agents list`" in unknown.stderr
    bad = muster("agents", "enroll", "Bad Name", home=plane.home)
    assert bad.returncode == 2
    assert "'Bad Name' is no name" in bad.stderr


def test_an_enrolled_agent_has_its_certificate(plane: PlaneWithAgent) -> None:
    text = succeed("agents", "enroll", "newcomer", home=plane.home)
    assert text.startswith("agent/newcomer\n")
    key = plane.home / "agents" / "newcomer.key"
    assert str(key) in text
    assert key.stat().st_mode & 0o777 == 0o600


def test_services_and_who_leads(plane: PlaneWithAgent) -> None:
    replicas = items("services", home=plane.home)
    assert {one["service"] for one in replicas} == {"registry", "broker", "scheduler", "audit"}
    (leader,) = [one for one in replicas if one["leads"]]
    assert leader["service"] == "scheduler"
    (line,) = [line for line in succeed("services", home=plane.home).splitlines() if "leads, epoch" in line]
    assert leader["address"] in line


def test_a_submission_is_shown_and_its_result_printed(plane: PlaneWithAgent, tmp_path: Path) -> None:
    file = tmp_path / "greeting.json"
    file.write_text(collaboration(GREETING))
    text = succeed("submit", str(file), "--wait", home=plane.home)
    assert "COMPLETED" in text
    assert f"by {plane.agent}" in text
    assert '"greeting": "Hello, Ada!"' in text
    *course, result = items("submit", str(file), "--wait", home=plane.home)
    assert course
    assert result["state"] == "COMPLETED"
    assert result["result"]["outputs"] == {"hello": {"greeting": "Hello, Ada!"}}


def test_the_same_request_id_is_accepted_once(plane: PlaneWithAgent) -> None:
    request = ("submit", "-", "--request-id", "once-only")
    (first,) = items(*request, home=plane.home, given=collaboration(GREETING))
    assert first["already_accepted"] is False
    assert "it had been accepted before" in succeed(*request, home=plane.home, given=collaboration(GREETING))
    other = muster(*request, home=plane.home, given=collaboration({**GREETING, "task_id": "other"}))
    assert other.returncode == 1
    assert "REQUEST_ID_REUSED" in other.stderr


def test_what_is_wrong_with_a_submission_is_named(plane: PlaneWithAgent) -> None:
    def refused(given: str, code: int, *said: str) -> None:
        done = muster("submit", "-", home=plane.home, given=given)
        assert (done.returncode, done.stdout) == (code, ""), done
        assert all(text in done.stderr for text in said), done.stderr

    refused("{", 2, "is not JSON", "`muster submit --help`")
    refused("[]", 2, "collaboration", "must be an object")
    refused(collaboration({**GREETING, "priorty": 1}), 2, "tasks[0].priorty", "did you mean 'priority'?")
    circle = [{**GREETING, "task_id": a, "dependencies": [b]} for a, b in ("xy", "yx")]
    refused(collaboration(*circle), 2, "CYCLIC_DEPENDENCY", "x -> y -> x")
    refused(collaboration({**GREETING, "deadline": "2001-01-01T00:00:00Z"}), 2, "tasks[0].deadline")
    unknown = collaboration({**GREETING, "required_skills": ["fly"]}, unknown_skill_policy="FAIL")
    refused(unknown, 1, "UNKNOWN_SKILL", "fly", "`muster agents list`")
    missing = muster("submit", "no-such-file.json", home=plane.home)
    assert missing.returncode == 2
    assert "no-such-file.json can not be read: No such file or directory" in missing.stderr


def test_a_task_tells_its_attempts_and_why(plane: PlaneWithAgent) -> None:
    task = {"task_id": "walk", "required_skills": ["stumble"], "retry_policy": {"backoff": 0.1}}
    identifier = submit(plane, task)
    succeed("watch", identifier, home=plane.home)
    shown = wait_task(plane, identifier, "walk", "SUCCEEDED")
    assert [attempt["state"] for attempt in shown["attempts"]] == ["FAILED", "SUCCEEDED"]
    text = succeed("task", "show", identifier, "walk", home=plane.home)
    assert "try 1" in text
    assert "WET_ROAD: the road was wet" in text
    assert "try 2" in text
    assert text.count("chosen because") == 2
    assert '"arrived"' in text
    (row,) = succeed("task", "list", identifier, home=plane.home).splitlines()[1:]
    assert row.split()[:4] == ["walk", "SUCCEEDED", plane.agent, "2"]
    unknown = muster("task", "show", identifier, "fly", home=plane.home)
    assert unknown.returncode == 1
    assert "it has walk" in unknown.stderr


def test_an_ended_collaboration_is_watched_with_its_tasks(plane: PlaneWithAgent) -> None:
    identifier = submit(plane, GREETING)
    wait_task(plane, identifier, "hello", "SUCCEEDED")
    first, second = (succeed("watch", identifier, home=plane.home).splitlines() for _ in range(2))
    assert any("SUCCEEDED" in line and "hello" in line for line in first)
    assert any("SUCCEEDED" in line and "hello" in line for line in second)


def test_locks_are_seen_while_held_and_a_cancel_frees_them(plane: PlaneWithAgent) -> None:
    held = {"task_id": "held", "required_skills": ["hold"], "resources": ["bridge-9"]}
    identifier = submit(plane, held, {**held, "task_id": "waits"})
    wait_task(plane, identifier, "held", "RUNNING")
    (lock,) = [row for row in items("locks", "bridge-9", home=plane.home) if row["held"]]
    assert lock["agent_id"] == plane.agent
    table = succeed("locks", home=plane.home)
    assert table.splitlines()[0].split()[-2:] == ["CLASS", "LENT"]
    assert f"{plane.agent}/0" in table
    assert "NORMAL" in table
    waiting = succeed("task", "show", identifier, "waits", home=plane.home)
    assert "waits for" in waiting
    assert "bridge-9" in waiting
    assert f"{identifier} is " in succeed("cancel", identifier, "--reason", "enough", home=plane.home)
    ended = muster("watch", identifier, home=plane.home)
    assert ended.returncode == 1
    assert "CANCELLED" in ended.stdout
    assert "nothing is held" in succeed("locks", "bridge-9", home=plane.home)
    (info,) = items("cancel", identifier, home=plane.home)
    assert info["state"] == "CANCELLED"


def test_a_collaboration_is_paused_and_resumed(plane: PlaneWithAgent) -> None:
    later = {"task_id": "later", "required_skills": ["nobody-has-it"]}
    identifier = submit(plane, later)
    (paused,) = items("pause", identifier, "--reason", "the road is closed", home=plane.home)
    assert paused["state"] == "SUSPENDED"
    assert "paused" in succeed("task", "show", identifier, "later", home=plane.home)
    assert f"muster resume {identifier}" in succeed("pause", identifier, "--suspend", home=plane.home)
    assert "INITIALIZING" in succeed("resume", identifier, home=plane.home)
    succeed("cancel", identifier, home=plane.home)
    refused = muster("pause", identifier, home=plane.home)
    assert refused.returncode == 1
    assert "WRONG_STATE" in refused.stderr


def test_policies_that_do_not_adapt_say_so(plane: PlaneWithAgent) -> None:
    assert "do not adapt" in succeed("policy", "show", home=plane.home)
    (shown,) = items("policy", "show", home=plane.home)
    assert shown["enabled"] is False
    refused = muster("policy", "freeze", "--reason", "a drill", home=plane.home)
    assert refused.returncode == 1
    assert "WRONG_STATE" in refused.stderr


def test_collaborations_are_listed_by_state(plane: PlaneWithAgent) -> None:
    identifier = submit(plane, GREETING)
    wait_task(plane, identifier, "hello", "SUCCEEDED")
    succeed("watch", identifier, home=plane.home)
    listed = items("collaborations", "list", "--state", "completed", home=plane.home)
    assert identifier in {info["collaboration_id"] for info in listed}
    (newest,) = succeed("collaborations", "list", "--limit", "1", home=plane.home).splitlines()[1:]
    assert newest.startswith(identifier)
    bad = muster("collaborations", "list", "--state", "bogus", home=plane.home)
    assert bad.returncode == 2
    assert "'bogus' is none of" in bad.stderr
    unknown = muster("watch", "c-unknown", home=plane.home)
    assert unknown.returncode == 1
    assert "`muster collaborations list`" in unknown.stderr


def test_a_plan_says_who_would_do_what_and_submits_nothing(plane: PlaneWithAgent, tmp_path: Path) -> None:
    before = items("collaborations", "list", home=plane.home)
    # A type that nobody has done yet: what is declared counts.
    first_task = {**GREETING, "task_type": "unheard-of"}
    second_task = {**first_task, "task_id": "again", "dependencies": ["hello"], "estimated_duration": 2}
    given = collaboration(first_task, second_task)
    picture = tmp_path / "plan.svg"
    text = succeed("plan", "-", "--svg", str(picture), "--budget", "0.1", home=plane.home, given=given)
    header, first, last, summary = text.splitlines()
    assert header.split() == ["TASK", "AGENT", "START", "END"]
    assert first.split()[:2] == ["hello", f"{plane.agent}/{first.split('/')[1].split()[0]}"]
    assert last.startswith("again")
    assert "critical" in last
    ends, bound = re.findall(r"(\d+\.\d+) s", summary)
    assert 0 < float(bound) <= float(ends)
    assert "quality 1.00" in summary
    assert picture.read_text().startswith("<svg")
    (answer,) = items("plan", "-", home=plane.home, given=given)
    assert answer["plans"][0]["critical_tasks"] == ["hello", "again"]
    assert items("collaborations", "list", home=plane.home) == before


def test_a_chosen_plan_can_be_submitted(plane: PlaneWithAgent) -> None:
    given = collaboration(GREETING)
    assert "FAIRNESS" in succeed("plan", "-", "--pareto", "3", home=plane.home, given=given)
    (pinned,) = items("plan", "-", "--pareto", "3", "--choose", "1", home=plane.home, given=given)
    assert pinned["tasks"] == [{**GREETING, "required_agents": [plane.agent]}]
    (accepted,) = items("submit", "-", home=plane.home, given=json.dumps(pinned))
    wait_task(plane, accepted["collaboration_id"], "hello", "SUCCEEDED")
    beyond = muster("plan", "-", "--pareto", "3", "--choose", "30", home=plane.home, given=given)
    assert beyond.returncode == 2
    assert "choose 1 to" in beyond.stderr


def test_what_can_not_be_planned_is_said(plane: PlaneWithAgent) -> None:
    missing = collaboration({"task_id": "t", "required_skills": ["fly"]})
    refused = muster("plan", "-", home=plane.home, given=missing)
    assert refused.returncode == 1
    assert "UNKNOWN_SKILL" in refused.stderr
    assert "no connected agent has all of: fly" in refused.stderr
    long = muster("plan", "-", "--budget", "31", home=plane.home, given=collaboration(GREETING))
    assert "choose 1 ms to 30 s" in long.stderr
