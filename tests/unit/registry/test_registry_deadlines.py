"""One heap for all deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.core.instants import NEVER, Instant
from services.registry.core.deadlines import Deadlines


def test_nothing_armed_is_never_due() -> None:
    deadlines: Deadlines[str] = Deadlines()
    assert deadlines.next() == NEVER
    assert deadlines.due(Instant(2**40)) == []


def test_a_later_deadline_keeps_the_earlier_entry_an_earlier_one_replaces_it() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.arm("a", Instant(10))
    deadlines.arm("a", Instant(20))
    assert deadlines.next() == 10
    deadlines.arm("a", Instant(5))
    assert deadlines.due(Instant(10)) == [("a", Instant(5))]
    assert len(deadlines) == 0


def test_a_disarmed_key_never_comes_up() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.arm("a", Instant(10))
    deadlines.disarm("a")
    deadlines.disarm("b")
    assert deadlines.due(Instant(10)) == []


def test_the_heap_stays_as_large_as_what_is_armed() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for at in range(10_000):
        deadlines.arm(at % 3, Instant(1_000_000 - at))
        deadlines.disarm((at + 1) % 3)
    assert len(deadlines._heap) < 100


@given(
    st.lists(
        st.tuples(st.sampled_from(["arm", "disarm", "due"]), st.integers(0, 5), st.integers(0, 100)),
        max_size=60,
    )
)
def test_like_a_plain_dictionary(actions: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, int] = {}
    for action, key, at in actions:
        if action == "arm":
            deadlines.arm(key, Instant(at))
            model[key] = min(at, model.get(key, at))
        elif action == "disarm":
            deadlines.disarm(key)
            model.pop(key, None)
        else:
            due = {key for key, when in model.items() if when <= at}
            assert dict(deadlines.due(Instant(at))) == {key: model.pop(key) for key in due}
        assert len(deadlines) == len(model)
        assert deadlines.next() == min(model.values(), default=NEVER)
