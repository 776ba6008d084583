"""A figure: what was measured, beside whom, and where. One JSON line each; see README.md for the fields."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

Param = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity, with a peer's beside it where there is one."""

    id: str
    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    # True for throughput, False for latency.
    more_is_better: bool = True
    params: Mapping[str, Param] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Above 1: better than the peer. None without a peer."""
        if self.peer_value is None:
            return None
        return self.value / self.peer_value if self.more_is_better else self.peer_value / self.value

    def line(self, machine: str, commit: str) -> str:
        """Return the figure as one JSON line."""
        document = {
            "id": self.id,
            "name": self.name,
            "value": rounded(self.value),
            "unit": self.unit,
            "peer": self.peer,
            "peer_value": None if self.peer_value is None else rounded(self.peer_value),
            "ratio": None if self.ratio is None else rounded(self.ratio),
            "params": dict(self.params),
            "machine": machine,
            "commit": commit,
        }
        return json.dumps(document, ensure_ascii=False)


def rounded(value: float) -> float:
    """Return `value` with three significant digits: what a noisy machine can vouch for, or less."""
    if value == 0 or not math.isfinite(value):
        return value
    digits = 2 - math.floor(math.log10(abs(value)))
    return round(value, digits) if digits > 0 else float(round(value, digits))


def percentile(samples: Sequence[float], q: float) -> float:
    """Return the smallest sample that at least the share `q` of all samples does not exceed."""
    if not samples:
        raise ValueError("a percentile needs samples")
    return sorted(samples)[max(0, math.ceil(q * len(samples)) - 1)]


@dataclass(frozen=True, slots=True)
class Runs:
    """The values of one quantity over several runs."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value that stands for all."""
        return median(self.values)

    @property
    def spread(self) -> Mapping[str, Param]:
        """What the median hides, as parameters of a figure."""
        return {"runs": len(self.values), "min": rounded(min(self.values)), "max": rounded(max(self.values))}
