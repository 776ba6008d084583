"""Predicted durations: wide at first, right later, honest always."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.core.instants import Instant
from services.scheduler.core.prediction import predictor as predictor_module
from services.scheduler.core.prediction.cells import HALF_LIFE_MS, LearnedKey, Line
from services.scheduler.core.prediction.estimate import Estimate, make
from services.scheduler.core.prediction.predictor import Predictor

NOW = Instant(1_700_000_000_000)


def run(
    predictor: Predictor, agent: str, kind: str, actual: float, *, declared: int = 1_000, at: Instant = NOW
) -> Estimate:
    """Let one run end; return what had been expected."""
    return predictor.finished(agent, kind, declared, max(1, round(actual)), now=at, skill="work")


def width(estimate: Estimate) -> float:
    return math.log(estimate.high_ms / estimate.low_ms)


@given(st.integers(1, 30 * 24 * 3_600_000))
def test_what_nobody_ran_takes_as_long_as_declared_give_or_take_a_factor(declared_ms: int) -> None:
    estimate = Predictor().estimate("field-1", "survey", declared_ms)
    assert estimate.mean_ms == pytest.approx(declared_ms)
    assert estimate.observations == 0
    assert estimate.low_ms <= estimate.mean_ms <= estimate.high_ms
    if 10 < declared_ms < 10**8:
        assert width(estimate) > math.log(9)


def test_the_more_runs_the_narrower() -> None:
    predictor, chance = Predictor(), random.Random(1)
    widths = []
    for count in range(101):
        if count in (0, 3, 10, 100):
            widths.append(width(predictor.estimate("a", "t", 1_000)))
        run(predictor, "a", "t", math.exp(chance.gauss(8, 0.1)))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.5
    assert predictor.estimate("a", "t", 1_000).mean_ms == pytest.approx(math.exp(8), rel=0.1)


def test_a_new_agent_is_taken_for_an_average_one_and_a_known_one_for_itself() -> None:
    predictor = Predictor()
    for _ in range(40):
        run(predictor, "slow", "t", 4_000)
        run(predictor, "fast", "t", 1_000)
    slow, fast, new = (predictor.estimate(name, "t", 1_000) for name in ("slow", "fast", "new"))
    assert slow.mean_ms == pytest.approx(4_000, rel=0.1)
    assert fast.mean_ms == pytest.approx(1_000, rel=0.1)
    assert 1_500 < new.mean_ms < 2_700
    assert width(new) > width(slow)


def test_an_agent_that_is_slow_elsewhere_is_expected_to_be_slow_here() -> None:
    predictor = Predictor()
    for kind in ("t1", "t2", "t3", "t4"):
        for _ in range(20):
            run(predictor, "slow", kind, 3_000)
            run(predictor, "fast", kind, 1_000)
    for _ in range(20):
        run(predictor, "fast", "t5", 1_000)
        run(predictor, "other", "t5", 1_700)
    slow, new = predictor.estimate("slow", "t5", 1_000), predictor.estimate("new", "t5", 1_000)
    assert slow.mean_ms > 1.2 * new.mean_ms


def test_a_type_is_like_others_of_its_skill_while_it_is_new() -> None:
    predictor = Predictor()
    for kind in ("t1", "t2", "t3", "t4", "t5"):
        for _ in range(10):
            run(predictor, "a", kind, 10_000)
    alike = predictor.estimate("b", "new", 1_000, "work")
    unlike = predictor.estimate("b", "new", 1_000, "cooking")
    assert alike.mean_ms > 4_000
    assert unlike.mean_ms == pytest.approx(1_000)


def test_declared_durations_count_as_far_as_they_say_something() -> None:
    predictor, chance = Predictor(), random.Random(2)
    for _ in range(300):
        declared = round(math.exp(chance.uniform(6, 10)))
        run(predictor, "a", "telling", declared * 2 * math.exp(chance.gauss(0, 0.1)), declared=declared)
        run(predictor, "a", "mute", 5_000 * math.exp(chance.gauss(0, 0.1)), declared=declared)
    for declared in (500, 20_000):
        assert predictor.estimate("a", "telling", declared).mean_ms == pytest.approx(2 * declared, rel=0.15)
        assert predictor.estimate("a", "mute", declared).mean_ms == pytest.approx(5_000, rel=0.15)


def test_what_changed_is_followed_and_what_is_old_is_trusted_less() -> None:
    predictor = Predictor()
    for _ in range(200):
        run(predictor, "a", "t", 1_000)
    before = predictor.estimate("a", "t", 1_000)
    for _ in range(150):
        run(predictor, "a", "t", 3_000)
    assert predictor.estimate("a", "t", 1_000).mean_ms == pytest.approx(3_000, rel=0.15)
    later = Predictor()
    for _ in range(200):
        run(later, "a", "t", 1_000)
    run(later, "a", "t", 1_000, at=Instant(NOW + 6 * HALF_LIFE_MS))
    aged = later.estimate("a", "t", 1_000)
    assert aged.observations < before.observations / 10
    assert width(aged) > width(before)


def test_one_straggler_does_not_blur_the_rest() -> None:
    predictor, chance = Predictor(), random.Random(3)
    for _ in range(100):
        run(predictor, "a", "t", 1_000 * math.exp(chance.gauss(0, 0.1)))
    before = predictor.estimate("a", "t", 1_000)
    run(predictor, "a", "t", 100_000)
    for _ in range(8):
        run(predictor, "a", "t", 1_000)
    after = predictor.estimate("a", "t", 1_000)
    assert after.mean_ms < 1.3 * before.mean_ms
    assert width(after) < 1.6 * width(before)


@pytest.mark.parametrize("shape", ["normal", "heavy", "two kinds"])
def test_intervals_hold_what_they_promise(shape: str) -> None:
    """80 % of the runs fall into their interval, made before the run, whatever noise has the upper hand."""
    chance = random.Random(shape)
    shapes: dict[str, Callable[[], float]] = {
        "normal": lambda: chance.gauss(0, 0.4),
        "heavy": lambda: chance.gauss(0, 0.2) / max(chance.random(), 0.05),
        "two kinds": lambda: chance.choice((-0.8, 0.8)) + chance.gauss(0, 0.1),
    }
    draw = shapes[shape]
    predictor = Predictor()
    speeds = {f"agent-{number}": chance.gauss(0, 0.3) for number in range(8)}
    inside = 0
    for _ in range(3_000):
        agent = chance.choice([*speeds])
        actual = round(math.exp(8 + speeds[agent] + draw()))
        expected = run(predictor, agent, "t", actual)
        inside += expected.low_ms <= actual <= expected.high_ms
    assert 0.77 < inside / 3_000 < 0.83


def test_predictions_are_better_than_declarations() -> None:
    chance = random.Random(5)
    predictor = Predictor()
    usual = {f"t{number}": chance.gauss(8, 1) for number in range(5)}
    speed = {f"a{number}": chance.gauss(0, 0.4) for number in range(5)}
    missed, declared_missed = [], []
    for _ in range(2_000):
        kind, agent = chance.choice([*usual]), chance.choice([*speed])
        actual = math.exp(usual[kind] + speed[agent] + chance.gauss(0, 0.15))
        expected = run(predictor, agent, kind, actual)
        missed.append(abs(expected.mean_ms / actual - 1))
        declared_missed.append(abs(1_000 / actual - 1))
    assert median(missed[500:]) < 0.15
    assert median(missed[500:]) < median(declared_missed) / 4


@given(st.floats(0, 12), st.floats(0.01, 3), st.sampled_from([3.0, 5.5, 20.0, 60.0]))
def test_quantiles_grow_and_agree_with_the_interval(centre: float, spread: float, degrees: float) -> None:
    estimate = make(centre, spread, degrees, 1.0)
    points = [estimate.quantile(p) for p in (0.01, 0.1, 0.5, 0.9, 0.99)]
    assert points == sorted(points)
    assert points[1] == pytest.approx(estimate.low_ms, rel=1e-6)
    assert points[2] == pytest.approx(estimate.mean_ms, rel=1e-6)
    assert points[3] == pytest.approx(estimate.high_ms, rel=1e-6)


def test_success_quality_and_proficiency_are_learned_from_outcomes() -> None:
    predictor = Predictor()
    assert predictor.success("a", "t") == pytest.approx(0.9)
    for number in range(30):
        predictor.ended("good", "t", ("welding", "diving"), success=True, now=NOW)
        predictor.ended("bad", "t", ("welding",), success=number % 3 == 0, now=NOW)
        predictor.judged("good", "t", 0.6, NOW)
    assert (
        predictor.success("bad", "t") < 0.5 < predictor.success("new", "t") < predictor.success("good", "t")
    )
    mean, weight = predictor.quality("good", "t")
    assert mean == pytest.approx(0.62, abs=0.03)
    assert weight > 20
    a, b = predictor.proficiency("new", "welding", 0.5)
    assert a / (a + b) == pytest.approx(0.5)
    good, bad = predictor.proficiency("good", "welding", 0.5), predictor.proficiency("bad", "welding", 0.9)
    assert good[0] / sum(good) > 0.9 > 0.5 > bad[0] / sum(bad)
    assert sum(good) > a + b


def test_what_is_kept_is_all_that_matters() -> None:
    predictor, chance = Predictor(), random.Random(7)
    for _ in range(500):
        agent, kind = f"a{chance.randrange(4)}", f"t{chance.randrange(3)}"
        run(predictor, agent, kind, math.exp(chance.gauss(7, 1)), declared=chance.randrange(1, 9_000))
        predictor.ended(agent, kind, ("work",), success=chance.random() < 0.8, now=NOW)
    assert {key.kind for key in predictor.changed} == {"agents", "types"}
    heir = Predictor()
    heir.restore([(key, value) for key in predictor.changed if (value := predictor.value(key)) is not None])
    for agent in ("a0", "a3", "new"):
        for kind in ("t0", "t2", "new"):
            ours = Predictor.estimate(fresh(predictor), agent, kind, 700)
            assert heir.estimate(agent, kind, 700) == pytest.approx(ours)
            assert heir.success(agent, kind) == predictor.success(agent, kind)
    # Copies: what goes on being learned does not reach back.
    run(predictor, "a0", "t0", 99_999)
    assert heir.agents["a0"].pairs["t0"].count < predictor.agents["a0"].pairs["t0"].count


def fresh(predictor: Predictor) -> Predictor:
    """Return a predictor with the same knowledge and no estimate computed before."""
    other = Predictor()
    other.agents, other.types = predictor.agents, predictor.types
    return other


def test_nothing_grows_without_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (
        ("AGENTS_MAX", 5),
        ("TYPES_MAX", 7),
        ("TYPES_PER_AGENT_MAX", 3),
        ("SKILLS_PER_AGENT_MAX", 2),
    ):
        monkeypatch.setattr(predictor_module, name, most)
    monkeypatch.setattr(predictor_module, "_CACHE_MAX", 10)
    predictor = Predictor()
    for number in range(50):
        run(predictor, f"a{number % 9}", f"t{number % 11}", 1_000)
        predictor.ended(f"a{number % 9}", "t", (f"s{number}", f"r{number}"), success=True, now=NOW)
        predictor.estimate("x", f"t{number}", number + 1)
    assert len(predictor.agents) == 5
    assert len(predictor.types) == 7
    assert all(len(agent.pairs) <= 3 and len(agent.skills) <= 2 for agent in predictor.agents.values())
    assert len(predictor._cache) <= 10
    # What was dropped is to be deleted from the store: named, and without a value.
    dropped = [key for key in predictor.changed if predictor.value(key) is None]
    assert LearnedKey("agents", "a0") in predictor.changed
    assert len([key for key in dropped if key.kind == "agents"]) == 4


@given(st.lists(st.tuples(st.floats(0, 15), st.floats(0, 15)), min_size=2, max_size=30))
def test_a_line_without_decay_is_least_squares(points: list[tuple[float, float]]) -> None:
    line = Line()
    for declared, actual in points:
        line.add(declared, actual, 1.0)
    count = len(points)
    middle = sum(x for x, _ in points) / count
    level = sum(y for _, y in points) / count
    assert line.weight == count
    assert line.mean_declared == pytest.approx(middle, abs=1e-9)
    assert line.mean_actual == pytest.approx(level, abs=1e-9)
    assert line.declared_squares == pytest.approx(sum((x - middle) ** 2 for x, _ in points), abs=1e-6)
    assert line.products == pytest.approx(sum((x - middle) * (y - level) for x, y in points), abs=1e-6)


def test_what_is_learned_after_it_was_taken_for_the_store_is_to_be_kept_again() -> None:
    predictor = Predictor()
    run(predictor, "a", "t", 900)
    keys = [*predictor.changed]
    assert {key.name for key in keys} == {"a", "t"}
    for key in keys:
        del predictor.changed[key]
        predictor.value(key)
    # The same agent, type and instant: nothing may be skipped because it was done a moment ago.
    predictor.ended("a", "t", ("work",), success=True, now=NOW)
    assert [*predictor.changed] == keys


def test_runs_that_were_stopped_do_not_draw_predictions_to_the_short_side() -> None:
    dice, stop_ms = random.Random(7), 1_150
    taught, deaf = Predictor(), Predictor()
    for number in range(400):
        lasts_ms = round(1_000 * dice.lognormvariate(0, 0.4))
        for predictor in (taught, deaf):
            if lasts_ms <= stop_ms:
                predictor.finished("a", "survey", 1_000, lasts_ms, now=Instant(number))
        if lasts_ms > stop_ms:
            taught.stopped("a", "survey", 1_000, stop_ms, now=Instant(number))
    told, missed = (each.estimate("a", "survey", 1_000) for each in (taught, deaf))
    # A third of the runs never ended. The true median is 1,000 ms, the true spread 0.4.
    assert missed.mean_ms < 880
    assert told.mean_ms == pytest.approx(1_000, rel=0.07)
    assert told.spread > missed.spread


def test_a_run_stopped_before_its_median_says_nothing() -> None:
    predictor = Predictor()
    for number in range(20):
        predictor.finished("a", "survey", 1_000, 1_000, now=Instant(number))
    before = predictor.estimate("a", "survey", 1_000)
    predictor.stopped("a", "survey", 1_000, 900, now=Instant(30))
    assert predictor.estimate("a", "survey", 1_000) == before
