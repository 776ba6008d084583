"""Every metric of the audit service."""

from __future__ import annotations

from services.common.metrics import Metrics

# Entries in one commit or one checkpoint.
_COUNT_BUCKETS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536)


class AuditMetrics:
    """Made once per process."""

    def __init__(self, metrics: Metrics) -> None:
        self.appended = metrics.counter(
            "appended_entries", "Entries made durable, by producing service.", ("service",)
        )
        self.refused = metrics.counter(
            "refused_frames", "Frames that were not logged, by reason.", ("reason",)
        )
        self.commit_seconds = metrics.histogram("commit_seconds", "From a commit's start to the disk.")
        self.commit_entries = metrics.histogram(
            "commit_entries", "Entries in one commit.", buckets=_COUNT_BUCKETS
        )
        self.integration_seconds = metrics.histogram(
            "integration_seconds", "From the hashing of new entries to their durable checkpoint."
        )
        self.integration_failures = metrics.counter(
            "integration_failures", "Checkpoints that could not be made durable at the first try."
        )
        self.release_failures = metrics.counter(
            "release_failures", "Times that old journal segments could not be removed."
        )
        self.tree_size = metrics.gauge("tree_size_entries", "Entries under the newest checkpoint.")
        self.pending = metrics.gauge(
            "pending_bytes", "Bytes of entries that are durable and not yet under one."
        )
        self.indexed = metrics.gauge("indexed_entries", "Entries that queries can find.")
        self.index_failures = metrics.counter(
            "index_failures", "Times that the index could not take entries."
        )
        self.tails = metrics.gauge("tail_streams", "Tail streams that are open.")
        self.unrecorded = metrics.counter(
            "unrecorded_entries", "Entries of the audit service itself that could not be logged."
        )
        self.limits_reached = metrics.counter(
            "limits_reached",
            "Times that a bound made somebody wait, or refused or forgot something.",
            ("limit",),
        )
