"""Entries that say the same of many are one, and each operation is told as it would be alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.core.entries import EntryDraft, Outcome
from services.common.core.instants import Instant
from services.scheduler.entries import together

GROUP_MAX = 4


def drafts() -> st.SearchStrategy[EntryDraft]:
    return st.builds(
        lambda time, actor, kind, name, outcome, cause, why: EntryDraft(
            Instant(time),
            actor,
            f"{kind}.do",
            f"{kind}/{name}",
            outcome,
            "" if outcome is Outcome.OK else "REASON",
            cause,
            "" if kind == "agent" else name.partition("/")[0],
            {"why": why} if kind == "task" else {},
        ),
        st.integers(1, 2),
        st.sampled_from(["agent/a", "operator/b"]),
        st.sampled_from(["task", "collaboration", "agent"]),
        st.sampled_from(["c1", "c2", "c3/t", "c3/u", "c4/t"]),
        st.sampled_from([Outcome.OK, Outcome.FAILED]),
        st.sampled_from(["r1", "r2", ""]),
        st.sampled_from(["a reason", "another"]),
    )


def told(entries: list[EntryDraft]) -> list[EntryDraft]:
    return [entry.part(at, at + 1) for entry in entries for at in range(entry.operation_count)]


@given(st.lists(drafts(), max_size=30))
def test_each_operation_is_told_as_it_would_be_alone(entries: list[EntryDraft]) -> None:
    found = [*together(entries, GROUP_MAX)]
    assert all(1 <= entry.operation_count <= GROUP_MAX for entry in found)
    assert sorted(told(found), key=repr) == sorted(entries, key=repr)


@given(st.lists(drafts(), max_size=30))
def test_what_concerns_one_collaboration_stays_in_order(entries: list[EntryDraft]) -> None:
    found = told([*together(entries, GROUP_MAX)])
    for about in {entry.collaboration_id or entry.subject for entry in entries}:
        mine, before = (
            [entry for entry in some if about == (entry.collaboration_id or entry.subject)]
            for some in (found, entries)
        )
        assert mine == before


def test_a_wave_is_three_entries() -> None:
    entries = [
        EntryDraft(
            Instant(1), "operator/a", "collaboration.submit", f"collaboration/{name}",
            cause_id=f"r-{name}", collaboration_id=name, attributes={"tasks": "1"},
        )
        for name in ("c1", "c2", "c3")
    ] + [
        EntryDraft(
            Instant(1), f"agent/{at % 2}", "task.assign", f"task/{name}/t",
            cause_id=f"r-{name}", collaboration_id=name, attributes={"token": f"7.{at}"},
        )
        for at, name in enumerate(("c1", "c2", "c3"))
    ]  # fmt: skip
    submitted, first, second = together(entries, 128)
    assert (submitted.subject, submitted.attributes, submitted.cause_id) == (
        "collaboration/",
        {"tasks": "1"},
        "",
    )
    assert submitted.group is not None
    assert first.group is not None
    assert [*submitted.group.names] == ["c1", "c2", "c3"]
    assert [*submitted.group.cause_ids] == ["r-c1", "r-c2", "r-c3"]
    assert (first.actor, [*first.group.names]) == ("agent/0", ["c1/t", "c3/t"])
    assert first.group.attributes == {"token": ["7.0", "7.2"]}
    assert second == entries[4]


def test_an_entry_without_a_cause_stays_alone() -> None:
    entries = [EntryDraft(Instant(1), "service/scheduler", "alert.raise", f"agent/{at}") for at in range(3)]
    assert [*together(entries, 128)] == entries
