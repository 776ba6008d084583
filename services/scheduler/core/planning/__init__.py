"""Plans a whole graph on a fleet: pure, deterministic, no clock.

    problem = Problem(duration_ms=..., dependencies=..., slots_from_ms=..., network=...)
    found = plan(problem, steps(20_000), seed=1)   # or a budget of the caller's clock, see below
    check(problem, found.schedule)                 # the independent validator
    better = improve(problem, found.schedule, steps(20_000), seed=2)

`problem` says what is asked, `schedule` what is answered, `validate` whether the answer keeps every rule, and
`bounds` what no answer can beat. `lists` and `waves` are the classic heuristics, `portfolio` has them side by
side, `search` improves what they find and is never worse than the best of them.

A budget is a function of the steps done that returns the share that is spent. The search asks it before
every step, so whoever has a clock bounds its time with it, or ends it:
`lambda done: (clock.monotonic_ms() - begin_ms) / limit_ms`.
"""
