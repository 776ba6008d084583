"""One suite for every `EntryIndex`."""

import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from services.audit.core.query import EntryFilter, IndexRow, RowGroup
from services.audit.store import EntryIndex, Found, IndexState
from services.audit.stores import sqlite
from services.audit.stores.memory import MemoryIndex
from services.audit.stores.sqlite import SqliteIndex
from services.common.core.instants import Instant

Open = Callable[[], EntryIndex]


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def index(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EntryIndex]:
    made: EntryIndex = MemoryIndex() if request.param == "memory" else SqliteIndex(tmp_path / "index.sqlite")
    yield made
    await made.close()


def row(at: int = 0, **fields: object) -> IndexRow:
    made = IndexRow(
        Instant(1_000 + at), "broker", "agent/field-1", "envelope.accept", f"message/{at}", 1, "", ""
    )
    return made._replace(**fields)  # type: ignore[arg-type]


async def fill(index: EntryIndex, *rows: IndexRow) -> None:
    await index.add(rows, IndexState("log+key", len(rows), b"h" * 32))


async def found(
    index: EntryIndex, begin: int = 0, end: int = 100, limit: int = 100, **wanted: object
) -> Found:
    return await index.find(EntryFilter(**wanted), begin, end, limit)  # type: ignore[arg-type]


async def test_an_empty_index_knows_that_it_is(index: EntryIndex) -> None:
    assert await index.state() == IndexState()
    assert await found(index) == Found((), 100)


async def test_additions_continue_each_other(index: EntryIndex) -> None:
    await index.add([row(0), row(1)], IndexState("log", 2, b"a" * 32))
    await index.add([row(2)], IndexState("log", 3, b"b" * 32))
    assert await index.state() == IndexState("log", 3, b"b" * 32)
    assert (await found(index)).indices == (0, 1, 2)


async def test_a_cleared_index_is_empty(index: EntryIndex) -> None:
    await fill(index, row(0))
    await index.clear()
    assert await index.state() == IndexState()
    assert (await found(index)).indices == ()


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [
        ({"actor": "agent/field-2"}, (1,)),
        ({"service": "registry"}, (2,)),
        ({"operation": "session.open"}, (2,)),
        ({"operation": "envelope.*"}, (0, 1, 3)),
        ({"operation": "*"}, (0, 1, 2, 3)),
        ({"subject": "task/c-1/*"}, (1, 3)),
        ({"subject": "task/c-1/a"}, (1,)),
        ({"subject": "task/c-1"}, ()),
        ({"collaboration_id": "c-1"}, (1, 3)),
        ({"collaboration_id": "c-1", "outcomes": frozenset({2, 3})}, (3,)),
        ({"outcomes": frozenset({2})}, (3,)),
        ({"cause_id": "rpc-7"}, (0,)),
        ({"start_time": 1_001, "end_time": 1_003}, (1, 2)),
        ({"start_time": 1_003}, (3,)),
        ({"end_time": 1_000}, ()),
        ({"actor": "agent/field-2", "service": "registry"}, ()),
        ({"actor": "' OR 1=1 --"}, ()),
    ],
)
async def test_all_conditions_must_hold(
    index: EntryIndex, wanted: dict[str, object], indices: tuple[int, ...]
) -> None:
    await fill(
        index,
        row(0, cause_id="rpc-7"),
        row(1, actor="agent/field-2", subject="task/c-1/a", collaboration_id="c-1"),
        row(2, service="registry", operation="session.open"),
        row(3, subject="task/c-1/b", collaboration_id="c-1", outcome=2),
    )
    assert (await found(index, **wanted)).indices == indices  # type: ignore[arg-type]


async def test_an_answer_says_how_far_it_looked(index: EntryIndex) -> None:
    await fill(index, *(row(at, collaboration_id="c" if at % 2 else "d") for at in range(10)))
    assert await found(index, collaboration_id="c", limit=2) == Found((1, 3), 4)
    assert await found(index, collaboration_id="c", begin=4, end=8) == Found((5, 7), 8)
    assert await found(index, collaboration_id="c", begin=8, end=10, limit=5) == Found((9,), 10)


texts = st.text(alphabet="ab/*é\U0010ffff\ud7ff", max_size=4)


@settings(max_examples=40)
@given(st.lists(texts, max_size=12), texts, st.booleans())
async def test_prefixes_mean_the_same_everywhere(subjects: list[str], pattern: str, prefix: bool) -> None:
    wanted = EntryFilter(subject=pattern + "*" if prefix else pattern)
    rows = [row(at, subject=subject) for at, subject in enumerate(subjects)]
    with tempfile.TemporaryDirectory() as folder:
        answers = []
        for one in (MemoryIndex(), SqliteIndex(Path(folder) / "index.sqlite")):
            await fill(one, *rows)
            answers.append(await one.find(wanted, 0, 50, 50))
            await one.close()
    assert answers[0] == answers[1]


