"""A skipped test is a failure where nothing may be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.skips import VARIABLE

ROOT = Path(__file__).parents[3]
SKIPPING = """
import pytest

@pytest.fixture
def tool():
    pytest.skip("no such tool")

def test_in_a_fixture(tool): ...

@pytest.mark.skipif(True, reason="another system")
def test_by_mark(): ...

@pytest.mark.xfail(reason="known")
def test_expected(): assert False

def test_fine(): ...
"""
SKIPPING_FILE = "import pytest\npytest.skip('nothing here', allow_module_level=True)\n"


def run(folder: Path, verdict: str) -> str:
    """Return the last line of a run of pytest, without anything of ours but this, over `folder`."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    environ = os.environ | {VARIABLE: verdict, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    options = ["-q", "-p", "tests.harness.skips", "--continue-on-collection-errors", "."]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=100, check=False
    )
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("verdict", "ending"),
    [("", "1 passed, 3 skipped, 1 xfailed"), ("fail", "1 passed, 1 xfailed, 3 errors")],
)
def test_a_skip_is_what_the_environment_says(tmp_path: Path, verdict: str, ending: str) -> None:
    (tmp_path / "test_tests.py").write_text(SKIPPING)
    (tmp_path / "test_file.py").write_text(SKIPPING_FILE)
    assert ending in run(tmp_path, verdict)


def test_ci_allows_no_skip() -> None:
    assert f"export {VARIABLE}=fail" in (ROOT / ".ci" / "run").read_text()
