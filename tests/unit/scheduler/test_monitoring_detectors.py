"""Detectors: what they must find, and how seldom they may be wrong (false alarms, counted from seeds)."""

from __future__ import annotations

import math
import random

import pytest

from services.common.core.instants import Instant
from services.scheduler.core.monitoring.alerts import CLEARED_MAX, STANDING_MAX, AlertKind, Alerts
from services.scheduler.core.monitoring.detectors import (
    FLAP_COUNT,
    FLAP_WINDOW_MS,
    QUEUE_SAMPLES,
    STUCK_MS_MIN,
    DriftCounter,
    LinkCounter,
    queue_grows,
    stuck_after_ms,
)
from services.scheduler.core.prediction.predictor import Predictor

NOW = Instant(1_700_000_000_000)


@pytest.mark.parametrize(("heavy", "share"), [(False, 0.0002), (True, 0.0025)])
def test_a_run_that_is_merely_long_is_no_stuck_one(heavy: bool, share: float) -> None:
    """Healthy runs that count as stuck: 2 of 10,000 log-normal ones, 25 with the tail of Student's t."""
    chance = random.Random(1)
    predictor = Predictor()
    stuck = 0
    for _ in range(20_000):
        # Longer than the floor below which nothing counts.
        tail = math.sqrt(5 / chance.gammavariate(2.5, 2)) if heavy else 1.0
        actual = round(60_000 * math.exp(chance.gauss(0, 0.3) * tail))
        stuck += actual > stuck_after_ms(predictor.estimate("a", "t", 60_000))
        predictor.finished("a", "t", 60_000, actual, now=NOW)
    assert stuck / 20_000 <= share
    # And what really hangs is found before it has taken ten times as long as usual.
    assert stuck_after_ms(predictor.estimate("a", "t", 60_000)) < 10 * 60_000


def test_short_work_has_a_floor() -> None:
    predictor = Predictor()
    for _ in range(100):
        predictor.finished("a", "t", 10, 10, now=NOW)
    assert stuck_after_ms(predictor.estimate("a", "t", 10)) == STUCK_MS_MIN


def test_an_agent_that_reconnects_now_and_then_does_not_flap() -> None:
    """A link that breaks by chance every half hour: at most one alarm in a year of agents' time."""
    chance = random.Random(2)
    counter, at, alarms = LinkCounter(), 0.0, 0
    year_ms = 365 * 24 * 3_600_000
    while at < year_ms:
        at += chance.expovariate(1 / 1_800_000)
        alarms += counter.add(Instant(round(at))) == FLAP_COUNT
    # Poisson: 17,520 links, each the fifth within ten minutes with probability 0.0003.
    assert alarms <= 10


def test_a_link_that_comes_and_goes_flaps_until_it_rests() -> None:
    counter = LinkCounter()
    counts = [counter.add(Instant(NOW + second * 1_000)) for second in range(0, 50, 10)]
    assert counts == [1, 2, 3, 4, 5]
    assert counter.count(Instant(NOW + FLAP_WINDOW_MS + 60_000)) == 0


def queue_of(load: float, seed: int, looks: int, *, servers: int = 50) -> list[int]:
    """Return samples of a queue whose arrivals are `load` times what its servers do, by chance."""
    chance = random.Random(seed)
    waiting, samples = 0, []
    for _ in range(looks):
        for _ in range(5):
            arrived = round(max(0.0, chance.gauss(load * servers, math.sqrt(load * servers))))
            waiting = max(0, waiting + arrived - servers)
        samples.append(waiting)
    return samples


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
def test_a_queue_that_keeps_up_is_no_growing_one(load: float) -> None:
    """At most 1 of 1,000 looks at a queue that keeps up raises an alarm, up to 95 % load."""
    alarms = looks = 0
    for seed in range(10):
        samples = queue_of(load, seed, 1_000)
        for end in range(QUEUE_SAMPLES, len(samples)):
            looks += 1
            alarms += queue_grows(samples[end - QUEUE_SAMPLES : end])
    assert alarms / looks <= 0.001


def test_a_queue_that_falls_behind_is_found_within_three_minutes() -> None:
    for seed in range(50):
        samples = queue_of(1.3, seed, 36)
        assert any(queue_grows(samples[end - QUEUE_SAMPLES : end]) for end in range(QUEUE_SAMPLES, 37))


def test_a_queue_that_was_full_and_a_short_one_do_not_grow() -> None:
    assert not queue_grows([500] * QUEUE_SAMPLES)
    assert not queue_grows([*range(QUEUE_SAMPLES)][:-1])
    assert not queue_grows([*range(0, 2 * QUEUE_SAMPLES, 2)][::-1])


def test_predictions_that_are_right_on_average_do_not_drift() -> None:
    """At most one alarm in 10,000 runs of honest predictions, heavy tails included."""
    alarms = runs = 0
    for seed in range(5):
        chance = random.Random(seed)
        counter, predictor, standing = DriftCounter(), Predictor(), False
        for _ in range(10_000):
            actual = max(1, round(math.exp(8 + chance.gauss(0, 0.4))))
            counter.add(predictor.finished("a", "t", 3_000, actual, now=NOW).score(actual))
            runs += 1
            if counter.drifting and not standing:
                alarms += 1
            standing = counter.drifting or (standing and not counter.settled)
    assert alarms / runs <= 1 / 10_000


@pytest.mark.parametrize(("before", "after"), [(2_000, 6_000), (6_000, 2_000)])
def test_a_change_of_what_work_takes_is_found_within_twenty_runs(before: int, after: int) -> None:
    chance = random.Random(3)
    counter, predictor = DriftCounter(), Predictor()

    def run(usual: int) -> None:
        actual = round(usual * math.exp(chance.gauss(0, 0.3)))
        counter.add(predictor.finished("a", "t", 2_000, actual, now=NOW).score(actual))

    for _ in range(200):
        run(before)
    assert counter.settled
    alarms = []
    for _ in range(20):
        run(after)
        alarms.append(counter.drifting)
    assert any(alarms)
    # The predictor follows, and the alarm ends.
    for _ in range(300):
        run(after)
    assert counter.settled


def test_alerts_are_bounded_and_said_once() -> None:
    alerts = Alerts()
    for number in range(STANDING_MAX + 7):
        assert (alerts.put(AlertKind.STUCK_TASK, f"task/{number}", "", NOW) is None) == (
            number >= STANDING_MAX
        )
    assert alerts.overflow_count == 7
    assert alerts.put(AlertKind.STUCK_TASK, "task/3", "again", NOW) is None
    for number in range(300):
        assert alerts.clear(AlertKind.STUCK_TASK, f"task/{number}", NOW) is not None
    assert alerts.clear(AlertKind.STUCK_TASK, "task/3", NOW) is None
    shown = [*alerts.newest_first(include_cleared=True)]
    assert len(shown) == STANDING_MAX - 300 + CLEARED_MAX
    assert shown[0].subject == f"task/{STANDING_MAX - 1}"
    assert [*alerts.newest_first(include_cleared=False)] == shown[: STANDING_MAX - 300]
