"""What `muster policy show` prints."""

from __future__ import annotations

import pytest
from muster.scheduler.v1 import policy_pb2

from agent_client.cli.output import Output
from agent_client.cli.policies import _tell


def test_each_policy_is_shown_with_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    policy = policy_pb2.AdaptivePolicy(enabled=True, default_policy="PRIORITY")
    load = policy.loads.add(load="busy", preferred_policy="BEST_MATCH", explored_share=0.07)
    load.arms.add(policy="PRIORITY", mean=0.6, low=0.55, high=0.65, trials=120, pending=2)
    load.arms.add(policy="BEST_MATCH", mean=0.75, low=0.7, high=0.8, trials=80)
    load.arms.add(policy="ROUND_ROBIN", mean=0.2, low=0.1, high=0.3, trials=9, shut=True)
    load.arms.add(policy="LEAST_LOADED")
    _tell(policy, Output(as_json=False))
    text = capsys.readouterr().out
    assert "default PRIORITY; trying and learning" in text
    assert "0.750" in text
    assert "0.700 to 0.800" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("busy ")]
    assert [row[-1] for row in rows] == ["2", "preferred", "shut", "0"]
    assert "7% of the latest choices" in text
