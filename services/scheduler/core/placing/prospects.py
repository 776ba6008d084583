"""How long a task is predicted to take at each of several agents, for the policies that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from services.common.core.ids import AgentId
from services.scheduler.core.placing.fleet import Fleet
from services.scheduler.core.placing.placement import Style
from services.scheduler.core.policies.base import Floats

#: (agent, task type, declared duration in ms, first skill) -> predicted duration in ms.
Estimate = Callable[[AgentId, str, int, str], float]
#: Agents that are asked about for one demand; beyond them the declared duration stands.
_ASKED_MAX = 256


def durations(estimate: Estimate | None, fleet: Fleet, rows: Any, style: Style) -> Floats | None:
    """Return the predicted duration at each row in milliseconds; None when nothing predicts."""
    if estimate is None:
        return None
    declared = style.duration_ms
    found = np.full(len(rows), float(declared))
    # The least loaded ones are asked about: a busy one would hardly be the first to end.
    order = np.argsort(fleet.held[rows], kind="stable")[:_ASKED_MAX]
    for position in order.tolist():
        instance = fleet.instances[int(rows[position])]
        if instance is not None:
            found[position] = max(
                1.0, estimate(instance.key.agent_id, style.task_type, declared, style.skill)
            )
    return found
