"""`muster agents profile`, `muster alerts` and `muster task assess` against a real plane."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.integration.cli.cli_process import items, muster, succeed
from tests.integration.cli.conftest import PlaneWithAgent

pytestmark = pytest.mark.timeout(90)


def greet(plane: PlaneWithAgent, number: int) -> str:
    """Let the agent do one task; return its collaboration."""
    spec = {
        "name": f"greeting {number}",
        "tasks": [{"task_id": "hello", "required_skills": ["greet"], "payload": {"name": "Ada"}}],
    }
    (accepted,) = items("submit", "-", home=plane.home, given=json.dumps(spec))
    identifier: str = accepted["collaboration_id"]
    deadline = time.monotonic() + 30
    while items("task", "show", identifier, "hello", home=plane.home)[0]["state"] != "SUCCEEDED":
        assert time.monotonic() < deadline, f"{identifier} does not end"
    return identifier


def test_a_profile_shows_what_was_declared_reported_and_learned(plane: PlaneWithAgent) -> None:
    for number in range(3):
        last = greet(plane, number)
    attempt = items("task", "show", last, "hello", home=plane.home)[0]["attempts"][-1]
    assert attempt["predicted"]["low"] <= attempt["predicted"]["mean"] <= attempt["predicted"]["high"]
    (profile,) = items("agents", "profile", plane.agent, home=plane.home)
    skills: dict[str, Any] = {row["skill"]: row for row in profile["skills"]}
    assert skills["greet"]["outcomes"] > 2
    assert skills["greet"]["proficiency"]["low"] < skills["greet"]["proficiency"]["high"]
    [greeting] = [row for row in profile["types"] if row["task_type"] == "greet"]
    assert greeting["run_count"] >= 3
    assert profile["reported"][0]["load"]["slots"] > 0
    text = succeed("agents", "profile", plane.agent, home=plane.home)
    for word in ("PROFICIENCY", "EXPECTED", "MEMORY", "REPORTED", "half of it is forgotten"):
        assert word in text


def test_a_result_is_assessed_and_the_profile_learns_from_it(plane: PlaneWithAgent) -> None:
    identifier = greet(plane, 9)
    (answer,) = items("task", "assess", identifier, "hello", "0.25", "--comment", "curt", home=plane.home)
    assert answer["agent_id"] == plane.agent
    (profile,) = items("agents", "profile", plane.agent, home=plane.home)
    [greeting] = [row for row in profile["types"] if row["task_type"] == "greet"]
    assert greeting["quality"]["mean"] < 0.9
    wrong = muster("task", "assess", identifier, "hello", "7", home=plane.home)
    assert wrong.returncode == 2
    assert "from 0 to 1" in wrong.stderr


def test_a_healthy_plane_has_no_alerts(plane: PlaneWithAgent) -> None:
    assert items("alerts", home=plane.home) == []
    assert "nothing is out of the ordinary" in succeed("alerts", "--all", home=plane.home)


def test_nobody_has_no_profile(plane: PlaneWithAgent) -> None:
    refused = muster("agents", "profile", "nobody", home=plane.home)
    assert refused.returncode == 1
    assert "AGENT_NOT_FOUND" in refused.stderr
