"""Every plan that is made is compared with the reference's: a patch for tests that play anything."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from services.common.core.instants import Instant
from services.scheduler.core.book import Book
from services.scheduler.core.model import Priority
from services.scheduler.core.placing import apply as applier
from services.scheduler.core.placing.index import PlacementIndex
from services.scheduler.core.placing.placement import Placement, Snapshot, plan
from tests.unit.scheduler.placement_reference import Chosen, decide


class Compared:
    """Compares every plan that is made with the reference's, for the books that it is told of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decisions = 0
        self._books: dict[PlacementIndex, Book] = {}
        self._expected: list[Chosen] = []
        fast = PlacementIndex.snapshot

        def snapshot(
            index: PlacementIndex, task_max: int, now: Instant, above: Priority | None = None
        ) -> Snapshot | None:
            book = self._books[index]
            index.settle()
            self._expected = decide(book, task_max, now, above)
            found = fast(index, task_max, now, above)
            if found is None:
                assert self._expected == [], "there was something to place"
            return found

        def planned(found: Snapshot) -> Collection[Placement]:
            placements = plan(found)
            self._compare(placements, found)
            return placements

        made = Book.__post_init__

        def note(book: Book) -> None:
            made(book)
            self._books[book.index] = book

        monkeypatch.setattr(PlacementIndex, "snapshot", snapshot)
        monkeypatch.setattr(applier, "plan", planned)
        monkeypatch.setattr(Book, "__post_init__", note)

    def _compare(self, placements: Collection[Placement], snapshot: Snapshot) -> None:
        expected = [(each.task, each.row, each.aged) for each in self._expected]
        assert [(each.task, each.row, each.aged) for each in placements] == expected
        for mine, theirs in zip(placements, self._expected, strict=True):
            self.decisions += 1
            why = mine.pool.explain(mine.at, lambda row: str(snapshot.key_of(row)))
            assert f" = {theirs.score:.2f}, best of {mine.pool.count} free" in why
            named = [each.rpartition(" ")[0] for each in why.partition(", then ")[2].split(", ") if each]
            assert named == [str(snapshot.key_of(row)) for row in theirs.others[: len(named)]], why
