"""Log lines: one JSON object each, with cause and story, without what is too long."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from services.common import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, ours = root.handlers[:], root.level, logging.getLogger("muster").level
    yield (stream := io.StringIO())
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("muster").setLevel(ours)
    assert stream is not None


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_who_what_and_why(stream: io.StringIO) -> None:
    logs.configure("registry", "r-1", "INFO", stream)
    log = logs.get("registry.driver")
    log.debug("not said")
    log.info("session opened", cause_id="rpc-1", agent="智能体", n=3, ratio=0.5, none=None, path=["x"])
    log.warning("plain")
    said, plain = lines(stream)
    assert said.pop("ts").endswith("+00:00")
    assert said == {
        "level": "INFO",
        "service": "registry",
        "replica": "r-1",
        "logger": "muster.registry.driver",
        "msg": "session opened",
        "cause_id": "rpc-1",
        "fields": {"agent": "智能体", "n": 3, "ratio": 0.5, "none": None, "path": "['x']"},
    }
    assert "cause_id" not in plain
    assert "fields" not in plain


def test_an_error_carries_its_story_on_one_line(stream: io.StringIO) -> None:
    logs.configure("registry", "r-1", "ERROR", stream)
    try:
        raise KeyError("lost\nkey")
    except KeyError as error:
        logs.get("x").error("failed", error=error)
    (line,) = lines(stream)
    assert line["story"].startswith("Traceback")
    assert "KeyError" in line["story"]


def test_libraries_are_formatted_too(stream: io.StringIO) -> None:
    logs.configure("registry", "r-1", "DEBUG", stream)
    library = logging.getLogger("some.library")
    library.info("chatter")
    try:
        raise ValueError("bad")
    except ValueError:
        library.exception("went %s", "wrong")
    (line,) = lines(stream)
    assert line["msg"] == "went wrong"
    assert "ValueError: bad" in line["story"]


def test_a_long_value_is_cut(stream: io.StringIO) -> None:
    logs.configure("registry", "r-1", "INFO", stream)
    logs.get("x").info("big", value="y" * 10_000)
    (line,) = lines(stream)
    assert len(line["fields"]["value"]) == logs.VALUE_CHARACTERS_MAX + 1


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        logs.configure("x", "y", "LOUD")
