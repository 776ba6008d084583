"""Every metric of the broker."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Gauge

from services.broker.core.model import RouteKind
from services.broker.core.state import State
from services.broker.core.table import DeliveryInput
from services.common.metrics import SIZE_BUCKETS, Metrics


class BrokerMetrics:
    """Prometheus names begin with `muster_broker_`."""

    def __init__(self, metrics: Metrics) -> None:
        self.commit_seconds = metrics.histogram("commit_seconds", "From a commit's start to the disk.")
        self.commit_envelopes = metrics.histogram(
            "commit_envelopes", "Envelopes accepted by one commit.", buckets=(0, *SIZE_BUCKETS, 4_096, 16_384)
        )
        self.commit_failures = metrics.counter("commit_failures", "Commits that failed.", ("reason",))
        self.refused = metrics.counter("refused_envelopes", "Envelopes that were refused.", ("reason",))
        self.transitions = metrics.gauge(
            "delivery_transitions", "Inputs of the delivery table since the start.", ("input",)
        )
        self.pending_bytes = metrics.gauge("pending_bytes", "Bytes of unsettled envelopes.")
        self.dedup_bytes = metrics.gauge("dedup_bytes", "Memory of the dedupe windows.")
        self.mailboxes = metrics.gauge("mailboxes", "Mailboxes in memory.")
        self.domains = metrics.gauge("domains", "Order domains in memory.")
        self.streams = metrics.gauge("streams", "Open Mailbox streams.")
        self.subscriptions = metrics.gauge("subscriptions", "Subscriptions to topics.")
        self.routed = metrics.gauge(
            "routed_envelopes", "Envelopes accepted for receivers that were looked for.", ("kind",)
        )
        self.stored_bytes = metrics.gauge("stored_bytes", "Bytes of blocks that hold unsettled envelopes.")
        self.dead_letters_dropped = metrics.counter(
            "dead_letters_dropped", "Dead letters beyond their retention."
        )
        self.blocks_rewritten = metrics.counter("blocks_rewritten", "Blocks whose few live envelopes moved.")
        self.unrecorded = metrics.counter(
            "unrecorded_envelopes", "Envelopes without audit entries: the backlog was full."
        )
        self.leads = metrics.gauge("leads", "1 while the mailboxes are served by this process.")
        self._state: State | None = None
        self._read(self.pending_bytes, lambda state: state.pending_bytes)
        self._read(self.dedup_bytes, lambda state: state.dedup_bytes)
        self._read(self.mailboxes, lambda state: len(state.mailboxes))
        self._read(self.domains, lambda state: len(state.domains))
        self._read(self.streams, lambda state: len(state.streams))
        self._read(self.subscriptions, lambda state: len(state.topics))
        for kind in RouteKind:
            self._read(self.routed.labels(kind.value), _routed(kind))
        for given in DeliveryInput:
            self._read(self.transitions.labels(given.name.lower()), _count_of(given))

    def show(self, state: State) -> None:
        """Read the gauges from `state` from now on."""
        self._state = state

    def _read(self, gauge: Gauge, read: Callable[[State], int]) -> None:
        gauge.set_function(lambda: 0 if self._state is None else read(self._state))


def _routed(kind: RouteKind) -> Callable[[State], int]:
    return lambda state: state.routed[kind]


def _count_of(given: DeliveryInput) -> Callable[[State], int]:
    return lambda state: state.transitions[given]
