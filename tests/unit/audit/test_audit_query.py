"""Filters match what they say; page tokens are of one filter and one log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.audit.core.query import (
    EntryFilter,
    IndexRow,
    PageStart,
    RowGroup,
    decode_page_token,
    encode_page_token,
    prefix_end,
)
from services.common.core.errors import ServiceError
from services.common.core.instants import Instant

ROW = IndexRow(Instant(1_000), "broker", "agent/a", "envelope.accept", "message/7", 1, "c-1", "rpc-1")


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (EntryFilter(), True),
        (EntryFilter(operation="envelope.*"), True),
        (EntryFilter(operation="envelope"), False),
        (EntryFilter(operation="*"), True),
        (EntryFilter(subject="message/7"), True),
        (EntryFilter(subject="message/*"), True),
        (EntryFilter(actor="agent/*"), False),
        (EntryFilter(outcomes=frozenset({1, 2})), True),
        (EntryFilter(outcomes=frozenset({2})), False),
        (EntryFilter(start_time=Instant(1_000), end_time=Instant(1_001)), True),
        (EntryFilter(end_time=Instant(1_000)), False),
        (EntryFilter(start_time=Instant(1_001)), False),
        (EntryFilter(service="broker", collaboration_id="c-1", cause_id="rpc-1"), True),
        (EntryFilter(service="broker", collaboration_id="c-2"), False),
    ],
)
def test_all_fields_must_match(wanted: EntryFilter, matches: bool) -> None:
    assert wanted.matches(ROW) is matches


GROUPED = ROW._replace(
    subject="envelope/alpha/",
    collaboration_id="",
    cause_id="",
    group=RowGroup(("m-1", "m-2", "m-3"), ("", "rpc-2", ""), ("c-1", "c-2", "")),
)


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [
        (EntryFilter(subject="envelope/alpha/m-1"), (0,)),
        (EntryFilter(subject="envelope/alpha/*"), ()),
        (EntryFilter(subject="env*"), ()),
        (EntryFilter(subject="envelope/alpha/m-3*"), (2,)),
        (EntryFilter(subject="envelope/alpha/m-*", collaboration_id="c-2"), (1,)),
        # Without a cause an operation is its own.
        (EntryFilter(cause_id="m-3"), (2,)),
        (EntryFilter(cause_id="rpc-2"), (1,)),
        (EntryFilter(actor="agent/a"), ()),
        # Both must hold for one and the same operation.
        (EntryFilter(subject="envelope/alpha/m-1", cause_id="rpc-2"), None),
        (EntryFilter(subject="envelope/alpha/m-1", collaboration_id="c-2"), None),
        (EntryFilter(subject="envelope/alpha/"), None),
        (EntryFilter(subject="envelope/alpha/m-4"), None),
        (EntryFilter(cause_id="m-2"), None),
        (EntryFilter(actor="agent/b", cause_id="rpc-2"), None),
    ],
)
def test_a_group_matches_when_one_operation_does(
    wanted: EntryFilter, positions: tuple[int, ...] | None
) -> None:
    assert wanted.matches(GROUPED) is (positions is not None)
    if positions is not None:
        assert wanted.positions(GROUPED) == positions
        assert wanted.name_wanted() in {"", *GROUPED.names()}


texts = st.text(alphabet="ab/", max_size=4)


@given(texts, st.lists(texts, min_size=2, max_size=5), st.data())
def test_a_group_has_every_name_by_which_its_operations_are_looked_for(
    subject: str, names: list[str], data: st.DataObject
) -> None:
    full = st.lists(texts, min_size=len(names), max_size=len(names))
    group = RowGroup(names, data.draw(st.one_of(st.just(()), full)), data.draw(st.one_of(st.just(()), full)))
    row = GROUPED._replace(subject=subject, group=group, cause_id="" if group.cause_ids else data.draw(texts))
    for one in row.operations():
        for wanted in (
            EntryFilter(subject=one.subject),
            EntryFilter(cause_id=one.cause_id),
            EntryFilter(collaboration_id=one.collaboration_id),
        ):
            assert wanted.matches(row)
            assert wanted.name_wanted() in {"", *row.names()}


def test_a_page_token_is_read_as_written() -> None:
    wanted = EntryFilter(actor="agent/a")
    token = encode_page_token(PageStart(500, 17), wanted)
    assert decode_page_token(token, wanted, 500) == PageStart(500, 17)
    assert decode_page_token(token, wanted, 10_000) == PageStart(500, 17)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (encode_page_token(PageStart(500, 17), EntryFilter()), "another filter"),
        (encode_page_token(PageStart(501, 17), EntryFilter(actor="agent/a")), "not of this log"),
        (encode_page_token(PageStart(100, 101), EntryFilter(actor="agent/a")), "not of this log"),
        ("", "not one that a page came with"),
        ("AAAA", "not one that a page came with"),
        ("!" * 32, "not one that a page came with"),
        ("é", "not one that a page came with"),
    ],
)
def test_a_token_of_something_else_is_refused(token: str, said: str) -> None:
    with pytest.raises(ServiceError, match=said) as caught:
        decode_page_token(token, EntryFilter(actor="agent/a"), 500)
    assert caught.value.violations[0].field == "page.page_token"


@given(st.text(max_size=60))
def test_a_hostile_token_is_refused(token: str) -> None:
    with pytest.raises(ServiceError):
        decode_page_token(token, EntryFilter(), 10)


def test_every_filter_has_a_digest_of_its_own() -> None:
    filters = [
        EntryFilter(),
        EntryFilter(actor="a"),
        EntryFilter(service="a"),
        EntryFilter(outcomes=frozenset({1})),
        EntryFilter(start_time=Instant(0)),
        EntryFilter(end_time=Instant(0)),
    ]
    assert len({one.digest() for one in filters}) == len(filters)
    assert (
        EntryFilter(outcomes=frozenset({1, 2})).digest() == EntryFilter(outcomes=frozenset({2, 1})).digest()
    )


characters = st.characters(exclude_categories=["Cs"])


@given(st.text(characters, max_size=5), st.text(characters, max_size=8))
def test_a_prefix_is_a_range(prefix: str, text: str) -> None:
    end = prefix_end(prefix)
    assert text.startswith(prefix) == (text >= prefix and (end is None or text < end))
    assert (prefix + text) >= prefix
    assert end is None or (prefix + text) < end


def test_the_end_of_a_prefix_passes_over_what_no_text_has() -> None:
    assert prefix_end("a") == "b"
    assert prefix_end("a\U0010ffff") == "b"
    assert prefix_end("\U0010ffff") is None
    assert prefix_end("\ud7ff") == "\ue000"
    assert prefix_end("") is None
