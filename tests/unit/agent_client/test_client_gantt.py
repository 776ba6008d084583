"""The chart of a plan: a picture on its own, with every bar, whatever its names are."""

from __future__ import annotations

from xml.etree import ElementTree

from agent_client.gantt import Bar, Chart, draw

SVG = "{http://www.w3.org/2000/svg}"


def test_every_bar_is_drawn_on_its_row_and_critical_ones_stand_out() -> None:
    bars = [
        Bar("field-1", "survey", 0, 4_000),
        Bar("field-1", "report", 4_000, 10_000, critical=True),
        Bar("e-agent", "go", 2_000, 3_000),
    ]
    root = ElementTree.fromstring(draw([Chart("flood", bars)]))
    drawn = [bar for bar in root.findall(f"{SVG}rect") if "bar" in bar.get("class", "")]
    assert [bar.get("class") for bar in drawn] == ["bar", "bar critical", "bar"]
    first, second, third = ({key: float(bar.get(key, "0")) for key in ("x", "y", "width")} for bar in drawn)
    assert first["y"] == second["y"] != third["y"]
    assert second["width"] > first["width"] > third["width"]
    assert abs(first["x"] + first["width"] - second["x"]) < 1
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"flood", "field-1", "e-agent", "survey", "10 s"} <= set(texts)


def test_hostile_names_stay_text_and_nothing_is_fetched() -> None:
    drawn = draw([Chart("<&>", [Bar('<a href="x">', "</text><script>", 0, 10)])])
    root = ElementTree.fromstring(drawn)
    assert not root.findall(f".//{SVG}script")
    assert "&lt;a href" in drawn


def test_an_empty_plan_and_a_long_one() -> None:
    ElementTree.fromstring(draw([]))
    long = ElementTree.fromstring(draw([Chart("a month", [Bar("a", "b", 0, 30 * 24 * 3_600_000)])]))
    assert len(long.findall(f"{SVG}line")) <= 10


def test_charts_share_one_scale_and_idle_rows_are_shown() -> None:
    charts = [
        Chart("short", [Bar("a", "x", 0, 500)], rows=["a", "b"]),
        Chart("long", [Bar("a", "x", 0, 1_000)], rows=["a", "b"]),
    ]
    root = ElementTree.fromstring(draw(charts))
    assert len([row for row in root.findall(f"{SVG}rect") if row.get("class") == "row"]) == 4
    short, long = (float(bar.get("width", "0")) for bar in root.findall(f"{SVG}rect[@class='bar']"))
    assert abs(2 * short - long) < 1
