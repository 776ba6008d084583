"""What `muster watch` and `muster policy` say in words of things that are rare on a small plane."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from muster.scheduler.v1 import policy_pb2

from agent_client.cli.live import LiveView
from agent_client.cli.output import Output
from agent_client.cli.policies import _tell
from agent_client.views import DeadlineWarning
from agent_client.watching import Event

AT = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def shown(change: DeadlineWarning, capsys: pytest.CaptureFixture[str]) -> str:
    with LiveView(Output(as_json=False)) as view:
        view.show(Event("c-1", 3, AT, change))
    return " ".join(capsys.readouterr().out.split())


def test_a_deadline_that_will_be_missed_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    late = DeadlineWarning("c-1", "rescue", AT.replace(hour=9), AT.replace(hour=10), "survey", None)
    text = shown(late, capsys)
    assert "LATE" in text
    assert "task rescue is predicted to end at" in text
    assert "because of survey" in text


def test_a_deadline_that_will_be_met_after_all_is_said_too(capsys: pytest.CaptureFixture[str]) -> None:
    saved = DeadlineWarning("c-1", "", AT.replace(hour=9), AT.replace(hour=8), "survey", AT)
    text = shown(saved, capsys)
    assert "IN TIME" in text
    assert "the collaboration is predicted to meet its deadline" in text


def test_a_plane_that_adapts_shows_what_it_learned(capsys: pytest.CaptureFixture[str]) -> None:
    load = policy_pb2.PolicyLoad(load="busy", explored_share=0.05)
    load.arms.add(policy="PRIORITY")
    load.arms.add(policy="BEST_MATCH", trials=12, mean=0.5, low=0.4, high=0.6, pending=3, shut=True)
    policy = policy_pb2.AdaptivePolicy(frozen=True, default_policy="PRIORITY", loads=[load])
    _tell(policy, Output(as_json=False))
    text = " ".join(capsys.readouterr().out.split())
    assert "frozen: nothing is tried" in text
    assert "BEST_MATCH 0.500 0.400 to 0.600 12 3 shut" in text
    assert "busy: 5% of the latest choices tried another one" in text
