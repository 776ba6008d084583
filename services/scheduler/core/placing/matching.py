"""Optimal assignment of several tasks to several slots at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

#: More than any sum of scores of one task: being placed at all, and being placed before a later task, count
#: more than a good match.
_PLACED = 16.0
_FORBIDDEN = -1e9


def best_match(choices: Sequence[Sequence[tuple[Hashable, float]]]) -> list[int | None]:
    """Return for each task the position in its `choices` (slot, score from 0 to 2) that it gets, or None.

    No slot is given twice. As many tasks as possible are placed; when not all can be, the ones that come
    first are (the sets of tasks that can be placed together are the independent sets of a matroid, so weights
    that fall with the order give what serving one by one would give: Edmonds and Fulkerson, "Transversals and
    Matroid Partition", 1965); and the sum of scores is the largest possible for these. Method: a shortest
    augmenting path algorithm, Crouse, "On implementing 2D rectangular assignment algorithms" (2016), as in
    scipy. Cubic in the number of tasks.
    """
    column_of: dict[Hashable, int] = {}
    for row in choices:
        for slot, _ in row:
            column_of.setdefault(slot, len(column_of))
    count = len(choices)
    if not column_of:
        return [None] * count
    worth = np.full((count, len(column_of)), _FORBIDDEN)
    for number, row in enumerate(choices):
        bonus = _PLACED * (count - number)
        for slot, score in row:
            worth[number, column_of[slot]] = bonus + score
    found: list[int | None] = [None] * count
    rows, columns = linear_sum_assignment(worth, maximize=True)
    for number, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if worth[number, column] > _FORBIDDEN:
            found[number] = next(
                position for position, (slot, _) in enumerate(choices[number]) if column_of[slot] == column
            )
    return found
