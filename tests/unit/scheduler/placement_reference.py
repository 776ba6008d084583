"""Placement as the README says it, in the plainest way: what the fast one is compared with.

Everything is looked at anew for each decision: all ready tasks, all instances, all slots. Nothing is kept
from one decision to the next but the state itself, and no arrays are used. Only the parts of a score come
from the policies themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from services.common.core.instants import Instant
from services.scheduler.core.book import Book
from services.scheduler.core.course import Place, Task
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import Priority, SchedulingPolicy
from services.scheduler.core.placing.fairness import Account, dominant_share
from services.scheduler.core.placing.lanes import order_of
from services.scheduler.core.placing.matching import best_match
from services.scheduler.core.placing.placement import MATCHED_MAX, Demand
from services.scheduler.core.policies.base import Columns, Part, steps, total
from services.scheduler.core.policies.registry import POLICIES


class Chosen(NamedTuple):
    """One decision."""

    task: Task
    row: int
    aged: bool
    #: Of the winning slot.
    score: float
    #: The other agents that could have had it, best first, each once.
    others: tuple[int, ...]


class _Slot(NamedTuple):
    """In order of preference."""

    negative_steps: float
    turn: int
    row: int
    j: int
    score: float


class _Free:
    """The free slots for one demand, with what of them is asked for."""

    def __init__(self, book: Book, demand: Demand, rows: list[Instance]) -> None:
        self.demand = demand
        self.instances = rows
        self.count = sum(each.free for each in rows)
        self.wanted = 0
        self.slots = sorted(_slots(book, demand, rows))

    def owing(self, share: int) -> set[int]:
        return {each.row for each in self.instances if each.fresh_starts >= share - 1}


def decide(book: Book, task_max: int, now: Instant, above: Priority | None) -> list[Chosen]:
    """Return what one plan is to contain."""
    index = book.index
    everybody = [
        each for each in book.instances.values() if each.levels and each.free and each.row not in (-1,)
    ]
    waiting = [
        task
        for collaboration in book.collaborations.values()
        for task in collaboration.tasks.values()
        if task.place is Place.QUEUE
        and task.spec.gang is None
        # What PREDICTIVE lets wait is not asked for; what it lets start wishes for a row.
        and task.key not in book.foresight.waiting
    ]
    pools: dict[tuple[Demand, Priority], _Free] = {}
    shared: dict[Demand, _Free] = {}
    for task in waiting:
        key = (task.demand, task.priority)
        if key in pools:
            continue
        able = [each for each in everybody if _can(each, task.demand)]
        if not able:
            continue
        if index.withheld and task.priority is not Priority.EMERGENCY:
            able = [each for each in able if each.row not in index.withheld]
            if able:
                pools[key] = _Free(book, task.demand, able)
            continue
        if task.demand not in shared:
            shared[task.demand] = _Free(book, task.demand, able)
        pools[key] = shared[task.demand]
    turns = _turns(book, [task for task in waiting if (task.demand, task.priority) in pools], pools,
                   min(task_max, sum(each.free for each in everybody)), now, above)  # fmt: skip
    return _give(book, turns)


def _can(instance: Instance, demand: Demand) -> bool:
    return (
        all(instance.levels.get(skill, 0.0) > 0.0 for skill in demand.skills)
        and (not demand.agents or instance.key.agent_id in demand.agents)
        and all(
            instance.capacities.get(name, 0) - instance.used.get(name, 0) >= amount
            for name, amount in demand.needs
        )
    )


Turn = tuple[Task, _Free, bool]


def _turns(
    book: Book,
    waiting: list[Task],
    pools: dict[tuple[Demand, Priority], _Free],
    most: int,
    now: Instant,
    above: Priority | None,
) -> list[Turn]:
    turns: list[Turn] = []
    for priority in Priority:
        if priority is Priority.HIGH and above is not Priority.EMERGENCY:
            turns += _aged(book, waiting, pools, most - len(turns), now)
        if above is not None and priority >= above:
            break
        served = {task.key for task, _, aged in turns if aged}
        mine = [task for task in waiting if task.priority is priority]
        turns += _class(book, mine, pools, most - len(turns), served)
    return turns


def _aged(
    book: Book, waiting: list[Task], pools: dict[tuple[Demand, Priority], _Free], most: int, now: Instant
) -> list[Turn]:
    """Who waited too long: requesters take turns, and each demand, class and requester in order of age."""
    share, ageing_ms = book.settings.ageing_share, book.settings.ageing_ms
    old = [
        task
        for task in waiting
        if task.priority is not Priority.EMERGENCY
        and (task.ready_time or 0) + ageing_ms <= now
        and pools[task.demand, task.priority].owing(share)
    ]
    # A lane's line is what it is: nearly by age, and an entry that is too young ends it.
    lines: list[list[Task]] = []
    for lane in {id(task.lane): task.lane for task in old}.values():
        assert lane is not None
        live = [task for _, number, task in lane.line if number == task.queue_number]
        line = []
        for task in live:
            if (task.ready_time or 0) + ageing_ms > now:
                break
            line.append(task)
        if line:
            lines.append(line)
    last = {task.account: task.account.aged_turn for line in lines for task in line}
    step = max((number for _, number in last.values()), default=0)
    turns: list[Turn] = []
    while lines and len(turns) < most:
        line = min(
            lines,
            key=lambda each: (
                max(last[each[0].account][0], (each[0].ready_time or 0) + ageing_ms),
                last[each[0].account][1],
                each[0].ready_time,
                each[0].queue_number,
            ),
        )
        task = line.pop(0)
        turns.append((task, pools[task.demand, task.priority], True))
        step += 1
        last[task.account] = now, step
        lines = [each for each in lines if each]
    return turns


def _class(
    book: Book,
    waiting: list[Task],
    pools: dict[tuple[Demand, Priority], _Free],
    most: int,
    served: set[Any],
) -> list[Turn]:
    """Serve the tasks of one class: always the requester with the smallest dominant share."""
    totals = book.index.fleet.totals
    by_account: dict[Account, list[Task]] = {}
    for task in sorted(waiting, key=lambda each: (order_of(each), each.queue_number)):
        by_account.setdefault(task.account, []).append(task)
    held = {account: (account.held, dict(account.needs)) for account in by_account}
    turns: list[Turn] = []
    while by_account and len(turns) < most:
        account = min(
            by_account,
            key=lambda each: (
                dominant_share(held[each][0], held[each][1], each.weight, totals),
                order_of(by_account[each][0]),
            ),
        )
        tasks = by_account[account]
        while tasks:
            task = tasks[0]
            pool = pools[task.demand, task.priority]
            if pool.wanted >= pool.count:
                tasks[:] = [each for each in tasks if each.demand != task.demand]
                continue
            tasks.pop(0)
            if task.key in served:
                continue
            pool.wanted += 1
            turns.append((task, pool, False))
            number, needs = held[account]
            for name, amount in task.spec.needs:
                needs[name] = needs.get(name, 0) + amount
            held[account] = number + 1, needs
            break
        if not tasks:
            del by_account[account]
    return turns


def _give(book: Book, turns: list[Turn]) -> list[Chosen]:
    taken: dict[int, int] = {}
    spent: dict[tuple[int, str], int] = {}
    found: list[Chosen] = []
    number = 0
    while number < len(turns):
        task, pool, aged = turns[number]
        group = _group(turns, number)
        if len(group) > 1:
            found += _matched(group, taken)
            number += len(group)
            continue
        number += 1
        slot = next(
            (
                slot
                for slot in pool.slots
                if (aged or task.wish in (-1, slot.row))
                and _is_next(slot, taken, aged=aged, owing=pool.owing(book.settings.ageing_share))
                and _fits(book, slot.row, pool.demand, spent)
            ),
            None,
        )
        if slot is None:
            continue
        taken[slot.row] = slot.j + 1
        for name, amount in pool.demand.needs:
            spent[slot.row, name] = spent.get((slot.row, name), 0) + amount
        found.append(Chosen(task, slot.row, aged, slot.score, _others(pool, slot)))
    return found


def _is_next(slot: _Slot, taken: dict[int, int], *, aged: bool, owing: set[int]) -> bool:
    if aged:
        return slot.row in owing and slot.j == 0 and not taken.get(slot.row)
    return slot.j == taken.get(slot.row, 0)


def _fits(book: Book, row: int, demand: Demand, spent: dict[tuple[int, str], int]) -> bool:
    instance = book.index.fleet.instances[row]
    assert instance is not None
    return all(
        instance.capacities.get(name, 0) - instance.used.get(name, 0) - spent.get((row, name), 0) >= amount
        for name, amount in demand.needs
    )


def _group(turns: list[Turn], first: int) -> list[Turn]:
    group: list[Turn] = []
    for turn in turns[first : first + MATCHED_MAX]:
        task, pool, aged = turn
        policy = pool.demand.style.policy
        if aged or pool.demand.needs or policy is not SchedulingPolicy.BEST_MATCH:
            break
        if task.priority is not turns[first][0].priority:
            break
        group.append(turn)
    return group


def _matched(group: list[Turn], taken: dict[int, int]) -> list[Chosen]:
    choices = [
        [slot for slot in pool.slots if taken.get(slot.row, 0) <= slot.j][: len(group)]
        for _, pool, _ in group
    ]
    positions = best_match([[((each.row, each.j), each.score) for each in row] for row in choices])
    found = []
    for (task, pool, _), row, position in zip(group, choices, positions, strict=True):
        if position is not None:
            slot = row[position]
            taken[slot.row] = taken.get(slot.row, 0) + 1
            found.append(Chosen(task, slot.row, False, slot.score, _others(pool, slot)))
    return found


def _others(pool: _Free, won: _Slot) -> tuple[int, ...]:
    after = pool.slots[pool.slots.index(won) + 1 :]
    return tuple(dict.fromkeys(slot.row for slot in after if slot.row != won.row))


def _slots(book: Book, demand: Demand, instances: list[Instance]) -> Iterable[_Slot]:
    policy, weights = POLICIES[demand.style.policy], demand.style.weights
    estimate = book.index.pools.estimate
    style = demand.style
    times: list[float] | None = None
    if policy.predicts and estimate is not None:
        times = [
            max(1.0, estimate(each.key.agent_id, style.task_type, style.duration_ms, style.skill))
            for each in instances
        ]
    costs = [each.cost for each in instances]
    for number, instance in enumerate(instances):
        level = min(instance.levels[skill] for skill in demand.skills)
        held, free = len(instance.held), instance.free
        for j in range(free):
            columns: Any = (
                level,
                held,
                held + free,
                instance.turn,
                book.index.fleet.newest_turn,
                costs[number],
                None if times is None else times[number],
                j,
                min(costs),
                0.0 if times is None else min(times),
            )
            parts: tuple[Part, ...] = policy.parts(Columns(*columns), weights)
            score = float(total(parts))
            yield _Slot(-steps(score), instance.turn, instance.row, j, score)
