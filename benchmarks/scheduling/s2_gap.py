"""Gap to the optimum that CP-SAT proves, on small workflows × {3, 8} agents.

The budget of a plan is one second of processor time. CP-SAT is told a makespan that can be reached, ours, so
that all its time goes into proving; where it proves nothing in its time, the gap to its bound is said apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.figures import Figure, Param
from benchmarks.scheduling.budget import cpu_seconds
from benchmarks.scheduling.cpsat import WORKERS, Solved, solve
from benchmarks.scheduling.options import Options
from benchmarks.scheduling.workflows import load_all, on_fleet
from benchmarks.turns import MissingPeerError, say
from services.scheduler.core.planning.lists import cpop, heft
from services.scheduler.core.planning.search import plan
from services.scheduler.core.planning.validate import check

FLEETS, RATIOS, DRAWS = (3, 8), (0.1, 1.0), 2
SECONDS = 1.0
CPSAT_SECONDS, CPSAT_SECONDS_QUICK = 60.0, 5.0


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
    found = [plan(problem, cpu_seconds(budget_s)) for problem in problems]
    for problem, one in zip(problems, found, strict=True):
        check(problem, one.schedule)
    ours = [one.schedule.makespan_ms for one in found]
    solved: list[Solved] = []
    try:
        for (workflow, agents, ratio, draw), answer in zip(
            cases, solve(zip(problems, ours, strict=True), seconds), strict=True
        ):
            reached, limit = ours[len(solved)], answer.makespan_ms if answer.is_optimal else answer.bound_ms
            kind = "optimum" if answer.is_optimal else "bound"
            say(f"{workflow.name} × {agents}, {ratio}, {draw}: {reached} ms, {kind} {limit} ms")
            solved.append(answer)
    except MissingPeerError as error:
        say(f"CP-SAT is left out: {error}")
        return
    proved = [index for index, answer in enumerate(solved) if answer.is_optimal]
    optimum = {index: solved[index].makespan_ms or 0 for index in proved}
    shares = [ours[index] / optimum[index] for index in proved]
    open_gaps = [
        100 * (ours[index] / max(answer.bound_ms, found[index].bound_ms) - 1)
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
    }
    name = "makespan of the plan over the optimum, mean of the cases that CP-SAT proves"
    for peer, planner in (("HEFT", heft), ("CPOP", cpop)):
        others = [planner(problems[index]).makespan_ms / optimum[index] for index in proved]
        more = {**params, f"{peer}_gap_max_percent": round(100 * (max(others, default=1.0) - 1), 2)}
        yield Figure(
            "S2", name, _mean(shares), "of optimum", peer, _mean(others), more_is_better=False, params=more
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
