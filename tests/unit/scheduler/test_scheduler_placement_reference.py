"""The fast placement decides what the plain one decides: over random fleets, in every state they come to."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.core.instants import Instant
from services.scheduler.core.book import Book, Settings
from services.scheduler.core.events import AgentsChanged, AgentView, InstanceView
from services.scheduler.core.model import AttemptState, PolicyWeights, Priority, SchedulingPolicy
from services.scheduler.core.placing.pools import level_for
from services.scheduler.core.placing.victims import WEIGHTS, repeats_ms
from tests.unit.scheduler.placement_compared import Compared
from tests.unit.scheduler.scheduler_stage import Stage, task
from tests.unit.scheduler.scheduler_world import SeededChooser, World

POLICIES = [*SchedulingPolicy]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compared:
    """Compare every plan of this test."""
    return Compared(monkeypatch)


def check_victims(book: Book, now: Instant) -> int:
    """Compare who could make room, and at what price, with a look at all that runs; return how many."""
    compared = 0
    tasks = [each for collaboration in book.collaborations.values() for each in collaboration.tasks.values()]
    for demand in {each.demand for each in tasks}:
        for above in (Priority.EMERGENCY, Priority.HIGH, Priority.NORMAL):
            expected, beside = {}, set()
            for instance in book.instances.values():
                able = instance.suspendable and instance.stream is not None and not instance.draining
                named = not demand.agents or instance.key.agent_id in demand.agents
                if not able or not named or level_for(instance.levels, demand) is None:
                    continue
                for held in instance.held.values():
                    attempt = held.at(instance.key)
                    if attempt is None or held.priority <= above or held.spec.gang is not None:
                        continue
                    if attempt.state is AttemptState.SUSPENDING:
                        continue
                    if len(held.open_attempts) > 1:
                        # What the one saved is not counted for the other beside it.
                        beside.add(held.key)
                        continue
                    saved = held.savepoint
                    since = max(attempt.assign_time, 0 if saved is None else saved.save_time)
                    price = (now - since + repeats_ms(held)) * WEIGHTS[held.priority]
                    expected[held.key, instance.key] = price
            found = [*book.victims.candidates(demand, above, now)]
            costs = {(each.task.key, each.instance.key): each.cost for each in found}
            assert {name: cost for name, cost in costs.items() if name[0] not in beside} == expected
            places = [(each.cost, -each.task.priority) for each in found]
            assert places == sorted(places)
            compared += len(found)
    return compared


def test_worlds_with_everything_in_them(compared: Compared) -> None:
    victims = 0
    for seed in range(40):
        world = World(SeededChooser(seed), crowded=seed % 2 == 1)
        for number in range(100):
            world.act()
            if number % 10 == 0:
                victims += check_victims(world.stage.state.book, world.stage.now)
    assert victims > 100
    assert compared.decisions > 300


def one_fleet(seed: int) -> int:
    """Play a random fleet with a long queue; return how many tasks ended."""
    random = Random(seed)
    policy = random.choice(POLICIES)
    settings = Settings(
        policy=policy,
        ageing_ms=random.choice((500, 60_000)),
        ageing_share=random.choice((2, 4)),
        wave_max=random.choice((3, 8_192)),
        speculation_share=0.0,
    )
    stage = Stage(settings, validate=False)
    skills = ["dig", "fly", "see", "swim"]
    streams = {}
    for number in range(random.choice((1, 3, 12, 90))):
        name = f"a{number}"
        known = [Skill(each) for each in random.sample(skills, random.randint(1, 3))]
        levels = tuple((each, random.choice((0.25, 0.5, 1.0))) for each in known)
        capacities = (("gpu", random.choice((0, 2, 3))),) if random.random() < 0.5 else ()
        view = InstanceView(InstanceId("0"), 1, False, levels, capacities, random.choice((0.0, 1.0, 2.5)))
        stage.batch(AgentsChanged("agents", 0.5, (AgentView(AgentId(name), frozenset(known), (view,)),)))
        streams[name] = stage.link(name, slots=random.randint(0, 3))
    ended = 0
    for number in range(25):
        stage.now = Instant(stage.now + random.choice((0, 1, 300)))
        if random.random() < 0.5:
            stage.submit(
                *(
                    _task(random, each, skills, [*streams], stage.now)
                    for each in range(random.randint(1, 12))
                ),
                request_id=f"r{number}",
                requester=f"agent/q{random.randrange(4)}",
                weights=PolicyWeights(*(random.random() for _ in range(4))),
            )
        ended += _end_some(stage, random, streams)
    return ended


def _task(random: Random, number: int, skills: list[str], agents: list[str], now: int) -> Any:
    more: dict[str, Any] = {}
    if random.random() < 0.2:
        more["deadline"] = now + random.choice((3_600_000, 7_200_000))
    if random.random() < 0.2:
        more["needs"] = (("gpu", random.choice((1, 2))),)
    if random.random() < 0.1:
        more["required_agents"] = tuple(random.sample(agents, min(2, len(agents))))
    return task(
        f"t{number}",
        skills=tuple(random.sample(skills, random.choice((1, 1, 2)))),
        priority=random.choice([*Priority]),
        estimated_duration_ms=random.choice((500, 5_000)),
        **more,
    )


def _end_some(stage: Stage, random: Random, streams: dict[str, Any]) -> int:
    """Let some agents end what they do, a few at once: the lone free slot and the wave are both met."""
    ended = 0
    for name in random.sample([*streams], min(len(streams), random.choice((0, 1, 1, 2, 20)))):
        held = [each for each in stage.state.book.instances.values() if each.key.agent_id == name]
        for running in [*held[0].held.values()][:1]:
            stage.finish(
                streams[name], running.key.task_id, request_id=running.collaboration.submission.request_id
            )
            ended += 1
    return ended


def test_thousands_of_decisions_of_random_fleets(compared: Compared) -> None:
    ended = sum(one_fleet(seed) for seed in range(60))
    assert ended > 200
    assert compared.decisions > 1_000


@pytest.mark.nightly
@pytest.mark.parametrize("block", range(40))
def test_very_many_decisions_of_random_fleets(compared: Compared, block: int) -> None:
    for seed in range(1_000 + block * 25, 1_025 + block * 25):
        one_fleet(seed)
        world = World(SeededChooser(seed), crowded=seed % 2 == 1)
        for _ in range(200):
            world.act()
