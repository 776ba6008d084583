"""The agent of the README does what the README says."""

from __future__ import annotations

import json
from pathlib import Path

from agent_client.testing import InMemoryPlane
from examples.greeter import agent

ROOT = Path(__file__).parents[2]


async def test_it_greets() -> None:
    async with InMemoryPlane() as plane:
        plane.add(agent)
        result = await plane.submit(json.loads((ROOT / "examples" / "greeting.json").read_text()))
    assert result.outputs["hello"]["greeting"] == "Hello, Ada!"
    assert result.outputs["hello"]["token"]


def test_the_readmes_show_the_very_file() -> None:
    source = (ROOT / "examples" / "greeter.py").read_text()
    code = source[source.index("from agent_client") :]
    for name in ("README.md", "README.zh.md"):
        assert code in (ROOT / name).read_text(encoding="utf-8"), f"{name} shows another greeter"
