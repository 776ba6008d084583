"""P6: audit entries per second, over mTLS, each durable before it is confirmed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.audit_load import FRAME_ENTRIES, WINDOW_FRAMES
from benchmarks.figures import Figure
from benchmarks.plane import running_plane
from benchmarks.programs import module, running
from benchmarks.turns import Contender, Measured, take_turns

_COUNT = 65_536
_DONE_S_MAX = 180.0
_AUDIT = "Muster's audit"


async def appended(folder: Path) -> Measured:
    """Measure one producer against the audit service of a whole plane."""
    async with running_plane(folder, []) as plane:
        load = module(
            "benchmarks.audit_load", "--home", plane.home, "--address", plane.addresses["audit-1"],
            "--count", _COUNT,
        )  # fmt: skip
        async with running("producer", load, folder) as program:
            done = await program.expect("done", _DONE_S_MAX)
    return {"rate": done["rate"], "entry_bytes": done["entry_bytes"]}


async def run(runs: int, directory: Path) -> list[Figure]:
    """Measure; Tessera, the reference of the goal, is not run here."""
    outcome = await take_turns([Contender(_AUDIT, appended)], runs, directory)
    params = outcome.params(
        _AUDIT, "rate", loop="closed", count=_COUNT, frame=FRAME_ENTRIES, window_frames=WINDOW_FRAMES,
        entry_bytes=outcome.of(_AUDIT, "entry_bytes").median,
    )  # fmt: skip
    rate = outcome.of(_AUDIT, "rate").median
    return [Figure("P6", "audit entries, synced before they are confirmed", rate, "entries/s", params=params)]
