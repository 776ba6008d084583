"""Requests for plans and what is found for them."""

from __future__ import annotations

from muster.scheduler.v1 import plan_pb2 as plan_pb

from services.common.core.errors import invalid
from services.scheduler.core.intake.outlook import Outlook
from services.scheduler.core.model import CollaborationSpec
from services.scheduler.core.planning.pareto import Found
from services.scheduler.wire import specs, values

_BUDGET_MS = 1_000
_BUDGET_MS_MAX = 30_000
_PLANS_MAX = 32


def plan_request(request: plan_pb.PlanCollaborationRequest) -> tuple[CollaborationSpec, int, int]:
    """Return (what is to be planned, budget in milliseconds, plans wanted); raises INVALID_FIELD."""
    if not request.HasField("collaboration"):
        raise invalid("collaboration", "is missing: say what is to be done")
    budget_ms = values.duration_ms(request.budget) if request.HasField("budget") else _BUDGET_MS
    if not 1 <= budget_ms <= _BUDGET_MS_MAX:
        raise invalid("budget", f"is {budget_ms} ms: choose 1 ms to {_BUDGET_MS_MAX // 1_000} s")
    if request.plan_max > _PLANS_MAX:
        raise invalid("plan_max", f"is {request.plan_max}: ask for at most {_PLANS_MAX}")
    spec = specs.collaboration_spec(request.collaboration, request.collaboration.tasks)
    return spec, budget_ms, request.plan_max or 1


def plan_response(spec: CollaborationSpec, view: Outlook, found: Found) -> plan_pb.PlanCollaborationResponse:
    """Return the answer."""
    response = plan_pb.PlanCollaborationResponse(tasks_ahead=view.tasks_ahead, schedules_tried=found.tried)
    values.put_duration(response.makespan_bound, found.bound_ms)
    for (objectives, schedule), critical in zip(found.choices, found.critical, strict=True):
        plan = response.plans.add(
            quality=objectives.quality,
            cost=objectives.cost,
            fairness=objectives.fairness,
            critical_tasks=(spec.tasks[task].task_id for task in critical),
        )
        values.put_duration(plan.makespan, objectives.makespan_ms)
        in_order = sorted(enumerate(schedule.slots), key=lambda item: (item[1].start_ms, item[0]))
        for task, slot in in_order:
            instance = view.instances[slot.agent]
            planned = plan.tasks.add(
                task_id=spec.tasks[task].task_id,
                agent_id=instance.agent_id,
                instance_id=instance.instance_id,
                slot=slot.slot,
            )
            values.put_duration(planned.start, slot.start_ms)
            values.put_duration(planned.end, slot.finish_ms)
    return response
