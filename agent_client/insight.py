"""What the coordinator has learned about agents, and what it finds out of the ordinary."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from muster.scheduler.v1 import alert_pb2, policy_pb2, profile_pb2
from muster.scheduler.v1 import scheduler_service_pb2 as scheduler
from muster.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

from agent_client.connection import Method
from agent_client.texts import refuses_half_characters

#: (service, method of a channel, request) -> answer.
Call = Callable[[str, Method, Any], Awaitable[Any]]


@refuses_half_characters
class Insight:
    """Questions to the coordinator about what it has learned; `Client.insight` is one."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def agent_profile(self, name: str) -> profile_pb2.AgentProfile:
        """Return what was learned about an agent, and how sure that is."""
        request = scheduler.GetAgentProfileRequest(agent_id=name)
        answer = await self._ask(lambda channel: SchedulerServiceStub(channel).GetAgentProfile, request)
        profile: profile_pb2.AgentProfile = answer.profile
        return profile

    async def alerts(self, *, include_cleared: bool = False) -> list[alert_pb2.Alert]:
        """Return what is out of the ordinary, and what was if `include_cleared`."""
        request = scheduler.ListAlertsRequest(include_cleared=include_cleared)
        answer = await self._ask(lambda channel: SchedulerServiceStub(channel).ListAlerts, request)
        return [*answer.alerts]

    async def policy(self) -> policy_pb2.AdaptivePolicy:
        """Return how the policy of collaborations that name none is chosen, and what was learned."""
        request = scheduler.GetAdaptivePolicyRequest()
        answer = await self._ask(lambda channel: SchedulerServiceStub(channel).GetAdaptivePolicy, request)
        policy: policy_pb2.AdaptivePolicy = answer.policy
        return policy

    async def change_policy(
        self, action: policy_pb2.PolicyAction.ValueType, reason: str = ""
    ) -> policy_pb2.AdaptivePolicy:
        """Freeze that choice, let it go on, or forget what was learned; return what it is then.

        Raises PreconditionError where the configuration does not let policies adapt.
        """
        request = scheduler.ChangeAdaptivePolicyRequest(action=action, reason=reason)
        answer = await self._ask(lambda channel: SchedulerServiceStub(channel).ChangeAdaptivePolicy, request)
        policy: policy_pb2.AdaptivePolicy = answer.policy
        return policy

    async def assess(self, collaboration_id: str, task_id: str, score: float, comment: str = "") -> str:
        """Say how good a task's result is, 0 to 1; return whose profile learns from it."""
        request = scheduler.AssessTaskRequest(
            collaboration_id=collaboration_id, task_id=task_id, score=score, comment=comment
        )
        answer = await self._ask(lambda channel: SchedulerServiceStub(channel).AssessTask, request)
        return str(answer.agent_id)

    async def _ask(self, method: Method, request: Any) -> Any:
        return await self._call("scheduler", method, request)
