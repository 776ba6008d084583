"""Quantiles against values that others published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.core.prediction.distributions import (
    beta_cumulative,
    beta_quantile,
    normal_above,
    student_quantile,
)


@pytest.mark.parametrize(
    ("p", "degrees", "value"),
    # Abramowitz and Stegun, table 26.10.
    [(0.9, 1, 3.078), (0.9, 3, 1.638), (0.9, 10, 1.372), (0.975, 5, 2.571), (0.995, 60, 2.660)],
)
def test_students_t_agrees_with_the_tables(p: float, degrees: float, value: float) -> None:
    assert student_quantile(p, degrees) == pytest.approx(value, abs=6e-4)
    assert student_quantile(1 - p, degrees) == pytest.approx(-value, abs=6e-4)


def test_t_becomes_the_normal_distribution_and_has_its_middle_at_zero() -> None:
    assert student_quantile(0.9, 1e9) == pytest.approx(1.28155, abs=1e-4)
    assert student_quantile(0.9, 199.0) == pytest.approx(1.2858, abs=1e-3)
    assert student_quantile(0.5, 4.0) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("p", [0.0, 1.0, -1.0])
def test_there_is_no_quantile_beyond_the_ends(p: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        student_quantile(p, 5.0)


@given(st.floats(0.001, 0.999))
def test_beta_in_the_cases_with_a_closed_form(x: float) -> None:
    assert beta_cumulative(x, 1, 1) == pytest.approx(x)
    assert beta_cumulative(x, 3, 1) == pytest.approx(x**3)
    assert beta_cumulative(x, 1, 4) == pytest.approx(1 - (1 - x) ** 4)


@given(st.floats(0.01, 0.99), st.floats(0.2, 80), st.floats(0.2, 80))
def test_a_beta_quantile_is_the_inverse(p: float, a: float, b: float) -> None:
    assert beta_cumulative(beta_quantile(p, a, b), a, b) == pytest.approx(p, abs=1e-6)


def test_what_is_left_of_a_normal_above_a_score() -> None:
    # Half of it: mean sqrt(2 / pi), variance 1 - 2 / pi.
    assert normal_above(0.0) == pytest.approx((0.797885, 0.363380), abs=1e-6)
    assert normal_above(300.0) == pytest.approx((300.0, 0.0), abs=0.01)
