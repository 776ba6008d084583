"""What the registry says about agents: who exists, what they can do, which incarnation is the newest.

The last view is kept while the registry is away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from services.common.core.ids import AgentId, Skill
from services.scheduler.core.events import AgentView, InstanceView
from services.scheduler.core.model import InstanceKey
from services.scheduler.core.placing.placement import Demand

#: Answers of `serves` that are kept until an agent changes.
_ANSWERS_MAX = 4_096


class Directory:
    """The known agents by name. Owned by `SchedulerState`."""

    def __init__(self) -> None:
        self._agents: dict[AgentId, AgentView] = {}
        self._skills: Counter[Skill] = Counter()
        self._answers: dict[Demand, bool] = {}

    def __len__(self) -> int:
        return len(self._agents)

    def __contains__(self, agent_id: AgentId) -> bool:
        return agent_id in self._agents

    def put(self, agent: AgentView) -> None:
        """Take in what the registry says about one agent."""
        self._skills.subtract(self._skills_of(agent.agent_id))
        self._skills.update(agent.skills)
        self._agents[agent.agent_id] = agent
        self._answers.clear()

    def keep_only(self, agents: Iterable[AgentId]) -> list[AgentView]:
        """Forget every other agent; return those that went."""
        kept = frozenset(agents)
        gone = [agent for agent_id, agent in self._agents.items() if agent_id not in kept]
        for agent in gone:
            self._skills.subtract(agent.skills)
            del self._agents[agent.agent_id]
        self._answers.clear()
        return gone

    def instance(self, key: InstanceKey) -> InstanceView | None:
        """Return what the registry says about one running copy, None when it says nothing."""
        agent = self._agents.get(key.agent_id)
        if agent is None:
            return None
        return next((view for view in agent.instances if view.instance_id == key.instance_id), None)

    def instances(self, agent_id: AgentId) -> tuple[InstanceView, ...]:
        """Return what the registry says about an agent's running copies."""
        agent = self._agents.get(agent_id)
        return () if agent is None else agent.instances

    def serves(self, demand: Demand) -> bool:
        """Return whether some known agent, live or not, could ever serve `demand`."""
        answer = self._answers.get(demand)
        if answer is None:
            if len(self._answers) >= _ANSWERS_MAX:
                self._answers.clear()
            answer = self._answers[demand] = self._find(demand)
        return answer

    def lacking(self, demand: Demand) -> list[tuple[str, int, int]]:
        """Return what keeps a demand's needs from being met, however long one waits.

        That is (capacity, amount needed, the most that one instance of an agent with the skills has), in
        order of name; all of the needs when each could be met and no instance has them together; empty when
        one has.
        """
        if not demand.needs:
            return []
        able: list[dict[str, int]] = []
        for agent_id in demand.agents or self._agents:
            agent = self._agents.get(agent_id)
            if agent is None or not demand.skills <= agent.skills:
                continue
            for instance in agent.instances:
                one = dict(instance.capacities)
                # The first one that could ends the search: a large fleet is not read for each submission.
                if all(one.get(name, 0) >= amount for name, amount in demand.needs):
                    return []
                able.append(one)
        most = [
            (name, amount, max((one.get(name, 0) for one in able), default=0))
            for name, amount in demand.needs
        ]
        return [row for row in most if row[2] < row[1]] or most

    def count(self, demand: Demand) -> int:
        """Return how many known agents, live or not, have the skills of `demand`."""
        names = demand.agents or self._agents.keys()
        return sum(demand.skills <= self._skills_of(agent_id) for agent_id in names)

    def unknown_skills(self, demand: Demand) -> list[Skill]:
        """Return the skills that no known agent has, in order of name."""
        return sorted(skill for skill in demand.skills if self._skills[skill] <= 0)

    def _find(self, demand: Demand) -> bool:
        if self.unknown_skills(demand):
            return False
        names = demand.agents or self._agents.keys()
        return any(demand.skills <= self._skills_of(agent_id) for agent_id in names)

    def _skills_of(self, agent_id: AgentId) -> frozenset[Skill]:
        agent = self._agents.get(agent_id)
        return frozenset() if agent is None else agent.skills
