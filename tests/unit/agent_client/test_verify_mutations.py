"""No change of a checkpoint, a proof, a tile or an entry is accepted, however small (goal R4)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from agent_client.verify import (
    Checkpoint,
    LogVerification,
    VerificationError,
    VerifierKey,
    verify_checkpoint,
    verify_consistency,
    verify_inclusion,
)
from services.audit.core.checkpoint import TreeHead, sign, verifier_key
from services.audit.core.proofs import Run, consistency_runs, hash_runs, inclusion_runs
from services.audit.core.tree import Tree, grow
from tests.unit.audit.audit_reference import FixedSigner

ORIGIN = "muster.internal/audit"
SIGNER = FixedSigner()
KEY = VerifierKey.parse(verifier_key(ORIGIN, SIGNER.public_key))
SIZES = (1, 2, 5, 6, 13)
LEAVES = [b"entry %d %s" % (n, b"x" * (n * 7 % 23)) for n in range(max(SIZES))]
TREES = {size: grow(Tree(), LEAVES[:size]) for size in SIZES}
HEADS = {size: Checkpoint(ORIGIN, size, TREES[size].tree.root()) for size in SIZES}
NOTES = {size: sign(ORIGIN, TreeHead(size, HEADS[size].root), SIGNER) for size in SIZES}
FILES = {size: {str(path): data for path, data in TREES[size].files} for size in SIZES}


def proof(size: int, runs: list[Run]) -> list[bytes]:
    tiles = dict(TREES[size].files)
    return hash_runs(runs, size, tiles.__getitem__)


INCLUSIONS = {
    (index, size): proof(size, inclusion_runs(index, size)) for size in SIZES for index in range(size)
}
CONSISTENCIES = {
    (old, new): proof(new, consistency_runs(old, new)) for new in SIZES for old in SIZES if old < new
}


def changed(data: bytes, choose: random.Random) -> bytes:
    """Return `data` with one thing different."""
    while True:
        at = choose.randrange(len(data) + 1)
        kind = choose.randrange(6)
        if kind == 0 and at < len(data):
            result = data[:at] + bytes([data[at] ^ 1 << choose.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            result = data[:at] + choose.randbytes(1) + data[at + 1 :]
        elif kind == 2:
            result = data[:at] + choose.randbytes(choose.randint(1, 3)) + data[at:]
        elif kind == 3:
            result = data[:at] + data[at + choose.randint(1, 3) :]
        elif kind == 4:
            result = data[:at]
        else:
            other = choose.randrange(len(data) + 1)
            result = data[:at] + data[min(at, other) : max(at, other)] + data[at:]
        if result != data:
            return result


def changed_proof(hashes: list[bytes], choose: random.Random) -> list[bytes]:
    while True:
        result = list(hashes)
        at = choose.randrange(len(result) + 1)
        kind = choose.randrange(4)
        if kind == 0 and at < len(result):
            result[at] = changed(result[at], choose)
        elif kind == 1 and at < len(result):
            del result[at]
        elif kind == 2:
            result.insert(at, choose.choice([choose.randbytes(32), *hashes]))
        elif len(result) > 1:
            choose.shuffle(result)
        if result != hashes:
            return result


def checkpoint_case(choose: random.Random) -> Callable[[], object]:
    note = changed(NOTES[choose.choice(SIZES)], choose)
    return lambda: verify_checkpoint(note, KEY)


def inclusion_case(choose: random.Random) -> Callable[[], object]:
    (index, size), hashes = choose.choice(list(INCLUSIONS.items()))
    leaf, head = LEAVES[index], HEADS[size]
    kind = choose.randrange(4)
    if kind == 0:
        leaf = changed(leaf, choose)
    elif kind == 1 and size > 1:
        index = choose.choice([other for other in range(-1, size + 2) if other != index])
    elif kind == 2:
        head = Checkpoint(ORIGIN, size, changed(head.root, choose))
    else:
        hashes = changed_proof(hashes, choose)
    return lambda: verify_inclusion(leaf, index, hashes, head)


def consistency_case(choose: random.Random) -> Callable[[], object]:
    (old_size, new_size), hashes = choose.choice(list(CONSISTENCIES.items()))
    old, new = HEADS[old_size], HEADS[new_size]
    kind = choose.randrange(3)
    if kind == 0:
        old = Checkpoint(ORIGIN, old_size, changed(old.root, choose))
    elif kind == 1:
        new = Checkpoint(ORIGIN, new_size, changed(new.root, choose))
    else:
        hashes = changed_proof(hashes, choose)
    return lambda: verify_consistency(old, new, hashes)


def whole_log_case(choose: random.Random) -> Callable[[], object]:
    size = choose.choice(SIZES)
    files = dict(FILES[size])
    path = choose.choice(list(files))
    files[path] = changed(files[path], choose)

    def check() -> None:
        whole = LogVerification(HEADS[size])
        for wanted in whole.wanted():
            whole.feed(wanted, files[wanted])
        whole.finish()

    return check


CASES = (checkpoint_case, inclusion_case, consistency_case, whole_log_case)


def campaign(count: int, seed: int) -> None:
    choose = random.Random(seed)
    for number in range(count):
        case = CASES[number % len(CASES)]
        state = choose.getstate()
        try:
            case(choose)()
        except VerificationError:
            continue
        choose.setstate(state)
        pytest.fail(f"mutation {number} of seed {seed} was accepted by {case.__name__}")


def test_what_was_not_changed_is_accepted() -> None:
    for size in SIZES:
        assert verify_checkpoint(NOTES[size], KEY) == HEADS[size]
        whole = LogVerification(HEADS[size])
        for path in whole.wanted():
            whole.feed(path, FILES[size][path])
        whole.finish()
    for (index, size), hashes in INCLUSIONS.items():
        verify_inclusion(LEAVES[index], index, hashes, HEADS[size])
    for (old, new), hashes in CONSISTENCIES.items():
        verify_consistency(HEADS[old], HEADS[new], hashes)


def test_twenty_thousand_changes_are_refused() -> None:
    campaign(20_000, seed=1)


@pytest.mark.nightly
def test_a_million_changes_are_refused() -> None:
    campaign(1_000_000, seed=2)
