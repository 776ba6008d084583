"""Waves: thousands of tasks at once by arrays decide what the plain reference decides one by one."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.course import Task
from services.scheduler.core.events import AgentsChanged, AgentView, InstanceView, StreamId, WorkFrame
from services.scheduler.core.model import Priority, SchedulingPolicy
from services.scheduler.core.placing import index, roster, wave
from services.scheduler.core.placing.fairness import Account, Totals, dominant_share
from services.scheduler.core.placing.filling import Held, Room, fill
from services.scheduler.core.placing.lanes import order_of
from tests.unit.scheduler.placement_compared import Compared
from tests.unit.scheduler.scheduler_stage import Stage, task
from tests.unit.scheduler.scheduler_world import SeededChooser, World

SKILLS = ["dig", "fly", "see", "swim"]
NEEDS = ((("gpu", 1),), (("gpu", 2),), (("gpu", 1), ("mem", 2)), (("mem", 1),))
POLICIES = (SchedulingPolicy.PRIORITY, SchedulingPolicy.ROUND_ROBIN, SchedulingPolicy.LEAST_LOADED)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compared:
    """Compare every plan of this test."""
    return Compared(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch, random: Random) -> None:
    """Make a wave of what is free at a few instances already, and let each of its bounds be met."""
    monkeypatch.setattr(index, "_FEW_ROWS", random.choice((0, 0, 2)))
    monkeypatch.setattr(wave, "_TOGETHER", random.choice((1, 7, 32_768)))
    monkeypatch.setattr(wave, "_LOOK", random.choice((1, 3, 1_024)))
    monkeypatch.setattr(wave, "_LISTED", random.choice((1, 2, 32)))
    monkeypatch.setattr(wave, "_AHEAD", random.choice((0, 8)))
    monkeypatch.setattr(wave, "_BY_OTHERS", random.choice((0.0, 0.75)))
    monkeypatch.setattr(wave, "_DEPTH", random.choice((1.0, 3.0)))
    monkeypatch.setattr(wave, "_BITS", random.choice((0, 63)))
    monkeypatch.setattr(roster, "_SEATS_MIN", random.choice((1, 20, 1_024)))


def one_fleet(random: Random) -> None:
    """Play a fleet with a long queue whose agents offer many slots at once."""
    settings = Settings(
        policy=random.choice(POLICIES),
        wave_max=random.choice((5, 30, 8_192)),
        ageing_ms=random.choice((500, 60_000, 60_000)),
        speculation_share=0.0,
        requester_weights=(("agent/q0", 2.5), ("agent/q1", 0.3)),
    )
    stage = Stage(settings, validate=False)
    skills = SKILLS[: random.choice((1, 2, 4))]
    streams: dict[str, StreamId] = {}
    for number in range(random.choice((2, 5, 15))):
        known = [Skill(each) for each in random.sample(skills, random.randint(1, len(skills)))]
        levels = tuple((each, random.choice((0.25, 0.5, 1.0, random.random()))) for each in known)
        capacities = (("gpu", random.choice((1, 2, 5))), ("mem", random.choice((2, 7))))
        view = InstanceView(InstanceId("0"), 1, False, levels, capacities if random.random() < 0.6 else ())
        agent = AgentView(AgentId(f"a{number}"), frozenset(known), (view,))
        stage.batch(AgentsChanged("agents", 0.5, (agent,)))
        streams[f"a{number}"] = stage.link(f"a{number}", slots=0)
    for turn in range(6):
        stage.now = Instant(stage.now + random.choice((0, 300)))
        for number in range(random.choice((1, 4, 10))):
            tasks = (
                _task(random, each, skills, [*streams], stage.now) for each in range(random.randint(1, 8))
            )
            requester = f"agent/q{random.randrange(5)}"
            stage.submit(*tasks, request_id=f"r{turn}.{number}", requester=requester)
        for stream in streams.values():
            if random.random() < 0.7:
                offer = WorkFrame("offer", stream, 0.5, credits=random.randint(0, 6))
                # Some of them are placed with the next frame, not at once.
                stage.state.handle(offer, stage.now) if random.random() < 0.5 else stage.batch(offer)
        for name, stream in streams.items():
            held = next(
                each for each in stage.state.book.instances.values() if each.key.agent_id == name
            ).held
            if held and random.random() < 0.3:
                ended = next(iter(held.values()))
                request_id = ended.collaboration.submission.request_id
                stage.finish(stream, ended.key.task_id, request_id=request_id)


def _task(random: Random, number: int, skills: list[str], agents: list[str], now: int) -> Any:
    more: dict[str, Any] = {}
    if random.random() < 0.3:
        more["deadline"] = now + random.choice((3_600_000, 7_200_000))
    if random.random() < 0.3:
        more["needs"] = random.choice(NEEDS)
    if random.random() < 0.1:
        more["required_agents"] = tuple(random.sample(agents, min(2, len(agents))))
    return task(
        f"t{number}",
        skills=tuple(random.sample(skills, min(len(skills), random.choice((1, 1, 2))))),
        priority=random.choice([*Priority]),
        estimated_duration_ms=random.choice((500, 5_000)),
        **more,
    )


def play(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Play a fleet and a world with everything in it, from a seed."""
    random = Random(seed)
    shrink(monkeypatch, random)
    one_fleet(random)
    world = World(SeededChooser(seed), crowded=seed % 2 == 1)
    for _ in range(30):
        world.act()


