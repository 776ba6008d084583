"""Random divisions of a fleet between requesters, by the scheduler's own order, and what must hold of them.

Each case has a few requesters with endless tasks of one shape each, and one pot of slots and capacities. The
tasks are served by `core.serving.serve` until nobody's next one fits. What Ghodsi et al. (NSDI 2011) prove
for divisible tasks holds here up to one task, since tasks are whole:

- sharing incentive: nobody has less than in its own 1/n-th of the fleet;
- envy-freeness: nobody would rather have what another one got;
- Pareto efficiency: nobody could get one more task without taking one from another;
- strategy-proofness: who asks for more than it needs does not get more done, but for one task and for what
  one task of each of the others takes: a lie may let the last round end before or after them. (No rule for
  whole tasks is Pareto efficient, free of envy up to one of them, and strategy-proof: Parkes, Procaccia and
  Shah, "Beyond dominant resource fairness", 2015.)
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

from services.common.core.instants import NEVER
from services.scheduler.core.model import Priority
from services.scheduler.core.placing.fairness import Account, Totals, dominant_share
from services.scheduler.core.placing.lanes import Lane
from services.scheduler.core.placing.serving import Asking, serve

SLOTS = "slots"


@dataclass(frozen=True, slots=True)
class Case:
    """A pot, and what one task of each requester takes of it."""

    pot: dict[str, int]
    shapes: tuple[dict[str, int], ...]


def draw(random: Random) -> Case:
    """Return a random case: 2 to 5 requesters, 1 to 3 things to share."""
    names = [SLOTS, "cpu", "memory"][: random.randint(1, 3)]
    pot = {name: random.randint(10, 60) for name in names}
    shapes = []
    for _ in range(random.randint(2, 5)):
        shape = {name: random.randint(0, max(1, pot[name] // 8)) for name in names}
        shape[SLOTS] = 1
        shapes.append(shape)
    return Case(pot, tuple(shapes))


def divide(case: Case, declared: tuple[dict[str, int], ...] | None = None) -> list[int]:
    """Return how many tasks each requester gets; `declared` is what they say that a task takes."""
    shapes = declared or case.shapes
    totals = Totals()
    totals.slots = case.pot[SLOTS]
    totals.capacities = {name: amount for name, amount in case.pot.items() if name != SLOTS}
    left = dict(case.pot)
    accounts = [Account(f"agent/{number}") for number in range(len(shapes))]
    offers: dict[Account, Lane] = {}
    for number, (account, shape) in enumerate(zip(accounts, shapes, strict=True)):
        lane = Lane(Priority.NORMAL, account, SimpleNamespace(wanted=0, slots=1))
        needs = tuple((name, amount) for name, amount in sorted(shape.items()) if name != SLOTS and amount)
        task: Any = SimpleNamespace(
            due=NEVER,
            rank_ms=0,
            arrival=number,
            ready_time=0,
            queue_number=1,
            spec=SimpleNamespace(needs=needs),
        )
        task.owner = number
        task.lane = lane
        lane.add(task, 1)
        offers[account] = lane
    counts = [0] * len(shapes)
    while offers:
        for lane in offers.values():
            lane.queue.wanted = 0
        asking = Asking(offers, lambda account: [offers[account]], lambda pool: pool)
        [(task, _, _)] = serve(asking, totals, 1)
        number = task.owner
        shape = shapes[number]
        if any(left[name] < amount for name, amount in shape.items()):
            del offers[accounts[number]]
            continue
        for name, amount in shape.items():
            left[name] -= amount
        accounts[number].take((name, amount) for name, amount in shape.items() if name != SLOTS and amount)
        counts[number] += 1
    return counts


def violations(case: Case, random: Random) -> list[str]:
    """Return which properties a case breaks; none is expected."""
    counts = divide(case)
    shapes, pot = case.shapes, case.pot
    found = []
    people = range(len(shapes))
    used = {name: sum(counts[i] * shapes[i][name] for i in people) for name in pot}
    if any(used[name] > pot[name] for name in pot):
        found.append("more was given than there is")
    for i in people:
        if all(used[name] + shapes[i][name] <= pot[name] for name in pot):
            found.append(f"not Pareto efficient: one more task of {i} fits")
        alone = min(pot[name] // len(shapes) // shapes[i][name] for name in pot if shapes[i][name])
        # Up to one task of anybody's: the last one that was served may be what is missing.
        if counts[i] < alone and _share(case, i, counts[i]) + _granularity(case) < _share(case, i, alone):
            found.append(f"no sharing incentive: {i} has {counts[i]}, alone it would have {alone}")
        for j in people:
            if i == j:
                continue
            bundle = {name: counts[j] * shapes[j][name] for name in pot}
            swapped = min(bundle[name] // shapes[i][name] for name in pot if shapes[i][name])
            gain = _share(case, i, swapped) - _share(case, i, counts[i])
            if swapped > counts[i] + 1 and gain > _granularity(case):
                found.append(f"envy: {i} has {counts[i]} and would have {swapped} with what {j} got")
    liar = random.randrange(len(shapes))
    lie = {
        name: amount + (random.randint(0, 3) if name != SLOTS else 0) for name, amount in shapes[liar].items()
    }
    declared = tuple(lie if number == liar else shape for number, shape in enumerate(shapes))
    lied = divide(case, declared)[liar]
    others = {name: sum(shapes[j][name] for j in people if j != liar) for name in pot}
    let_go = min(others[name] // shapes[liar][name] for name in pot if shapes[liar][name])
    if lied > counts[liar] + 1 + let_go:
        found.append(f"not strategy-proof: {liar} gets {lied} instead of {counts[liar]} by a lie")
    return found


def _share(case: Case, number: int, count: int) -> float:
    totals = Totals()
    totals.slots = case.pot[SLOTS]
    totals.capacities = {name: amount for name, amount in case.pot.items() if name != SLOTS}
    needs = {name: count * amount for name, amount in case.shapes[number].items() if name != SLOTS}
    return dominant_share(count, needs, 1.0, totals)


def _granularity(case: Case) -> float:
    """Return the largest dominant share of one task: how far from divisible the case is."""
    return max(_share(case, number, 1) for number in range(len(case.shapes)))
