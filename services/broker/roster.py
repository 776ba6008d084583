"""What the registry said of agents, kept for cores that begin anew."""

from __future__ import annotations

from services.broker.core.events import AgentsSeen
from services.broker.core.model import AgentProfile


class Roster:
    """Names and profiles. Owned by the event loop."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._profiles: dict[str, AgentProfile] = {}
        self._complete = False

    def take(self, seen: AgentsSeen) -> None:
        """Take in the registry's news."""
        if seen.complete:
            self._names.clear()
            self._profiles.clear()
            self._complete = True
        # In place: with many agents there is always one whose load has changed.
        self._names |= seen.names
        self._profiles.update(seen.profiles)

    def all(self) -> AgentsSeen | None:
        """Return everything that was said; None when nothing was."""
        # That there are none is news, too.
        if not self._names and not self._complete:
            return None
        return AgentsSeen(frozenset(self._names), self._complete, dict(self._profiles))
