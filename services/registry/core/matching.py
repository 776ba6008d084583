"""What the instances of an agent can do together, and which agents have a skill."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from services.common.core.ids import AgentId, Skill
from services.registry.core.model import BEST_FIRST, AgentRecord, AgentState, Instance, SkillLevel


def union_of_skills(instances: Iterable[Instance]) -> tuple[SkillLevel, ...]:
    """Return the skills of all live instances, each with its highest level, sorted by name."""
    best: dict[Skill, float] = {}
    for instance in instances:
        if instance.state.live:
            for skill in instance.skills:
                best[skill.name] = max(skill.level, best.get(skill.name, 0.0))
    return tuple(SkillLevel(name, level) for name, level in sorted(best.items()))


def best_state(instances: Iterable[Instance]) -> AgentState:
    """Return the state of the instance that is most useful; OFFLINE when there is none."""
    states = {instance.state for instance in instances}
    return next((state for state in BEST_FIRST if state in states), AgentState.OFFLINE)


class AgentIndex:
    """Agents by name and by skill, both sorted, and how many instances are in each state."""

    def __init__(self) -> None:
        self.states: Counter[AgentState] = Counter()
        self._names: list[AgentId] = []
        self._by_skill: dict[Skill, list[AgentId]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[AgentId]:
        return iter(self._names)

    def replace(self, old: AgentRecord | None, new: AgentRecord | None) -> None:
        """Take in that an agent's record is `new` where it was `old`; None is no record."""
        present = old or new
        if present is None:
            return
        agent_id = present.agent_id
        if old is None:
            bisect.insort(self._names, agent_id)
        elif new is None:
            _remove(self._names, agent_id)
        had = {skill.name for skill in old.skills} if old else set()
        has = {skill.name for skill in new.skills} if new else set()
        for name in has - had:
            bisect.insort(self._by_skill.setdefault(name, []), agent_id)
        for name in had - has:
            agents = self._by_skill[name]
            _remove(agents, agent_id)
            if not agents:
                del self._by_skill[name]
        self.states.subtract(one.state for one in (old.instances if old else ()))
        self.states.update(one.state for one in (new.instances if new else ()))

    def after(self, last: str, skill: str) -> Iterator[AgentId]:
        """Yield the agents that have `skill` (empty: all) and come after `last`, by name."""
        agents: Sequence[AgentId] = self._by_skill.get(Skill(skill), ()) if skill else self._names
        for index in range(bisect.bisect_right(agents, last), len(agents)):
            yield agents[index]


def _remove(names: list[AgentId], name: AgentId) -> None:
    del names[bisect.bisect_left(names, name)]
