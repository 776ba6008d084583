"""Why a task is where it is: model to proto."""

from __future__ import annotations

from collections.abc import Iterable

from muster.scheduler.v1 import explanation_pb2 as explanation_pb

from services.scheduler.core.explain import Explanation, Fact
from services.scheduler.wire import values


def explanation_message(found: Explanation) -> explanation_pb.TaskExplanation:
    """Return an explanation as it goes to a reader."""
    task = found.task
    message = explanation_pb.TaskExplanation(
        collaboration_id=task.key.collaboration_id,
        task_id=task.key.task_id,
        state=task.state,  # type: ignore[arg-type]  # the numbers are the proto's
        priority=_parts(found.priority),
        analysis=_parts(found.analysis),
        scheduling_policy=found.policy,  # type: ignore[arg-type]  # the numbers are the proto's
        chosen_because=found.chosen_because,
        waiting_for=found.waiting_for,
        candidate_count=found.candidate_count,
        free_count=found.free_count,
    )
    for view in found.candidates:
        message.candidates.add(
            agent_id=view.instance.agent_id,
            instance_id=view.instance.instance_id,
            score=view.score,
            parts=(
                explanation_pb.ScorePart(name=name, value=value, weight=weight)
                for name, value, weight in view.parts
            ),
            obstacle=view.obstacle,
        )
    values.put_time(message.predicted_end_time, found.predicted_end)
    values.put_time(message.deadline, task.deadline)
    return message


def _parts(facts: Iterable[Fact]) -> Iterable[explanation_pb.ExplanationPart]:
    return (
        explanation_pb.ExplanationPart(name=fact.name, value=fact.value, meaning=fact.meaning)
        for fact in facts
    )
