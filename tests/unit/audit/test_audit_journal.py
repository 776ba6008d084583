"""The journal is read as written; a torn end is told apart from damage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.audit.core.journal import (
    SALT_BYTES,
    DamagedJournalError,
    decode_segment,
    encode_batch,
    encode_opening,
)
from services.audit.core.model import Batch, Producer

SALT = bytes(range(SALT_BYTES))
BROKER = Producer("broker", "broker-1", "spool-a")
REGISTRY = Producer("registry", "registry-1", "spool-b")
OPENING = encode_opening(SALT, 7, {BROKER: 3, REGISTRY: 4})
BATCHES = (
    Batch(7, (b"one", b""), {BROKER: 5}),
    Batch(9, (b"three",), {REGISTRY: 5}),
    Batch(10, (b"four", b"five", b"six"), {BROKER: 7, REGISTRY: 6}),
)
RECORDS = [encode_batch(SALT, batch) for batch in BATCHES]
WHOLE = OPENING + b"".join(RECORDS)

names = st.text(min_size=0, max_size=20)
cursors = st.dictionaries(st.builds(Producer, names, names, names), st.integers(0, 2**63), max_size=5)


def test_a_segment_is_read_as_written() -> None:
    segment = decode_segment("1", WHOLE)
    assert segment.first_index == 7
    assert list(segment.cursors.items()) == [(BROKER, 3), (REGISTRY, 4)]
    assert segment.batches == BATCHES
    assert segment.end_index == 13
    assert not segment.torn
    assert decode_segment("1", OPENING).end_index == 7


@given(st.integers(0, 2**63), cursors, st.lists(st.binary(max_size=100), max_size=20), cursors)
def test_any_segment_is_read_as_written(
    first: int, opened: dict[Producer, int], leaves: list[bytes], changed: dict[Producer, int]
) -> None:
    batch = Batch(first, tuple(leaves), changed)
    segment = decode_segment("1", encode_opening(SALT, first, opened) + encode_batch(SALT, batch))
    assert (segment.first_index, segment.cursors, segment.batches) == (first, opened, (batch,))


def test_a_torn_last_record_is_left_out() -> None:
    before = len(WHOLE) - len(RECORDS[-1])
    for length in range(before + 1, len(WHOLE)):
        segment = decode_segment("1", WHOLE[:length])
        assert segment.batches == BATCHES[:2]
        assert segment.torn


def test_a_last_record_of_zeros_or_noise_is_torn() -> None:
    for noise in (bytes(500), b"\xff" * 500, RECORDS[-1][:40] + bytes(400)):
        segment = decode_segment("1", WHOLE + noise)
        assert segment.batches == BATCHES
        assert segment.torn


def test_damage_before_a_whole_record_is_refused() -> None:
    start, end = len(OPENING), len(WHOLE) - len(RECORDS[-1])
    for at in range(start, end):
        damaged = WHOLE[:at] + bytes([WHOLE[at] ^ 1 << at % 8]) + WHOLE[at + 1 :]
        with pytest.raises(DamagedJournalError, match="broken, but a whole one follows"):
            decode_segment("1", damaged)


def test_damage_in_the_last_record_is_never_read() -> None:
    for at in range(len(WHOLE) - len(RECORDS[-1]), len(WHOLE)):
        damaged = WHOLE[:at] + bytes([WHOLE[at] ^ 1 << at % 8]) + WHOLE[at + 1 :]
        assert decode_segment("1", damaged).batches == BATCHES[:2]


def test_a_damaged_opening_is_refused() -> None:
    for at in range(len(OPENING)):
        damaged = OPENING[:at] + bytes([OPENING[at] ^ 1 << at % 8]) + OPENING[at + 1 :]
        with pytest.raises(DamagedJournalError):
            decode_segment("1", damaged)
    for length in range(len(OPENING)):
        with pytest.raises(DamagedJournalError, match="opening"):
            decode_segment("1", OPENING[:length])


def test_an_entry_cannot_pass_for_a_record() -> None:
    # A producer that guesses the form but not the salt: a torn batch must stay a torn end.
    forged = encode_batch(bytes(SALT_BYTES), Batch(99, (b"forged",), {}))
    torn = encode_batch(SALT, Batch(7, (forged, b"x" * 100), {}))[:-1]
    segment = decode_segment("1", OPENING + torn)
    assert segment.batches == ()
    assert segment.torn


def test_a_batch_that_does_not_follow_is_refused() -> None:
    with pytest.raises(DamagedJournalError, match="does not continue leaf 7"):
        decode_segment("1", OPENING + RECORDS[1])
    with pytest.raises(DamagedJournalError, match="does not continue leaf 7"):
        decode_segment("1", OPENING + OPENING[OPENING.index(b"REC") - 2 :])


def test_a_file_of_something_else_is_refused() -> None:
    with pytest.raises(DamagedJournalError, match="opening"):
        decode_segment("1", b"SQLite format 3\0" + bytes(1000))
