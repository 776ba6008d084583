"""Skills, the best state, and the index."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.core.instants import Instant
from services.registry.core.matching import AgentIndex, best_state, union_of_skills
from services.registry.core.model import AgentRecord, AgentState, Instance, Load, SkillLevel

T0 = Instant(0)


def instance(name: str, state: AgentState = AgentState.READY, **levels: float) -> Instance:
    skills = tuple(SkillLevel(Skill(skill), level) for skill, level in sorted(levels.items()))
    return Instance(InstanceId(name), 1, state, T0, Load(), T0, T0, skills)


def record(agent_id: str, *names: str) -> AgentRecord:
    skills = tuple(SkillLevel(Skill(name)) for name in sorted(set(names)))
    return AgentRecord(AgentId(agent_id), T0, skills, 1, (instance("0"),))


def test_the_union_has_the_highest_level_of_what_lives() -> None:
    instances = [
        instance("0", maps=0.4, boats=1.0),
        instance("1", maps=0.9),
        instance("2", AgentState.LOST, maps=1.0, drones=1.0),
    ]
    assert union_of_skills(instances) == (SkillLevel(Skill("boats")), SkillLevel(Skill("maps"), 0.9))


def test_the_best_state_is_the_most_useful_one() -> None:
    assert best_state([]) is AgentState.OFFLINE
    assert best_state([instance("0", AgentState.SUSPECT), instance("1", AgentState.BUSY)]) is AgentState.BUSY
    assert best_state([instance("0", AgentState.OFFLINE), instance("1", AgentState.LOST)]) is AgentState.LOST


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcde"), st.none() | st.lists(st.sampled_from(["x", "y", "z"]), max_size=3)
        ),
        max_size=40,
    )
)
def test_the_index_follows_the_records(changes: list[tuple[str, list[str] | None]]) -> None:
    index = AgentIndex()
    records: dict[str, AgentRecord] = {}
    for name, skills in changes:
        new = None if skills is None else record(name, *skills)
        index.replace(records.get(name), new)
        records.pop(name, None)
        if new is not None:
            records[name] = new
        for skill in ("", "x", "y", "z"):
            having = [
                name
                for name, one in sorted(records.items())
                if not skill or Skill(skill) in {s.name for s in one.skills}
            ]
            assert list(index.after("", skill)) == having
            assert list(index.after("b", skill)) == [name for name in having if name > "b"]
        assert len(index) == len(records)
        assert index.states[AgentState.READY] == len(records)
