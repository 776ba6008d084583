"""`python -m benchmarks scheduling`: the figures S1, S2, …; docs/scheduling.md says how each is computed.

A figure is a module here whose name starts with its id: `s4_online.py` is S4. Its first line of documentation
is what `--help` says, and it has one function, `run(options) -> Iterable[Figure]`. Nothing else registers it.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.machine import commit, machine
from benchmarks.programs import ROOT
from benchmarks.scheduling.kept import Kept
from benchmarks.scheduling.options import Options
from benchmarks.scheduling.picture import gantt
from benchmarks.turns import say

DATA_DEFAULT = ROOT.parent / "shared" / "data"


def figures() -> dict[str, ModuleType]:
    """Return the modules of all figures by their ids, in order."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if re.match(r"s\d+_", module.name)]
    names.sort(key=lambda name: int(name[1 : name.index("_")]))
    return {name.partition("_")[0].upper(): importlib.import_module(f"{__name__}.{name}") for name in names}


def main(arguments: Sequence[str]) -> int:
    """Print the figures asked for, each as soon as it is known; return the exit code."""
    known = figures()
    texts = "\n".join(
        f"  {name:<4} {(module.__doc__ or '').splitlines()[0]}" for name, module in known.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scheduling",
        description=f"{(__doc__ or '').splitlines()[0]}\n\nfigures:\n{texts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        metavar="S1,S2",
        type=lambda text: text.upper().split(","),
        help="which figures (default: all)",
    )
    parser.add_argument(
        "--data", type=Path, default=DATA_DEFAULT, help="folder of the data sets (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a sample of each figure, said in its params")
    parser.add_argument("--draws", type=int, help="fleets drawn for each cell (default: each figure's own)")
    parser.add_argument(
        "--seconds", type=float, help="budget of a plan, for 100 tasks in S1 (default: each figure's own)"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="write down each case of S1 and S2 as it is measured, and measure none that is there: a run that"
        " was stopped goes on where it was",
    )
    parser.add_argument("--gantt", type=Path, metavar="FILE", help="only draw the chart of the document")
    parser.add_argument("--directory", type=Path, help="where data goes while it runs (default: $TMPDIR)")
    parsed = parser.parse_args(arguments)
    wanted = parsed.only or list(known)
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"there is no figure {', '.join(unknown)}; there are {', '.join(known)}")
    if not parsed.data.is_dir():
        parser.error(f"{parsed.data} is not a folder; --data names the one with wfinstances/ in it")
    if parsed.gantt:
        parsed.gantt.write_text(gantt(parsed.data), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=parsed.directory) as folder:
        options = Options(
            parsed.data, parsed.quick, Path(folder), parsed.draws, parsed.seconds, Kept(parsed.keep)
        )
        where, what = machine(options.directory), commit()
        for name in wanted:
            say(f"{name}: {(known[name].__doc__ or '').splitlines()[0]}")
            for figure in known[name].run(options):
                print(figure.line(where, what), flush=True)
    return 0
