"""Every knob of the scheduler: unit, default, reason."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.config import knob
from services.common.service_config import ServiceConfig
from services.scheduler.core.book import Settings
from services.scheduler.core.model import PolicyArm, PolicyWeights, Priority, SchedulingPolicy

_CORE = Settings()
#: The value of scheduling_policy that lets the outcome choose, and how much it may choose from.
ADAPTIVE = "ADAPTIVE"
ARMS_MAX = 8


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(ServiceConfig):
    """Settings of the scheduler service."""

    election_ttl_s: int = knob(
        3,
        "Lease of the leadership: a leader that falls silent is followed after this plus etcd's tick; one "
        "whose process dies, sooner.",
        unit="s",
    )
    reconnect_grace_ms: int = knob(
        _CORE.reconnect_grace_ms,
        "How long an agent whose link broke keeps its attempts; the price of a dead agent.",
        unit="ms",
    )
    takeover_grace_ms: int = knob(
        _CORE.takeover_grace_ms,
        "How long a new leader waits for agents to come back and name what they run. Longer than an agent "
        "needs to find out that a leader which was stopped, not killed, is silent; agents that are gone are "
        "known earlier, from the registry.",
        unit="ms",
    )
    gone_grace_ms: int = knob(
        _CORE.gone_grace_ms,
        "The same for agents that the registry calls gone: what took the leader down may have taken the "
        "registry's sessions with it.",
        unit="ms",
    )
    probe_interval_ms: int = knob(
        _CORE.probe_interval_ms, "How often an agent is asked for a sign of life.", unit="ms"
    )
    silence_ms_max: int = knob(
        _CORE.silence_ms_max, "A stream on which nothing came for this long is closed.", unit="ms"
    )
    lock_ttl_s: int = knob(
        15, "Lease of an instance's locks in etcd; must outlive a takeover, which renews it.", unit="s"
    )
    retention_ms: int = knob(
        _CORE.retention_ms, "How long an ended collaboration stays; then the audit log has it.", unit="ms"
    )
    retained_max: int = knob(_CORE.retained_max, "Ended collaborations that stay at most.")
    retained_task_max: int = knob(_CORE.retained_task_max, "Tasks of ended collaborations that stay at most.")
    open_collaboration_max: int = knob(
        _CORE.open_collaboration_max, "Collaborations that may be open; more are refused with QUOTA_EXCEEDED."
    )
    open_task_max: int = knob(_CORE.open_task_max, "Tasks that may be open; bounds memory and takeover time.")
    open_bytes_max: int = knob(
        _CORE.open_bytes_max, "Bytes of open specifications; etcd's own default limit is 2 GiB.", unit="bytes"
    )
    input_bytes_max: int = knob(
        _CORE.input_bytes_max, "Bytes of the results that one task may get as inputs.", unit="bytes"
    )
    history_max: int = knob(
        _CORE.history_max, "Changes of one collaboration that a watcher can resume from; then it gets a gap."
    )
    credit_max: int = knob(_CORE.credit_max, "Credits that one agent instance may have open.")
    loss_max: int = knob(
        _CORE.loss_max, "Attempts of one task that may be lost with their agents before it is given up."
    )
    wave_max: int = knob(_CORE.wave_max, "Tasks in one placement snapshot; larger batches take several.")
    scheduling_policy: str = knob(
        _CORE.policy.name,
        f"Policy of collaborations that name none: {', '.join(SchedulingPolicy.__members__)}; or ADAPTIVE: "
        "the one of adaptive_policies that served best, found out by trying within guard rails.",
    )
    adaptive_policies: str = knob(
        "PRIORITY,LEAST_LOADED,BEST_MATCH,MULTI_OBJECTIVE:finish_time=1",
        "What ADAPTIVE chooses from, the default first; weights of MULTI_OBJECTIVE may be given.",
    )
    requester_weights: str = knob(
        "", 'Fair shares between requesters, as "operator/admin=2,agent/a=0.5"; who is not named has 1.'
    )
    ageing_ms: int = knob(
        _CORE.ageing_ms, "From this wait on a task that is not EMERGENCY is served for its age.", unit="ms"
    )
    ageing_share: int = knob(
        _CORE.ageing_share, "An agent owes one start in so many to aged tasks; bounds how long they wait."
    )
    lock_request_max: int = knob(
        _CORE.lock_request_max, "Locks that the code of one instance may hold or wait for."
    )
    preempting_priority: str = knob(
        _CORE.preempting_priority.name,
        "The least urgent class whose ready tasks may take the slot of less urgent running work: "
        "EMERGENCY or HIGH.",
    )
    suspend_grace_ms: int = knob(
        _CORE.suspend_grace_ms, "How long an attempt that makes room may take to save and stop.", unit="ms"
    )
    savepoint_interval_ms: int = knob(
        _CORE.savepoint_interval_ms, "How often a savepoint of one task is written at most.", unit="ms"
    )
    speculation_share: float = knob(
        _CORE.speculation_share,
        "Share of the work done lately that second attempts beside slow ones may take; 0 for none.",
    )
    straggle_quantile: float = knob(
        _CORE.straggle_quantile, "Share of predicted durations after which an attempt counts as slow."
    )
    speculation_window_ms: int = knob(
        _CORE.speculation_window_ms, "Time constant in which work done fades from that account.", unit="ms"
    )
    plan_interval_ms: int = knob(
        _CORE.plan_interval_ms,
        "Between two searches for a better standing plan (policy PREDICTIVE), while tasks wait by it.",
        unit="ms",
    )
    plan_budget_ms: int = knob(
        _CORE.plan_budget_ms,
        "How long one such search takes, in a process of its own; 0 for none.",
        unit="ms",
    )
    registry_wait_ms: int = knob(
        2_000, "How long a new leader waits for the registry's first view before it serves.", unit="ms"
    )
    batch_events_max: int = knob(2_048, "Events in one batch: bounds the time between two commits.")
    queue_max: int = knob(8_192, "Events that wait for the next batch; then streams are not read.")
    audit_group_max: int = knob(
        128,
        "Operations of one commit that one audit entry records, at most 1,024: with more, readers of one are"
        " sent much that they did not ask for.",
    )
    submissions_max: int = knob(4_096, "Submissions of one stream that wait for their answer.")
    watcher_events_max: int = knob(
        4_096, "Events that wait for a slow watcher; then it gets a gap and a snapshot."
    )
    watchers_max: int = knob(1_024, "Watch streams at once.")
    drain_ms: int = knob(5_000, "How long calls may go on after a stop was asked for.", unit="ms")

    def __post_init__(self) -> None:
        """Check the settings; raises ValueError."""
        super().__post_init__()
        if self.preempting_priority not in ("EMERGENCY", "HIGH"):
            raise ValueError("preempting_priority must be EMERGENCY or HIGH")
        if not (0.0 <= self.speculation_share <= 1.0 and 0.5 <= self.straggle_quantile < 1.0):
            raise ValueError("speculation_share must be 0 to 1, straggle_quantile 0.5 to below 1")
        if self.probe_interval_ms * 2 > self.silence_ms_max:
            raise ValueError("silence_ms_max must be at least twice probe_interval_ms: one probe may be late")
        takeover_ms = self.election_ttl_s * 1_000 + self.registry_wait_ms
        if self.lock_ttl_s * 1_000 <= takeover_ms:
            raise ValueError(f"lock_ttl_s must be more than a takeover, about {takeover_ms} ms")
        for name in (
            "batch_events_max",
            "queue_max",
            "submissions_max",
            "watcher_events_max",
            "wave_max",
            "ageing_share",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not 1 <= self.audit_group_max <= 1_024:
            raise ValueError(f"audit_group_max must be 1 to 1,024, not {self.audit_group_max}")
        if self.scheduling_policy not in (*SchedulingPolicy.__members__, ADAPTIVE):
            known = ", ".join(SchedulingPolicy.__members__)
            raise ValueError(f"scheduling_policy must be one of {known}, {ADAPTIVE}")
        arms_of(self.adaptive_policies)
        _weights(self.requester_weights)

    @property
    def settings(self) -> Settings:
        """The numbers that the core depends on."""
        arms = arms_of(self.adaptive_policies) if self.scheduling_policy == ADAPTIVE else ()
        return Settings(
            reconnect_grace_ms=self.reconnect_grace_ms,
            takeover_grace_ms=self.takeover_grace_ms,
            gone_grace_ms=self.gone_grace_ms,
            probe_interval_ms=self.probe_interval_ms,
            silence_ms_max=self.silence_ms_max,
            retention_ms=self.retention_ms,
            retained_max=self.retained_max,
            retained_task_max=self.retained_task_max,
            open_collaboration_max=self.open_collaboration_max,
            open_task_max=self.open_task_max,
            open_bytes_max=self.open_bytes_max,
            input_bytes_max=self.input_bytes_max,
            history_max=self.history_max,
            credit_max=self.credit_max,
            loss_max=self.loss_max,
            wave_max=self.wave_max,
            lock_request_max=self.lock_request_max,
            preempting_priority=Priority[self.preempting_priority],
            suspend_grace_ms=self.suspend_grace_ms,
            savepoint_interval_ms=self.savepoint_interval_ms,
            speculation_share=self.speculation_share,
            straggle_quantile=self.straggle_quantile,
            speculation_window_ms=self.speculation_window_ms,
            policy=arms[0].policy if arms else SchedulingPolicy[self.scheduling_policy],
            arms=arms,
            plan_interval_ms=self.plan_interval_ms,
            plan_budget_ms=self.plan_budget_ms,
            requester_weights=_weights(self.requester_weights),
            ageing_ms=self.ageing_ms,
            ageing_share=self.ageing_share,
        )


def _weights(text: str) -> tuple[tuple[str, float], ...]:
    """Return what `requester_weights` says; raises ValueError."""
    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = item.partition("=")
        try:
            value = float(weight)
        except ValueError:
            value = 0.0
        if not name or not 0.0 < value <= 1_000_000.0:
            raise ValueError(f'requester_weights: {item!r} is not like "operator/admin=2"')
        found.append((name, value))
    return tuple(found)


def arms_of(text: str) -> tuple[PolicyArm, ...]:
    """Return what `adaptive_policies` says, at least one and at most `ARMS_MAX`; raises ValueError."""
    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, *given = item.split(":")
        weights = dict(each.partition("=")[::2] for each in given)
        if name not in SchedulingPolicy.__members__ or not set(weights) <= set(PolicyWeights._fields):
            raise ValueError(f'adaptive_policies: {item!r} is not like "MULTI_OBJECTIVE:finish_time=1"')
        try:
            values = {key: float(value) for key, value in weights.items()}
        except ValueError as error:
            raise ValueError(f"adaptive_policies: {item!r} has a weight that is no number") from error
        if not all(0.0 <= value <= 1_000.0 for value in values.values()):
            raise ValueError(f"adaptive_policies: {item!r} has a weight that is not 0 to 1000")
        found.append(PolicyArm(SchedulingPolicy[name], PolicyWeights(**values) if values else None))
    if not 1 <= len(found) <= ARMS_MAX or len(set(found)) < len(found):
        raise ValueError(f"adaptive_policies must be 1 to {ARMS_MAX} different policies")
    return tuple(found)
