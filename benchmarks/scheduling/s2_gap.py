"""Gap to the optimum that CP-SAT proves, on small workflows × {3, 8} agents.

The budget of a plan is one second of processor time. CP-SAT is told a makespan that can be reached, ours, so
that all its time goes into proving; where it proves nothing in its time, the gap to its bound is said apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure, Param
from benchmarks.scheduling import workflows
from benchmarks.scheduling.budget import cpu_seconds
from benchmarks.scheduling.cpsat import WORKERS, Solved, solve
from benchmarks.scheduling.kept import Kept, Values, fingerprint
from benchmarks.scheduling.options import Options
from benchmarks.scheduling.s1_makespan import PLANNERS
from benchmarks.scheduling.workflows import load_all, on_fleet
from benchmarks.turns import MissingPeerError, say
from services.scheduler.core.planning.lists import cpop, heft
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.search import plan
from services.scheduler.core.planning.validate import check

FLEETS, RATIOS, DRAWS = (3, 8), (0.1, 1.0), 2
SECONDS = 1.0
CPSAT_SECONDS, CPSAT_SECONDS_QUICK = 60.0, 5.0
SOURCES = (PLANNERS, Path(workflows.__file__))

#: What a case is kept under: figure, workflow, agents, ratio, draw, budget, code.
Key = tuple[str, str, int, float, int, float, str]


def run(options: Options) -> Iterator[Figure]:
    """Measure every case; with `quick` on one fleet each, and with little time for proofs."""
    draws = options.draws or (1 if options.quick else DRAWS)
    seconds = CPSAT_SECONDS_QUICK if options.quick else CPSAT_SECONDS
    cases = [
        (workflow, agents, ratio, draw)
        for workflow in load_all(options.data / "wfinstances-small")
        for agents in FLEETS
        for ratio in RATIOS
        for draw in range(draws)
    ]
    problems = [on_fleet(*case) for case in cases]
    budget_s = options.seconds or SECONDS
    keys = [("S2", case[0].name, *case[1:], budget_s, fingerprint(*SOURCES)) for case in cases]
    found = [
        options.kept.once(key, partial(_planned, problem, budget_s))
        for key, problem in zip(keys, problems, strict=True)
    ]
    ours = [int(one["makespan_ms"] or 0) for one in found]
    try:
        solved = _solved(options.kept, keys, list(zip(problems, ours, strict=True)), seconds)
    except MissingPeerError as error:
        say(f"CP-SAT is left out: {error}")
        return
    proved = [index for index, answer in enumerate(solved) if answer.is_optimal]
    optimum = {index: solved[index].makespan_ms or 0 for index in proved}
    shares = [ours[index] / optimum[index] for index in proved]
    open_gaps = [
        100 * (ours[index] / max(answer.bound_ms, int(found[index]["bound_ms"] or 0)) - 1)
        for index, answer in enumerate(solved)
        if not answer.is_optimal
    ]
    params: dict[str, Param] = {
        "cases": len(cases),
        "proved": len(proved),
        "optimal_percent": round(100 * sum(share <= 1 for share in shares) / max(1, len(shares)), 1),
        "gap_mean_percent": round(100 * (_mean(shares) - 1), 3),
        "gap_max_percent": round(100 * (max(shares, default=1.0) - 1), 2),
        "unproved_at_our_own_bound": sum(gap <= 0 for gap in open_gaps),
        "unproved_max_percent_to_bound": round(max(open_gaps, default=0.0), 2),
        "draws": draws,
        "cpu_seconds": budget_s,
        "cpsat_seconds": seconds,
        "cpsat_workers": WORKERS,
        "planner": keys[0][-1],
    }
    name = "makespan of the plan over the optimum, mean of the cases that CP-SAT proves"
    for peer, planner in (("HEFT", heft), ("CPOP", cpop)):
        others = [planner(problems[index]).makespan_ms / optimum[index] for index in proved]
        more = {**params, f"{peer}_gap_max_percent": round(100 * (max(others, default=1.0) - 1), 2)}
        yield Figure(
            "S2", name, _mean(shares), "of optimum", peer, _mean(others), more_is_better=False, params=more
        )


def _planned(problem: Problem, budget_s: float) -> Values:
    found = plan(problem, cpu_seconds(budget_s))
    check(problem, found.schedule)
    return {"makespan_ms": found.schedule.makespan_ms, "bound_ms": found.bound_ms}


def _solved(
    kept: Kept, keys: Sequence[Key], problems: Sequence[tuple[Problem, int]], seconds: float
) -> list[Solved]:
    """Return CP-SAT's answers, those that are kept and those that it has to look for."""
    # What it answers depends on the makespan that it is told.
    asked = [(*key, reached, seconds) for key, (_, reached) in zip(keys, problems, strict=True)]
    missing = [index for index, key in enumerate(asked) if kept.find(key) is None]
    answers = solve((problems[index] for index in missing), seconds)
    for index, answer in zip(missing, answers, strict=True):
        kept.keep(asked[index], answer._asdict())
    solved = []
    for key, (_, reached) in zip(asked, problems, strict=True):
        values = kept.find(key) or {}
        best = values["makespan_ms"]
        answer = Solved(
            None if best is None else int(best),
            int(values["bound_ms"] or 0),
            bool(values["is_optimal"]),
            float(values["seconds"] or 0),
        )
        solved.append(answer)
        kind, limit = ("optimum", best) if answer.is_optimal else ("bound", answer.bound_ms)
        say(f"{key[1]} × {key[2]}, {key[3]}, {key[4]}: {reached} ms, {kind} {limit} ms")
    return solved


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
