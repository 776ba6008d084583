"""Every policy by its name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from services.scheduler.core.model import SchedulingPolicy
from services.scheduler.core.policies.base import Policy
from services.scheduler.core.policies.best_match import BestMatchPolicy
from services.scheduler.core.policies.least_loaded import LeastLoadedPolicy
from services.scheduler.core.policies.multi_objective import MultiObjectivePolicy
from services.scheduler.core.policies.predictive import PredictivePolicy
from services.scheduler.core.policies.priority import PriorityPolicy
from services.scheduler.core.policies.round_robin import RoundRobinPolicy

POLICIES: Mapping[SchedulingPolicy, Policy] = MappingProxyType(
    {
        SchedulingPolicy.PRIORITY: PriorityPolicy(),
        SchedulingPolicy.ROUND_ROBIN: RoundRobinPolicy(),
        SchedulingPolicy.LEAST_LOADED: LeastLoadedPolicy(),
        SchedulingPolicy.BEST_MATCH: BestMatchPolicy(),
        SchedulingPolicy.MULTI_OBJECTIVE: MultiObjectivePolicy(),
        SchedulingPolicy.PREDICTIVE: PredictivePolicy(),
    }
)
