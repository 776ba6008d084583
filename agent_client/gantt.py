"""Who does what, and when, as one self-contained SVG: a row for each slot, a bar for each piece of work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _RIGHT = 960, 24
_ROW, _GAP, _TITLE, _AXIS = 20, 4, 30, 26
_CHARACTER = 6.4
_TICKS = 8
# Two neighbours of these steps are at most 2.5 times as far apart.
_STEPS = (1, 2, 5)
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#444}.title{font-weight:600;font-size:13px}"
    ".row{fill:#8881}.bar{fill:#6b9bd1}.critical{fill:#d9822b}.inside{fill:#fff}"
    ".axis{stroke:#8886;stroke-width:1}rect{shape-rendering:crispEdges}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.row{fill:#fff1}.inside{fill:#111}}"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One piece of work: on which row, from when to when in milliseconds; critical ones stand out."""

    row: str
    label: str
    start_ms: int
    end_ms: int
    critical: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars under a title. `rows` says which rows there are, in which order; empty: those of the bars."""

    title: str
    bars: Sequence[Bar]
    rows: Sequence[str] = ()

    @property
    def all_rows(self) -> list[str]:
        """The rows from top to bottom."""
        return list(self.rows) or sorted({bar.row for bar in self.bars})


def draw(charts: Sequence[Chart]) -> str:
    """Return the picture: charts below each other on one scale; a bar says its times when pointed at."""
    end_ms = max((bar.end_ms for chart in charts for bar in chart.bars), default=0) or 1
    names = [row for chart in charts for row in chart.all_rows]
    left = 16 + max(map(len, names), default=0) * _CHARACTER
    scale = (_WIDTH - left - _RIGHT) / end_ms
    parts, top = list[str](), 0
    for chart in charts:
        parts += _chart(chart, left, top, scale)
        top += _TITLE + len(chart.all_rows) * (_ROW + _GAP)
    parts += _axis(end_ms, left, top, scale)
    height = top + _AXIS
    title = escape(charts[0].title) if charts else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" role="img"><title>{title}</title><style>{_STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _chart(chart: Chart, left: float, top: int, scale: float) -> Iterator[str]:
    yield f'<text class="title" x="12" y="{top + 19}">{escape(chart.title)}</text>'
    place = {}
    width = _WIDTH - _RIGHT - left
    for number, row in enumerate(chart.all_rows):
        y = place[row] = top + _TITLE + number * (_ROW + _GAP)
        yield f'<rect class="row" x="{left:.1f}" y="{y}" width="{width:.1f}" height="{_ROW}"/>'
        yield f'<text x="{left - 8:.1f}" y="{y + 14}" text-anchor="end">{escape(row)}</text>'
    for bar in chart.bars:
        yield from _bar(bar, left + bar.start_ms * scale, place[bar.row], scale)


def _bar(bar: Bar, x: float, y: int, scale: float) -> Iterator[str]:
    # A hair of room between neighbours, so that they can be told apart.
    width = max(0.6, (bar.end_ms - bar.start_ms) * scale - 0.6)
    kind = "bar critical" if bar.critical else "bar"
    times = f"{bar.start_ms / 1_000:.3f} s to {bar.end_ms / 1_000:.3f} s"
    yield (
        f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW}">'
        f"<title>{escape(bar.label)}: {times}</title></rect>"
    )
    if len(bar.label) * _CHARACTER < width - 8:
        yield f'<text class="inside" x="{x + 4:.1f}" y="{y + 14}">{escape(bar.label)}</text>'


def _axis(end_ms: int, left: float, bottom: int, scale: float) -> Iterator[str]:
    step = _step(end_ms)
    for instant in range(0, end_ms + 1, step):
        x = left + instant * scale
        moment = f"{instant} ms" if step < 100 else f"{instant / 1_000:g} s"
        yield f'<line class="axis" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{bottom}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{moment}</text>'


def _step(end_ms: int) -> int:
    """Return a round distance between two ticks, so that there are at most about `_TICKS`."""
    size = 1
    while True:
        for step in _STEPS:
            if end_ms / (step * size) <= _TICKS:
                return step * size
        size *= 10
