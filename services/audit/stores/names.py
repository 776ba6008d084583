"""Which entries with a group have a name: sorted runs, as a row for each would cost too much.

A name is a number of 31 bits (a CRC), and a run is one sorted list of numbers `name << 32 | leaf`, the leaf
counted from the run's first one, in pages of 4 KiB. An addition makes a run; eight of about one size become
one, so that a name is written a few times and looked for in few places (O'Neil et al., "The log-structured
merge-tree", 1996).

Two names may have one number: what is found may have the name, and nothing else has it.
"""

from __future__ import annotations

import sqlite3
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain

SCHEMA = """
    CREATE TABLE runs (
        run INTEGER PRIMARY KEY,
        first_leaf INTEGER NOT NULL,
        end_leaf INTEGER NOT NULL,
        size INTEGER NOT NULL
    );
    CREATE TABLE pages (
        run INTEGER NOT NULL,
        first_number INTEGER NOT NULL,
        numbers BLOB NOT NULL,
        PRIMARY KEY (run, first_number)
    ) WITHOUT ROWID;
"""
# Numbers of eight bytes in one page, less the page's own head.
PAGE_NUMBERS = 480
# Runs of about one size that become one.
MERGE_RUNS = 8
# Names beyond which a run is not merged any more: it takes half a second and 50 MB.
RUN_NAMES_MAX = 1 << 20
_LEAF_BITS = 32
_Run = tuple[int, int, int, int]


def add(connection: sqlite3.Connection, named: Iterable[tuple[int, Iterable[str]]], first_leaf: int) -> None:
    """Note the names of leaves, none of them before `first_leaf` or any that was added before."""
    numbers: list[int] = []
    last = first_leaf
    for leaf, names in named:
        last, at = leaf, leaf - first_leaf
        # A set, since two names may have one number.
        numbers += {_number(name) << _LEAF_BITS | at for name in names}
    if numbers:
        numbers.sort()
        _write(connection, first_leaf, last + 1, numbers)
        while _merge(connection):
            pass


def clear(connection: sqlite3.Connection) -> None:
    """Forget everything."""
    connection.execute("DELETE FROM runs")
    connection.execute("DELETE FROM pages")


def find(connection: sqlite3.Connection, name: str, begin: int, end: int, limit: int) -> list[int]:
    """Return leaves that may have `name`, from `begin` on and before `end`, at most `limit`, ascending."""
    number = _number(name) << _LEAF_BITS
    found: list[int] = []
    runs: list[_Run] = connection.execute(
        "SELECT * FROM runs WHERE end_leaf > ? AND first_leaf < ? ORDER BY first_leaf", (begin, end)
    ).fetchall()
    for run, first_leaf, end_leaf, _ in runs:
        low = number | max(begin - first_leaf, 0)
        high = number | min(end, end_leaf) - first_leaf
        found += [
            (one & (1 << _LEAF_BITS) - 1) + first_leaf
            for page in _pages(connection, run, low, high)
            for one in page[bisect_left(page, low) : bisect_left(page, high)]
        ]
        if len(found) >= limit:
            break
    return found[:limit]


def _number(name: str) -> int:
    # SQLite's integers have a sign: 31 bits of the name and 32 of the leaf.
    return zlib.crc32(name.encode()) >> 1


def _pages(connection: sqlite3.Connection, run: int, low: int, high: int) -> Iterable[Sequence[int]]:
    """Yield the pages of a run that may hold numbers from `low` on and before `high`."""
    rows = connection.execute(
        "SELECT numbers FROM pages WHERE run = ?1 AND first_number < ?3 AND first_number >= coalesce("
        "(SELECT max(first_number) FROM pages WHERE run = ?1 AND first_number <= ?2), ?2)"
        " ORDER BY first_number",
        (run, low, high),
    )
    for (numbers,) in rows:
        yield memoryview(numbers).cast("q")


def _write(connection: sqlite3.Connection, first_leaf: int, end_leaf: int, numbers: list[int]) -> None:
    run = connection.execute(
        "INSERT INTO runs (first_leaf, end_leaf, size) VALUES (?, ?, ?)", (first_leaf, end_leaf, len(numbers))
    ).lastrowid
    connection.executemany(
        "INSERT INTO pages VALUES (?, ?, ?)",
        (
            (run, numbers[at], array("q", numbers[at : at + PAGE_NUMBERS]).tobytes())
            for at in range(0, len(numbers), PAGE_NUMBERS)
        ),
    )


def _merge(connection: sqlite3.Connection) -> bool:
    """Make one of the newest runs if there are enough of one size; return whether that was done."""
    runs: list[_Run] = connection.execute(
        "SELECT * FROM runs ORDER BY first_leaf DESC LIMIT ?", (MERGE_RUNS,)
    ).fetchall()
    grade = runs[0][3].bit_length() // 3
    alike = all(size.bit_length() // 3 <= grade for *_, size in runs)
    total = sum(size for *_, size in runs)
    if len(runs) < MERGE_RUNS or not alike or total > RUN_NAMES_MAX:
        return False
    first_leaf, end_leaf = runs[-1][1], runs[0][2]
    # Sorted lists one behind the other: sorting them is merging them.
    numbers = sorted(chain.from_iterable(_shifted(connection, run, first_leaf) for run in reversed(runs)))
    old = [(run,) for run, *_ in runs]
    connection.executemany("DELETE FROM pages WHERE run = ?", old)
    connection.executemany("DELETE FROM runs WHERE run = ?", old)
    _write(connection, first_leaf, end_leaf, numbers)
    return True


def _shifted(connection: sqlite3.Connection, run: _Run, first_leaf: int) -> Iterable[int]:
    """Yield a run's numbers with their leaves counted from `first_leaf`."""
    shift = run[1] - first_leaf
    rows = connection.execute("SELECT numbers FROM pages WHERE run = ? ORDER BY first_number", (run[0],))
    for (numbers,) in rows:
        yield from [number + shift for number in memoryview(numbers).cast("q")]
