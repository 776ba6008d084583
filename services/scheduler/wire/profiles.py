"""An agent's profile, alerts and policies: model to proto."""

from __future__ import annotations

from muster.scheduler.v1 import alert_pb2 as alert_pb
from muster.scheduler.v1 import policy_pb2 as policy_pb
from muster.scheduler.v1 import profile_pb2 as profile_pb

from services.scheduler.core.monitoring.alerts import Alert
from services.scheduler.core.policies.adapting import PolicyView
from services.scheduler.core.prediction.cells import HALF_LIFE_MS, PAIR_KEEP
from services.scheduler.core.profiles import AgentProfile, Interval, TypeProfile
from services.scheduler.wire import values


def profile_message(found: AgentProfile) -> profile_pb.AgentProfile:
    """Return a profile as it goes to a reader."""
    message = profile_pb.AgentProfile(
        agent_id=found.agent_id, duration_factor=_interval(found.duration_factor), keep_ratio=PAIR_KEEP
    )
    values.put_time(message.learn_time, found.learned)
    values.put_duration(message.half_life, HALF_LIFE_MS)
    for skill in found.skills:
        message.skills.add(
            skill=skill.skill,
            declared_level=skill.declared_level,
            proficiency=_interval(skill.proficiency),
            outcomes=skill.outcomes,
            successes=skill.successes,
        )
    for row in found.types:
        _put_type(message.types.add(), row)
    for instance in found.links:
        link = message.links.add(
            instance_id=instance.key.instance_id,
            incarnation=instance.incarnation,
            linked=instance.stream is not None,
            draining=instance.draining,
            held=len(instance.held),
            free=instance.free,
        )
        values.put_time(link.hear_time, instance.heard)
    return message


def alert_message(alert: Alert) -> alert_pb.Alert:
    """Return one alert as it goes to a reader."""
    message = alert_pb.Alert(
        kind=alert.kind,  # type: ignore[arg-type]  # the numbers are the proto's
        subject=alert.subject,
        message=alert.message,
    )
    values.put_time(message.raise_time, alert.raise_time)
    values.put_time(message.clear_time, alert.clear_time)
    return message


def _put_type(message: profile_pb.TypeProfile, row: TypeProfile) -> None:
    message.task_type = row.task_type
    values.put_duration(message.predicted.mean, round(row.predicted.mean_ms))
    values.put_duration(message.predicted.low, round(row.predicted.low_ms))
    values.put_duration(message.predicted.high, round(row.predicted.high_ms))
    message.predicted.observations = row.predicted.observations
    values.put_duration(message.declared, row.declared_ms)
    values.put_duration(message.usual, round(row.usual_ms))
    message.success.CopyFrom(_interval(row.success))
    message.outcomes = row.outcomes
    if row.quality is not None:
        message.quality.CopyFrom(_interval(row.quality))
    message.judgements = row.judgements
    message.run_count = row.run_count
    values.put_time(message.last_time, row.last)
    message.coverage = row.coverage
    message.coverage_runs = row.coverage_runs


def _interval(value: Interval) -> profile_pb.Interval:
    return profile_pb.Interval(mean=value.mean, low=value.low, high=value.high)


def policy_message(view: PolicyView) -> policy_pb.AdaptivePolicy:
    """Return how policies are chosen."""
    if not view.arms:
        return policy_pb.AdaptivePolicy()
    message = policy_pb.AdaptivePolicy(enabled=True, frozen=view.frozen, default_policy=view.arms[0])
    for name, load in view.loads:
        row = message.loads.add(
            load=name,
            preferred_policy=load.preferred,
            explored_share=load.explored / load.chosen if load.chosen else 0.0,
        )
        for arm in view.arms:
            cell = load.arms[arm]
            low, high = cell.interval
            row.arms.add(
                policy=arm,
                mean=cell.mean,
                low=low,
                high=high,
                trials=cell.count,
                weight=cell.weight,
                pending=cell.pending,
                shut=cell.shut,
            )
    return message
