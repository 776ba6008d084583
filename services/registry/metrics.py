"""Every metric of the registry."""

from __future__ import annotations

import functools
from collections.abc import Callable

from services.common.metrics import SIZE_BUCKETS, Metrics
from services.registry.core.model import AgentState


class RegistryMetrics:
    """Made once per process."""

    def __init__(self, metrics: Metrics) -> None:
        self._instances = metrics.gauge("instances", "Instances by state, as committed.", ("state",))
        self._agents = metrics.gauge("agents", "Agents that ever registered.")
        self._sessions = metrics.gauge("sessions", "Live sessions that this replica times.")
        self._links = metrics.gauge("session_links", "Session streams with a session.")
        self._inbox = metrics.gauge("inbox_events", "Events that wait for the driver.")
        self.watchers = metrics.gauge("watchers", "WatchAgents streams that are open.")
        self.present = metrics.gauge("presence_lease_live", "1 while this replica's lease in etcd lives.")
        self.heartbeats = metrics.counter("heartbeats", "Heartbeats that renewed a lease.")
        self.operations = metrics.counter(
            "session_operations",
            "What happened to sessions, by operation and refusal.",
            ("operation", "reason"),
        )
        self.limits_reached = metrics.counter(
            "limits_reached", "Refusals because a bound was reached, by setting.", ("limit",)
        )
        self.changes = metrics.counter("changes", "Changes sent to the store, by outcome.", ("outcome",))
        self.commit_seconds = metrics.histogram("commit_seconds", "From a commit's start to its answer.")
        self.commit_changes = metrics.histogram(
            "commit_changes", "Changes that shared a commit.", buckets=SIZE_BUCKETS
        )
        self.step_events = metrics.histogram(
            "step_events", "Events taken in one turn of the driver.", buckets=SIZE_BUCKETS
        )

    def show(
        self,
        *,
        instances: Callable[[AgentState], int],
        agents: Callable[[], int],
        sessions: Callable[[], int],
        links: Callable[[], int],
        inbox: Callable[[], int],
    ) -> None:
        """Read these when somebody scrapes."""
        for state in AgentState:
            self._instances.labels(state.value).set_function(functools.partial(instances, state))
        self._agents.set_function(agents)
        self._sessions.set_function(sessions)
        self._links.set_function(links)
        self._inbox.set_function(inbox)
