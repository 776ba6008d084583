"""Who does what, and when, as one self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 960
ROW = 26
TOP = 46
CHARACTER = 6.6
TICKS = 8
# The larger of two neighbouring steps of a scale is at most 2.5 times the smaller one.
_STEPS = (1, 2, 5)
_STYLE = """\
text { font: 12px sans-serif; fill: #222 }
.title { font-size: 15px; font-weight: bold }
.axis { stroke: #ddd }
.bar { fill: #7aa6c2; stroke: #fff }
.critical { fill: #d9822b }
.inside { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd }
  .axis { stroke: #444 }
  .bar, .critical { stroke: #111 }
}
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One piece of work: on which row, from when to when in milliseconds."""

    row: str
    label: str
    start_ms: int
    end_ms: int
    critical: bool = False


def draw(bars: Sequence[Bar], title: str) -> str:
    """Return the chart; rows in order of their first bar. Critical bars have a colour of their own."""
    rows = list(dict.fromkeys(bar.row for bar in sorted(bars, key=lambda bar: (bar.row, bar.start_ms))))
    end_ms = max((bar.end_ms for bar in bars), default=0) or 1
    left = 16 + max((len(row) for row in rows), default=0) * CHARACTER
    scale = (WIDTH - left - 24) / end_ms
    height = TOP + ROW * len(rows) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="12" y="22">{escape(title)}</text>',
    ]
    step = _step(end_ms)
    for instant in range(0, end_ms + 1, step):
        x = left + instant * scale
        bottom = TOP + ROW * len(rows)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_moment(instant, step)}</text>'
        )
    for number, row in enumerate(rows):
        y = TOP + ROW * number
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 15}" text-anchor="end">{escape(row)}</text>')
    for bar in bars:
        parts += _bar(bar, left + bar.start_ms * scale, TOP + ROW * rows.index(bar.row), scale)
    return "\n".join([*parts, "</svg>", ""])


def _bar(bar: Bar, x: float, y: int, scale: float) -> list[str]:
    width = max(1.0, (bar.end_ms - bar.start_ms) * scale)
    kind = "bar critical" if bar.critical else "bar"
    tip = f"{bar.label}: {bar.start_ms / 1_000:.3f} s to {bar.end_ms / 1_000:.3f} s"
    parts = [
        f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 5}" rx="3">'
        f"<title>{escape(tip)}</title></rect>"
    ]
    if len(bar.label) * CHARACTER < width - 6:
        parts.append(f'<text class="inside" x="{x + 5:.1f}" y="{y + 15}">{escape(bar.label)}</text>')
    return parts


def _step(end_ms: int) -> int:
    """Return a round distance between two ticks, so that there are at most about `TICKS`."""
    size = 1
    while True:
        for step in _STEPS:
            if end_ms / (step * size) <= TICKS:
                return step * size
        size *= 10


def _moment(instant_ms: int, step_ms: int) -> str:
    return f"{instant_ms} ms" if step_ms < 100 else f"{instant_ms / 1_000:g} s"
