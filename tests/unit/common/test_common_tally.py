"""A tally exposes what `prometheus_client`'s own histogram does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest

from services.common.metrics import Metrics

BOUNDS = (0.001, 0.5, 1, 30.0, 10_000.0)


def lines(metrics: Metrics) -> list[str]:
    exposed = generate_latest(metrics.registry).decode().splitlines()
    return [line for line in exposed if "wait_seconds" in line and "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(BOUNDS) | st.floats(0, 20_000))))
def test_a_tally_exposes_what_a_histogram_does(values: list[tuple[str, float]]) -> None:
    ours, theirs = Metrics("toy"), Metrics("toy")
    tally = ours.tally("wait_seconds", "Waiting.", BOUNDS, ("stage",))
    histogram = theirs.histogram("wait_seconds", "Waiting.", ("stage",), BOUNDS)
    for stage, value in values:
        tally.observe(value, stage)
        histogram.labels(stage).observe(value)
    assert lines(ours) == lines(theirs)


def test_a_tally_needs_no_labels() -> None:
    metrics = Metrics("toy")
    tally = metrics.tally("wait_seconds", "Waiting.", BOUNDS)
    for value in (0.5, 0.7, 99_999.0):
        tally.observe(value)
    assert metrics.value("wait_seconds_count") == 3
    assert metrics.value("wait_seconds_bucket", le="0.5") == 1
    assert metrics.value("wait_seconds_sum") == 0.5 + 0.7 + 99_999.0