async def test_operations_of_a_group_are_found(index: EntryIndex) -> None:
    rows = [
        row(0, subject="envelope/alpha/", group=RowGroup(("m-1", "m-2"), (), ("c-1", "c-2"))),
        row(1, subject="envelope/alpha/m-1", collaboration_id="c-1"),
        row(
            2,
            subject="envelope/",
            group=RowGroup(("alpha/m-3", "beta/m-1"), ("rpc-9", "")),
            collaboration_id="c-2",
            actor="agent/field-2",
        ),
        row(3),
    ]
    await fill(index, *rows)
    cases: list[tuple[dict[str, Any], tuple[int, ...]]] = [
        ({"subject": "envelope/alpha/m-1"}, (0, 1)),
        ({"subject": "envelope/alpha/m-3"}, (2,)),
        ({"subject": "envelope/alpha/m-3", "cause_id": "rpc-9"}, (2,)),
        ({"subject": "envelope/*"}, (0, 1, 2)),
        ({"subject": "envelope/beta/*"}, (2,)),
        ({"subject": "envelope/gamma/*", "actor": "agent/field-1"}, ()),
        ({"collaboration_id": "c-1"}, (0, 1)),
        ({"collaboration_id": "c-2"}, (0, 2)),
        ({"collaboration_id": "c-2", "actor": "agent/field-2"}, (2,)),
        ({"cause_id": "rpc-9"}, (2,)),
        ({"cause_id": "m-2"}, (0,)),
        ({"operation": "envelope.*"}, (0, 1, 2, 3)),
        ({"actor": "agent/field-1"}, (0, 1, 3)),
    ]
    for wanted, indices in cases:
        may = (await found(index, **wanted)).indices
        # Which of the groups do, the entries themselves tell.
        assert tuple(at for at in may if EntryFilter(**wanted).matches(rows[at])) == indices, wanted
        assert len(may) <= len(indices) + 1
    assert await found(index, subject="envelope/*", limit=2) == Found((0, 1), 2)
    last = await found(index, subject="envelope/*", begin=2, end=3, limit=5)
    assert last == Found((2,), 3)
    assert await found(index, collaboration_id="c-2", limit=1) == Found((0,), 1)


parts = st.text(alphabet="ab/", max_size=3)
grouped = st.lists(parts, min_size=2, max_size=4).map(lambda names: RowGroup(tuple(names)))
rows = st.lists(
    st.builds(
        lambda subject, group, collaboration_id: row(
            0, subject=subject, group=group, collaboration_id=collaboration_id
        ),
        parts,
        st.one_of(st.none(), grouped),
        st.sampled_from(["", "a"]),
    ),
    max_size=10,
)


@settings(max_examples=60)
@given(rows, parts, st.booleans(), st.sampled_from(["", "a"]), st.sampled_from(["", "a"]), st.integers(1, 4))
async def test_nothing_that_matches_is_missing_and_pages_end(
    rows: list[IndexRow], subject: str, prefix: bool, collaboration_id: str, cause_id: str, limit: int
) -> None:
    wanted = EntryFilter(
        subject=subject + "*" if prefix else subject, collaboration_id=collaboration_id, cause_id=cause_id
    )
    with tempfile.TemporaryDirectory() as folder:
        index = SqliteIndex(Path(folder) / "index.sqlite")
        # In two additions, so that there are two runs of names.
        await index.add(rows[:5], IndexState("log", len(rows[:5]), b"h"))
        await index.add(rows[5:], IndexState("log", len(rows), b"h"))
        candidates: list[int] = []
        begin = 0
        while begin < len(rows):
            page = await index.find(wanted, begin, len(rows), limit)
            assert begin < page.end <= len(rows)
            assert len(page.indices) <= limit
            candidates += page.indices
            begin = page.end
        await index.close()
    assert candidates == sorted(set(candidates))
    # Of entries without a group the index is exact, of others the entry itself tells.
    kept = [at for at in candidates if rows[at].group is None or wanted.matches(rows[at])]
    assert kept == [at for at, one in enumerate(rows) if wanted.matches(one)]


async def test_an_index_of_the_first_version_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    old = sqlite3.connect(path)
    old.executescript(
        "CREATE TABLE entries (leaf_index INTEGER PRIMARY KEY, subject TEXT NOT NULL);"
        "CREATE INDEX by_subject ON entries (subject);"
        "CREATE TABLE state (only INTEGER PRIMARY KEY, log TEXT, size INTEGER, last_hash BLOB);"
        "INSERT INTO entries VALUES (0, 'message/0'); INSERT INTO state VALUES (1, 'log', 1, x'00');"
        "PRAGMA user_version = 1;"
    )
    old.close()
    index = SqliteIndex(path)
    assert await index.state() == IndexState()
    await fill(index, row(0, subject="envelope/", group=RowGroup(("a", "b"))))
    assert (await found(index, subject="envelope/b")).indices == (0,)
    await index.close()


async def test_a_search_that_no_index_helps_stops_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "SCAN_ROWS_MAX", 4)
    index = SqliteIndex(tmp_path / "index.sqlite")
    await fill(index, *(row(at, outcome=1 + at % 2) for at in range(10)))
    assert await found(index, outcomes=frozenset({2}), end=10) == Found((1, 3), 4)
    assert await found(index, operation="envelope.*", begin=4, end=10) == Found((4, 5, 6, 7), 8)
    assert (await found(index, actor="agent/field-1", end=10)).end == 10
    assert (await found(index, subject="message/*", end=10)).end == 10
    await index.close()


async def test_an_index_is_there_after_a_restart(tmp_path: Path) -> None:
    index = SqliteIndex(tmp_path / "index.sqlite")
    await fill(index, row(0), row(1))
    await index.close()
    index = SqliteIndex(tmp_path / "index.sqlite")
    assert await index.state() == IndexState("log+key", 2, b"h" * 32)
    assert (await found(index)).indices == (0, 1)
    await index.close()


async def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    path.write_bytes(b"not a database at all" * 500)
    index = SqliteIndex(path)
    assert await index.state() == IndexState()
    await index.close()
