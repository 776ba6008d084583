"""One suite for every `EntryIndex`."""

import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from services.audit.core.query import EntryFilter, IndexRow
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
