"""Plans a whole graph on a fleet: pure, deterministic, no clock.

    problem = Problem(duration_ms=..., dependencies=..., slots_from_ms=..., network=...)
    schedule = best_of_classics(problem)
    check(problem, schedule)            # the independent validator

`problem` says what is asked, `schedule` what is answered, `validate` whether the answer keeps every rule;
`lists` and `waves` are the classic heuristics, `portfolio` has them side by side.
"""
