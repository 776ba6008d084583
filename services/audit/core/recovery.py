"""From what is on disk to the state of the log, or a refusal that says what does not fit.

Pure: the stores read, this decides. A log that contradicts itself must not sign anything more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from services.audit.core.checkpoint import TreeHead
from services.audit.core.journal import DamagedJournalError, Segment
from services.audit.core.model import Producer, Recovered
from services.audit.core.tiles import TILE_WIDTH, TilePath, decode_bundle
from services.audit.core.tree import ContradictionError, restore


def relevant_segments(first_indices: Sequence[int], size: int) -> int:
    """Return the position of the oldest segment that is needed, given where each segment starts.

    All before the last one that starts at or before `size` hold published leaves only; some of them may be
    missing, because a crash can undo one removal and keep the next.
    """
    needed = [at for at, first in enumerate(first_indices) if first <= size]
    if not needed:
        raise ContradictionError(
            f"no journal segment reaches back to leaf {size}, where the checkpoint ends: files are missing"
        )
    return needed[-1]


def recover(
    checkpoint: bytes,
    head: TreeHead,
    segments: Sequence[tuple[str, Segment]],
    read: Callable[[TilePath], bytes],
) -> Recovered:
    """Return the log whose newest checkpoint has `head`, whose journal is `segments`, oldest first.

    Raises `ContradictionError` or `DamagedJournalError`.
    """
    tree = restore(head.size, head.root, read)
    first_index, leaves, cursors = _replay(segments)
    if first_index + len(leaves) < head.size:
        raise ContradictionError(
            f"the journal ends at leaf {first_index + len(leaves)}, before the checkpoint's {head.size}: "
            "files are missing"
        )
    if first_index > head.size:
        raise ContradictionError(
            f"the journal starts at leaf {first_index}, after the checkpoint's {head.size}"
        )
    # The leaves that the journal shares with the last partial bundle show that both are of one log.
    bundle_start = head.size - head.size % TILE_WIDTH
    shared_from = max(first_index, bundle_start)
    in_bundle = decode_bundle(tree.bundle)[shared_from - bundle_start :]
    if in_bundle != leaves[shared_from - first_index : head.size - first_index]:
        raise ContradictionError(f"the journal and the tiles disagree about the leaves before {head.size}")
    return Recovered(checkpoint, tree, tuple(leaves[head.size - first_index :]), cursors)


def _replay(segments: Sequence[tuple[str, Segment]]) -> tuple[int, list[bytes], Mapping[Producer, int]]:
    """Return the index of the first leaf, all leaves, and where the producers stand after them."""
    start = segments[0][1].first_index
    leaves: list[bytes] = []
    cursors: dict[Producer, int] = {}
    for position, (name, segment) in enumerate(segments):
        index = start + len(leaves)
        if segment.first_index != index:
            raise DamagedJournalError(
                f"{name} starts at leaf {segment.first_index}, but the leaves before it end at {index}"
            )
        cursors = dict(segment.cursors)
        # What the next segment supersedes was never acked.
        later = segments[position + 1 :]
        end = later[0][1].first_index if later else segment.end_index
        for batch in segment.batches:
            if batch.first_index >= end:
                break
            leaves.extend(batch.leaves)
            for producer, sequence in batch.cursors.items():
                cursors.pop(producer, None)
                cursors[producer] = sequence
    return start, leaves, cursors
