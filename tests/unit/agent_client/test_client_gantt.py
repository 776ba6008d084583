"""The chart of a plan: a picture on its own, with every bar, whatever its names are."""

from __future__ import annotations

from xml.etree import ElementTree

from agent_client.cli.gantt import Bar, draw

SVG = "{http://www.w3.org/2000/svg}"


def test_every_bar_is_drawn_on_its_row_and_critical_ones_stand_out() -> None:
    bars = [
        Bar("field-1", "survey", 0, 4_000),
        Bar("field-1", "report", 4_000, 10_000, critical=True),
        Bar("e-agent", "go", 2_000, 3_000),
    ]
    root = ElementTree.fromstring(draw(bars, "flood"))
    drawn = root.findall(f"{SVG}rect")
    assert [bar.get("class") for bar in drawn] == ["bar", "bar critical", "bar"]
    first, second, third = ({key: float(bar.get(key, "0")) for key in ("x", "y", "width")} for bar in drawn)
    assert first["y"] == second["y"] != third["y"]
    assert second["width"] > first["width"] > third["width"]
    assert abs(first["x"] + first["width"] - second["x"]) < 0.3
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"flood", "field-1", "e-agent", "survey", "10 s"} <= set(texts)


def test_hostile_names_stay_text_and_nothing_is_fetched() -> None:
    drawn = draw([Bar('<a href="x">', "</text><script>", 0, 10)], "<&>")
    root = ElementTree.fromstring(drawn)
    assert not root.findall(f".//{SVG}script")
    assert "&lt;a href" in drawn


def test_an_empty_plan_and_a_long_one() -> None:
    ElementTree.fromstring(draw([], "nothing"))
    long = ElementTree.fromstring(draw([Bar("a", "b", 0, 30 * 24 * 3_600_000)], "a month"))
    assert len(long.findall(f"{SVG}line")) <= 10
