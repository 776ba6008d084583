"""Every metric of the scheduler."""

from __future__ import annotations

from services.common.metrics import SIZE_BUCKETS, Metrics


class SchedulerMetrics:
    """Made once per process."""

    def __init__(self, metrics: Metrics) -> None:
        self.leading = metrics.gauge("leading", "1 while this replica leads.")
        self.epoch = metrics.gauge("epoch", "The newest leadership of this replica.")
        self.takeover_seconds = metrics.histogram(
            "takeover_seconds", "From winning the election to the first batch served."
        )
        self.batch_events = metrics.histogram(
            "batch_events", "Events in one batch.", buckets=(*SIZE_BUCKETS, 2_048)
        )
        self.step_seconds = metrics.histogram("step_seconds", "Deciding about one batch, placement included.")
        self.commit_seconds = metrics.histogram(
            "commit_seconds", "From a batch's first write to the last answer of store and audit outbox."
        )
        self.commit_writes = metrics.histogram(
            "commit_writes", "Values written by one commit.", buckets=(*SIZE_BUCKETS, 2_048, 4_096)
        )
        self.commit_failures = metrics.counter(
            "commit_failures", "Commits that were tried again, by reason.", ("reason",)
        )
        self.operations = metrics.counter(
            "operations", "What was done or refused, as in the audit log.", ("operation", "outcome")
        )
        self.queue_events = metrics.gauge("queue_events", "Events that wait for the next batch.")
        self.open_collaborations = metrics.gauge("open_collaborations", "Collaborations that have not ended.")
        self.open_tasks = metrics.gauge("open_tasks", "Tasks that have not ended.")
        self.waiting_tasks = metrics.gauge("waiting_tasks", "Ready tasks that wait for an agent.")
        self.retained_tasks = metrics.gauge("retained_tasks", "Tasks of ended collaborations still kept.")
        self.work_streams = metrics.gauge("work_streams", "Agent instances that are linked.")
        self.watchers = metrics.gauge("watchers", "Watch streams.")
        self.watch_gaps = metrics.counter("watch_gaps", "Times that a slow watcher missed events.")