def test_waves_decide_what_the_reference_decides(monkeypatch: pytest.MonkeyPatch, compared: Compared) -> None:
    given = 0
    give = wave.Wave.give

    def counted(self: wave.Wave, queue: Any) -> Any:
        nonlocal given
        given += len(queue)
        return give(self, queue)

    monkeypatch.setattr(wave.Wave, "give", counted)
    for seed in range(20):
        play(monkeypatch, seed)
    assert given > 1_000, "most of it was no wave"
    assert compared.decisions > 1_000


@pytest.mark.nightly
@pytest.mark.parametrize("block", range(20))
def test_very_many_waves(monkeypatch: pytest.MonkeyPatch, compared: Compared, block: int) -> None:
    for seed in range(1_000 + block * 100, 1_100 + block * 100):
        play(monkeypatch, seed)
    assert compared.decisions


def plainly(
    account: list[int], queue: list[int], accounts: list[Account], totals: Totals, room: Room, most: int
) -> list[int]:
    """Return what `fill` is to return: always the requester with the smallest share."""
    slots = room.slots.tolist()
    held = {each.number: (each.held, dict(each.needs)) for each in accounts}
    tasks = {
        each.number: [at for at, owner in enumerate(account) if owner == each.number] for each in accounts
    }
    turns: list[int] = []

    def share(each: Account) -> float:
        return dominant_share(*held[each.number], each.weight, totals)

    while (asking := [each for each in accounts if tasks[each.number]]) and len(turns) < most:
        mine = tasks[min(asking, key=lambda each: (share(each), tasks[each.number][0])).number]
        while mine:
            at = mine[0]
            if slots[queue[at]] == 0:
                mine[:] = [each for each in mine if queue[each] != queue[at]]
                continue
            del mine[0]
            slots[queue[at]] -= 1
            turns.append(at)
            count, needs = held[account[at]]
            for name, amounts in room.needs.items():
                needs[name] = needs.get(name, 0) + int(amounts[queue[at]])
            held[account[at]] = count + 1, needs
            break
    return turns


def test_progressive_filling_by_arrays_is_progressive_filling() -> None:
    for seed in range(60):
        random = Random(seed)
        totals = Totals()
        totals.slots, totals.capacities = 700, {"gpu": 90, "mem": 1_000}
        accounts = [
            Account(f"q{each}", random.choice((1.0, 1.0, 0.5, 3.0)), each)
            for each in range(random.randint(1, 9))
        ]
        for each in accounts:
            each.held = random.choice((0, 0, 5))
            each.needs = {"gpu": random.choice((0, 4)), "disk": 1}
        queues, count = random.randint(1, 12), random.randint(1, 300)
        account = [random.randrange(len(accounts)) for _ in range(count)]
        queue = [random.randrange(queues) for _ in range(count)]
        needs = {
            name: np.array([random.choice((0, 0, 1, 3)) for _ in range(queues)]) for name in ("gpu", "mem")
        }
        largest = random.choice((3, 20, 400))
        room = Room(np.array([random.randint(0, largest) for _ in range(queues)]), needs)
        most = random.choice((count, 20))
        expected = plainly(account, queue, accounts, totals, room, most)
        left = room.slots - np.bincount([queue[at] for at in expected], minlength=queues)
        held = Held(accounts, totals, needs)
        assert fill(np.array(account), np.array(queue), held, room, most).tolist() == expected
        assert room.slots.tolist() == left.tolist()


def test_the_roster_knows_who_waits_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "_SEATS_MIN", 4)
    random = Random(7)
    stage = Stage(validate=False)
    waiting: list[Task] = []
    for number in range(40):
        stage.submit(
            *(_task(random, each, SKILLS, ["a"], stage.now) for each in range(random.randint(1, 5))),
            request_id=f"r{number}",
        )
        if random.random() < 0.4:
            stage.cancel(f"r{random.randrange(number + 1)}")
        if random.random() < 0.5:
            book = stage.state.book
            tasks = (each for one in book.collaborations.values() for each in one.tasks.values())
            waiting = sorted(
                (each for each in tasks if each.lane is not None),
                key=lambda each: (each.priority, order_of(each), each.queue_number),
            )
            waiters = book.index._roster.waiters()
            assert book.index._roster.tasks(waiters.seat) == waiting
            assert waiters.priority.tolist() == [each.priority for each in waiting]
            assert waiters.ready.tolist() == [each.ready_time for each in waiting]
    assert len(waiting) > 20
