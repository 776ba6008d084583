"""The arithmetic behind the printed figures, and what becomes of a peer that is not there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Figure, Runs, percentile, rounded
from benchmarks.machine import file_system
from benchmarks.programs import ProgramFailedError
from benchmarks.turns import Contender, Measured, MissingPeerError, take_turns


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0, 1))
def test_a_percentile_is_the_smallest_sample_that_enough_do_not_exceed(
    samples: list[float], q: float
) -> None:
    found = percentile(samples, q)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= q * len(samples)
    smaller = [sample for sample in samples if sample < found]
    assert not smaller or len(smaller) < q * len(samples)


def test_no_samples_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="samples"):
        percentile([], 0.5)


@pytest.mark.parametrize(
    ("value", "shown"), [(123_456.0, 123_000.0), (0.0012345, 0.00123), (99.96, 100.0), (0.0, 0.0)]
)
def test_three_digits_are_shown(value: float, shown: float) -> None:
    assert rounded(value) == shown


def test_a_ratio_above_one_is_better_whichever_way_is_better() -> None:
    faster = Figure("P1", "messages", 20.0, "messages/s", "other", 10.0)
    quicker = Figure("P2", "latency", 10.0, "ms", "other", 20.0, more_is_better=False)
    assert (faster.ratio, quicker.ratio) == (2.0, 2.0)
    alone = json.loads(Figure("C", "alone", 5.0, "x/s").line("machine", "abc"))
    assert alone["peer"] is alone["peer_value"] is alone["ratio"] is None
    assert (alone["machine"], alone["commit"]) == ("machine", "abc")


def test_the_median_stands_for_the_runs_and_the_spread_is_told() -> None:
    runs = Runs((5.0, 1.0, 3.0))
    assert runs.median == 3.0
    assert runs.spread == {"runs": 3, "min": 1.0, "max": 5.0}


def test_a_file_system_has_a_name(tmp_path: Path) -> None:
    assert file_system(tmp_path)


def contender(
    name: str, order: list[str], *, fails: Exception | None = None, is_peer: bool = False
) -> Contender:
    async def measure(folder: Path) -> Measured:
        (folder / "data").touch()
        if fails is not None:
            raise fails
        order.append(name)
        return {"rate": float(len(order))}

    return Contender(name, measure, is_peer)


def test_contenders_take_turns_in_folders_of_their_own(tmp_path: Path) -> None:
    order: list[str] = []
    taking_part = [contender("a", order), contender("b", order)]
    outcome = asyncio.run(take_turns(taking_part, 2, tmp_path))
    assert order == ["a", "b", "a", "b"]
    assert outcome.of("a", "rate").values == (1.0, 3.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", [MissingPeerError("not installed"), ProgramFailedError("it crashed")])
def test_a_peer_that_is_not_there_is_said_once_and_has_no_figure(
    fails: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taking_part = [contender("ours", []), contender("peer", [], fails=fails, is_peer=True)]
    outcome = asyncio.run(take_turns(taking_part, 3, tmp_path))
    assert not outcome.has("peer")
    said = capsys.readouterr().err
    assert said.count(f"peer is left out: {fails}") == 1


@pytest.mark.parametrize("fails", [MissingPeerError("not installed"), ProgramFailedError("it crashed")])
def test_ours_must_work(fails: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(fails)):
        asyncio.run(take_turns([contender("ours", [], fails=fails)], 1, tmp_path))
