"""Transition tables as data: the product test, the diagrams and the metrics are derived from them.

Method: the table of `h2.stream` and the story-carrying `InvalidTransition` of dask's worker state machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Generic, TypeVar

S = TypeVar("S", bound=Enum)
I = TypeVar("I", bound=Enum)  # noqa: E741  # the field writes S for states and I for inputs


class InvalidTransitionError(Exception):
    """An input met a state in which it is not allowed; carries what happened to the subject before."""

    def __init__(self, subject: str, state: Enum, given: Enum, story: tuple[str, ...] = ()) -> None:
        self.subject, self.state, self.given, self.story = subject, state, given, story
        lines = "".join(f"\n  {line}" for line in story)
        super().__init__(f"{subject}: {given.name} is not allowed in {state.name}{lines}")


class Table(Generic[S, I]):
    """`{(state, input): next state}`; what is absent is not allowed."""

    def __init__(self, name: str, start: S, rows: Mapping[tuple[S, I], S]) -> None:
        self.name, self.start = name, start
        self._rows = dict(rows)

    def next(self, subject: object, state: S, given: I, story: tuple[str, ...] = ()) -> S:
        """Return the state that follows, or raise `InvalidTransitionError`, which names `subject`."""
        try:
            return self._rows[state, given]
        except KeyError:
            raise InvalidTransitionError(str(subject), state, given, story) from None

    def allows(self, state: S, given: I) -> bool:
        """Return whether `given` is allowed in `state`."""
        return (state, given) in self._rows

    def rows(self) -> Iterator[tuple[S, I, S]]:
        """Yield (state, input, next state) in the order in which the table was written."""
        for (state, given), target in self._rows.items():
            yield state, given, target
