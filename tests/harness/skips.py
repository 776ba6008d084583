"""Where nothing may be missing, a test that skips itself has failed.

`.ci/run` sets MUSTER_TEST_SKIPS=fail: what is not installed or not allowed there would else look tested.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

VARIABLE = "MUSTER_TEST_SKIPS"

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test into its failure."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole file into an error."""
    return _judged((yield))


def _judged(report: Report) -> Report:
    # What is expected to fail counts as skipped, too, and misses nothing.
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(VARIABLE) == "fail":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, and {VARIABLE}=fail says that nothing may be missing here: {why}"
    return report
