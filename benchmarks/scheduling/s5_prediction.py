"""Run times on a machine that was left out, from five others and its microbenchmarks; Lotaru beside it.

Each of the six machines in turn is unknown: its runs are predicted from those of the others and from the
benchmarks published with Lotaru. Asked for, as there, are the runs labelled "test". The error is the median
of |predicted - actual| / actual. The peers' predictions are the published ones (`pred_*.csv`), made from the
training runs of one machine (local). They had seen no input as large as those asked for; therefore a second
figure gives ours the training runs only, of which the same is true.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.figures import Figure
from benchmarks.scheduling.options import Options
from benchmarks.scheduling.transfer import Benchmarks, Run, Transfer
from benchmarks.turns import say

MACHINES = ("asok01", "c2", "local", "n1", "n2", "wally")
#: The published benchmarks of the types were filed under each other's names (py-lotaru, Scaler).
_FILED_AS = {"asok02": "asok01", "asok01": "asok02"}
PEERS = ("Lotaru-A", "Lotaru-G", "OnlineM", "OnlineP", "Naive")


class Score(NamedTuple):
    """What one way to predict got right."""

    error: float
    #: Share of runs inside their 80 % interval.
    coverage: float
    runs: int


def run(options: Options) -> Iterator[Figure]:
    """Measure ours on all six machines, and the published predictors on the five that they were run on."""
    folder = options.data / "lotaru"
    runs, benchmarks = load_runs(folder), load_benchmarks(folder)
    peers = published(folder)
    for name, error in peers.items():
        say(f"{name}: median error {error:.1%}, as published")
    for name, known in (
        ("all runs of the other machines", runs),
        ("training runs of the other machines only", [each for each in runs if not each.typical]),
    ):
        score = leave_one_out(runs, known, benchmarks)
        say(f"ours, {name}: median error {score.error:.1%}")
        for peer in ("Lotaru-A", "Lotaru-G", "OnlineM"):
            yield Figure(
                "S5",
                f"duration prediction, {name}: median error",
                100 * score.error,
                "%",
                peer,
                100 * peers[peer],
                more_is_better=False,
                params={"runs": score.runs, "machines": len(MACHINES)},
            )
        if known is not runs:
            # Intervals are made from how the largest inputs were missed elsewhere: here nobody has seen any.
            continue
        yield Figure(
            "S5",
            f"duration prediction, {name}: runs inside their 80 % interval",
            100 * score.coverage,
            "%",
            params={"runs": score.runs, "machines": len(MACHINES)},
        )


def leave_one_out(runs: list[Run], known: list[Run], benchmarks: Benchmarks) -> Score:
    """Predict the typical runs of each machine from what is known of the others."""
    errors: list[float] = []
    inside = 0
    for machine in MACHINES:
        transfer = Transfer(machine, known, benchmarks)
        own = []
        for each in runs:
            if each.machine != machine or not each.typical:
                continue
            expected = transfer.expect(each.task_type, each.size)
            if expected is None:
                continue
            own.append(abs(expected.mean_ms - each.duration_ms) / each.duration_ms)
            inside += expected.low_ms <= each.duration_ms <= expected.high_ms
        say(f"  {machine}: median error {median(own):.1%} of {len(own)} runs")
        errors += own
    return Score(median(errors), inside / len(errors), len(errors))


def load_runs(folder: Path) -> list[Run]:
    """Return every run of the data set; its type is workflow/task, its size that of the unpacked input."""
    return [
        Run(
            machine,
            f"{row['workflow']}/{row['task']}",
            max(float(row["taskinputsizeuncompressed"]), 1.0),
            float(row["realtime"]),
            row["label"] == "test",
        )
        for machine in MACHINES
        for path in sorted(folder.glob(f"{machine}__*.csv"))
        for row in _rows(path)
    ]


def load_benchmarks(folder: Path) -> Benchmarks:
    """Return the microbenchmarks as published: two scores of each machine, and small runs of each type."""
    scores = {
        row["node"]: (float(row["cpu_score"]), float(row["io_score"]))
        for row in _rows(folder / "bench_lotaru-g.csv")
    }
    most = [max(score[kind] for score in scores.values()) for kind in (0, 1)]
    slowness = {
        node: sum(top / score for top, score in zip(most, both, strict=True)) / 2
        for node, both in scores.items()
    }
    by_type = {
        (_FILED_AS.get(row["node"], row["node"]), f"{row['workflow']}/{row['task']}"): median(
            float(row[f"realtime{number}"]) for number in (1, 2, 3)
        )
        for row in _rows(folder / "bench_lotaru-a.csv")
    }
    return Benchmarks(slowness, by_type)


def published(folder: Path) -> dict[str, float]:
    """Return the median error of each published predictor over all machines that it was run on."""
    errors: dict[str, list[float]] = {name: [] for name in PEERS}
    for path in sorted(folder.glob("pred_*.csv")):
        for row in _rows(path):
            if row["Estimator"] in errors:
                errors[row["Estimator"]].append(
                    abs(float(row["Predicted"]) - float(row["Real"])) / float(row["Real"])
                )
    return {name: median(values) for name, values in errors.items()}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
