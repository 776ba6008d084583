"""`python -m benchmarks.compare COMMIT NAME`: run a benchmark on another commit and on this tree, in turn.

The other commit is checked out beside (git worktree) with this tree's `benchmarks` laid over it, so that both
are measured by the same programs. Prints one JSON line per figure, the other commit's value as the peer's:
a ratio above 1 means that this tree is better.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Runs
from benchmarks.machine import commit, machine
from benchmarks.programs import ROOT
from benchmarks.turns import say

_RUN_SECONDS_MAX = 600.0

# (id, name of the figure) -> its values, and the last of its documents.
Found = dict[tuple[str, str], tuple[list[float], dict[str, Any]]]


def main() -> int:
    """Compare; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("name", help="a benchmark; see python -m benchmarks --help")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side (default %(default)s)")
    options = parser.parse_args()
    load_average = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(prefix="muster-compare-") as folder:
        other = Path(folder) / "tree"
        _git("worktree", "add", "--detach", "--quiet", str(other), options.commit)
        try:
            shutil.rmtree(other / "benchmarks")
            shutil.copytree(ROOT / "benchmarks", other / "benchmarks")
            theirs: Found = {}
            ours: Found = {}
            for run in range(1, options.runs + 1):
                for tree, found, what in ((other, theirs, options.commit), (ROOT, ours, "this tree")):
                    say(f"run {run}/{options.runs}: {what}")
                    _measure(tree, options.name, found)
            where = machine(Path(folder))
        finally:
            _git("worktree", "remove", "--force", str(other))
    for key, (values, document) in ours.items():
        if key in theirs:
            print(_figure(document, Runs(tuple(values)), theirs[key][0], options.commit, load_average).line(
                where, commit()
            ))  # fmt: skip
    return 0


def _measure(tree: Path, name: str, found: Found) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "proto" / "gen")])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--runs", "1"],
        cwd=tree, env=environ, stdout=subprocess.PIPE, text=True, timeout=_RUN_SECONDS_MAX, check=True,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        document = json.loads(line)
        values, _ = found.get((document["id"], document["name"]), ([], {}))
        found[document["id"], document["name"]] = [*values, document["value"]], document


def _figure(
    document: dict[str, Any], ours: Runs, theirs: list[float], other: str, load_average: float
) -> Figure:
    return Figure(
        document["id"],
        document["name"],
        ours.median,
        document["unit"],
        other,
        Runs(tuple(theirs)).median,
        more_is_better=document["unit"].endswith("/s"),
        params={**ours.spread, "load_average_1m": load_average},
    )


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
