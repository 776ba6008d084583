"""The verifier accepts what is true and names what is wrong; the prover is the audit service's own core."""

import base64
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_client.verify import (
    Checkpoint,
    ConsistencyError,
    InclusionError,
    IncompleteError,
    LogReport,
    LogVerification,
    MalformedCheckpointError,
    MalformedKeyError,
    MalformedProofError,
    MalformedTileError,
    OriginError,
    RootError,
    SignatureError,
    TileError,
    VerificationError,
    VerifierKey,
    _path,
    verify_checkpoint,
    verify_consistency,
    verify_inclusion,
    verify_note,
)
from services.audit.core.checkpoint import TreeHead, sign, verifier_key
from services.audit.core.proofs import consistency_runs, hash_runs, inclusion_runs
from services.audit.core.tree import Tree, grow
from tests.unit.audit.audit_reference import LEAVES, ROOTS, FixedSigner

ORIGIN = "muster.internal/audit"
SIGNER = FixedSigner()
KEY = VerifierKey.parse(verifier_key(ORIGIN, SIGNER.public_key))
ALL_LEAVES = [b"leaf %d" % n for n in range(1_500)]


def head(size: int, leaves: list[bytes] = ALL_LEAVES) -> Checkpoint:
    return Checkpoint(ORIGIN, size, grow(Tree(), leaves[:size]).tree.root())


def tiles(size: int) -> dict[str, bytes]:
    return {str(path): data for path, data in grow(Tree(), ALL_LEAVES[:size]).files}


def inclusion(index: int, size: int) -> list[bytes]:
    files = dict(grow(Tree(), ALL_LEAVES[:size]).files)
    return hash_runs(inclusion_runs(index, size), size, files.__getitem__)


def consistency(old: int, new: int) -> list[bytes]:
    files = dict(grow(Tree(), ALL_LEAVES[:new]).files)
    return hash_runs(consistency_runs(old, new), new, files.__getitem__)


# Keys and checkpoints.


def test_a_published_note_verifies() -> None:
    # The example of golang.org/x/mod/sumdb/note, written by another implementation.
    key = VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    signature = (
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotp"
        "RZb6KE6RyyBwJnAM=\n"
    )
    assert verify_note(f"{text}\n{signature}".encode(), key) == text.encode()
    assert str(key) == "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    with pytest.raises(SignatureError, match="does not verify"):
        verify_note(f"{text}\n{signature}".replace("answer", "reason").encode(), key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+c74f20a3",
        "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "Other+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+Ahpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+not base64",
        "PeterNeumann+c74f20a3+ARpc",
        "PeterNeumann+c74f20a3+schlüssel",
    ],
)
def test_a_malformed_key_is_refused(text: str) -> None:
    with pytest.raises(MalformedKeyError):
        VerifierKey.parse(text)


def test_a_checkpoint_verifies() -> None:
    note = sign(ORIGIN, TreeHead(300, head(300).root), SIGNER)
    assert verify_checkpoint(note, KEY) == head(300)
    assert verify_checkpoint(note, KEY, origin=ORIGIN) == head(300)


def test_signatures_of_others_are_ignored() -> None:
    note = sign(ORIGIN, TreeHead(300, head(300).root), SIGNER)
    witness = base64.b64encode(b"\x01\x02\x03\x04" + bytes(64)).decode()
    assert verify_checkpoint(note + f"— witness.example/w1 {witness}\n".encode(), KEY) == head(300)
    same_name = base64.b64encode(b"\x01\x02\x03\x04" + bytes(64)).decode()
    assert verify_checkpoint(note + f"— {ORIGIN} {same_name}\n".encode(), KEY) == head(300)


def test_a_signature_counts_once() -> None:
    note = sign(ORIGIN, TreeHead(300, head(300).root), SIGNER)
    with pytest.raises(MalformedCheckpointError, match="signed twice"):
        verify_checkpoint(note + note.rpartition(b"\n\n")[2], KEY)


def test_every_changed_bit_of_a_checkpoint_is_refused() -> None:
    note = sign(ORIGIN, TreeHead(300, head(300).root), SIGNER)
    for at in range(len(note)):
        for bit in range(8):
            changed = note[:at] + bytes([note[at] ^ 1 << bit]) + note[at + 1 :]
            with pytest.raises((MalformedCheckpointError, SignatureError)):
                verify_checkpoint(changed, KEY)


def test_a_checkpoint_of_another_key_or_log_is_refused() -> None:
    note = sign(ORIGIN, TreeHead(0, head(0).root), FixedSigner(b"other"))
    with pytest.raises(SignatureError, match="no signature by"):
        verify_checkpoint(note, KEY)
    with pytest.raises(OriginError, match=r"not 'other\.example'"):
        verify_checkpoint(sign(ORIGIN, TreeHead(0, head(0).root), SIGNER), KEY, origin="other.example")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{ORIGIN}\n1\n", "three lines"),
        (f"{ORIGIN}\n01\n{'A' * 43}=\n", "tree size"),
        (f"{ORIGIN}\n-1\n{'A' * 43}=\n", "tree size"),
        (f"{ORIGIN}\n1\n{'A' * 42}==\n", "base64 hash"),
        (f"{ORIGIN}\n1\nAAAA\n", "base64 hash"),
        (f"{ORIGIN}\n\n1\n{'A' * 43}=\n", "three lines"),
    ],
)
def test_a_signed_text_that_is_no_checkpoint_is_refused(text: str, said: str) -> None:
    blob = base64.b64encode(KEY.key_id + SIGNER.sign(text.encode())).decode()
    with pytest.raises(MalformedCheckpointError, match=said):
        verify_checkpoint(f"{text}\n— {ORIGIN} {blob}\n".encode(), KEY)


@given(st.binary(max_size=300))
def test_hostile_bytes_are_refused_as_checkpoint(note: bytes) -> None:
    with pytest.raises(VerificationError):
        verify_checkpoint(note, KEY)


# Inclusion.


@pytest.mark.parametrize("size", range(1, 9))
def test_inclusion_in_the_published_trees(size: int) -> None:
    checkpoint = Checkpoint(ORIGIN, size, bytes.fromhex(ROOTS[size]))
    files = dict(grow(Tree(), LEAVES[:size]).files)
    for index in range(size):
        proof = hash_runs(inclusion_runs(index, size), size, files.__getitem__)
        verify_inclusion(LEAVES[index], index, proof, checkpoint)


@settings(max_examples=50)
@given(st.data())
def test_inclusion_holds_for_the_leaf_and_for_no_other_place(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 1_500))
    index = data.draw(st.integers(0, size - 1))
    proof, checkpoint = inclusion(index, size), head(size)
    verify_inclusion(ALL_LEAVES[index], index, proof, checkpoint)
    other = data.draw(st.integers(0, size - 1).filter(lambda n: n != index or size == 1))
    if other != index:
        with pytest.raises((InclusionError, MalformedProofError)):
            verify_inclusion(ALL_LEAVES[index], other, proof, checkpoint)
        with pytest.raises(InclusionError):
            verify_inclusion(ALL_LEAVES[other], index, proof, checkpoint)


@pytest.mark.parametrize(("index", "size"), [(0, 2), (5, 8), (6, 7), (299, 300), (256, 300)])
def test_every_changed_byte_of_an_inclusion_proof_is_refused(index: int, size: int) -> None:
    proof, checkpoint = inclusion(index, size), head(size)
    for changed in mutations(proof):
        with pytest.raises((InclusionError, MalformedProofError)):
            verify_inclusion(ALL_LEAVES[index], index, changed, checkpoint)


def test_a_leaf_beyond_the_tree_is_refused() -> None:
    for index in (8, -1, 10**9):
        with pytest.raises(InclusionError, match="not in a tree of 8"):
            verify_inclusion(b"x", index, [], head(8))


# Consistency.


def test_consistency_of_all_small_trees() -> None:
    for new in range(41):
        for old in range(new + 1):
            verify_consistency(head(old), head(new), consistency(old, new))


@settings(max_examples=50)
@given(st.data())
def test_consistency_holds_for_these_sizes_only(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, 1_500))
    old = data.draw(st.integers(1, new - 1))
    proof = consistency(old, new)
    verify_consistency(head(old), head(new), proof)
    other = data.draw(st.integers(1, new - 1).filter(lambda n: n != old or new == 2))
    if other != old:
        with pytest.raises((ConsistencyError, MalformedProofError)):
            verify_consistency(head(other), head(new), proof)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (3, 8), (6, 7), (256, 300), (255, 300), (299, 300)])
def test_every_changed_byte_of_a_consistency_proof_is_refused(old: int, new: int) -> None:
    proof = consistency(old, new)
    for changed in mutations(proof):
        with pytest.raises((ConsistencyError, MalformedProofError)):
            verify_consistency(head(old), head(new), changed)


def test_a_rewritten_log_is_not_consistent() -> None:
    rewritten = [b"rewritten", *ALL_LEAVES[1:]]
    files = dict(grow(Tree(), rewritten[:300]).files)
    proof = hash_runs(consistency_runs(200, 300), 300, files.__getitem__)
    with pytest.raises(ConsistencyError, match="older root"):
        verify_consistency(head(200), head(300, rewritten), proof)
    with pytest.raises(ConsistencyError, match="newer root"):
        verify_consistency(head(200), head(300, rewritten), consistency(200, 300))
    with pytest.raises(ConsistencyError, match="two different roots"):
        verify_consistency(head(300), head(300, rewritten), [])
    with pytest.raises(ConsistencyError, match="two different roots"):
        verify_consistency(Checkpoint(ORIGIN, 0, bytes(32)), head(300), [])


def test_a_log_that_shrank_or_changed_its_name_is_not_consistent() -> None:
    with pytest.raises(ConsistencyError, match="shrank from 300 to 200"):
        verify_consistency(head(300), head(200), [])
    with pytest.raises(OriginError, match="two logs"):
        verify_consistency(Checkpoint("other", 1, head(1).root), head(200), [])


def test_a_proof_of_nothing_must_be_empty() -> None:
    with pytest.raises(MalformedProofError, match="nothing is to be proved"):
        verify_consistency(head(5), head(5), [bytes(32)])
    with pytest.raises(MalformedProofError, match="empty proof"):
        verify_consistency(head(5), head(6), [])


# The whole log.


def run(checkpoint: Checkpoint, read: Callable[[str], bytes], **options: list[Checkpoint]) -> LogReport:
    whole = LogVerification(checkpoint, **options)
    for path in whole.wanted():
        whole.feed(path, read(path))
    return whole.finish()


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 513, 1_500])
def test_a_whole_log_verifies(size: int) -> None:
    report = run(head(size), tiles(size).__getitem__)
    assert report.checkpoint == head(size)
    assert report.leaf_bytes == sum(map(len, ALL_LEAVES[:size]))
    # Each tile that a tree of this size has is compared, and nothing else is asked for.
    assert report.tiles == sum("entries" not in path for path in tiles(size))


def test_a_log_of_three_levels_verifies() -> None:
    leaves = [b"%d" % n for n in range(65_536 + 300)]
    growth = grow(Tree(), leaves)
    files = {str(path): data for path, data in growth.files}
    checkpoint = Checkpoint(ORIGIN, len(leaves), growth.tree.root())
    asked = []

    def read(path: str) -> bytes:
        asked.append(path)
        return files[path]

    assert run(checkpoint, read).tiles == 256 + 2 + 1 + 1 + 1
    assert sorted(asked) == sorted(files)


def test_leaves_are_handed_out_while_the_log_is_read() -> None:
    whole, read = LogVerification(head(300)), tiles(300)
    leaves = [leaf for path in whole.wanted() for leaf in whole.feed(path, read[path])]
    assert leaves == ALL_LEAVES[:300]


@pytest.mark.parametrize("size", [3, 300])
def test_every_changed_byte_of_every_resource_is_refused(size: int) -> None:
    files = tiles(size)
    for path, data in files.items():
        for at in range(0, len(data), 1 if size < 10 else 13):
            changed = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            with pytest.raises((MalformedTileError, TileError, RootError)):
                run(head(size), {**files, path: changed}.__getitem__)


def test_a_shortened_or_lengthened_resource_is_refused() -> None:
    files = tiles(300)
    for path, data in files.items():
        for changed in (data[:-1], data[:-32], data + b"\0", data + bytes(32), b""):
            with pytest.raises((MalformedTileError, TileError)):
                run(head(300), {**files, path: changed}.__getitem__)


def test_reordered_entries_are_refused() -> None:
    swapped = [ALL_LEAVES[1], ALL_LEAVES[0], *ALL_LEAVES[2:300]]
    files = {str(path): data for path, data in grow(Tree(), swapped).files}
    with pytest.raises(RootError, match="first 300 entries hash to"):
        run(head(300), files.__getitem__)


def test_older_checkpoints_are_checked_in_passing() -> None:
    older = [head(0), head(7), head(256), head(300)]
    run(head(300), tiles(300).__getitem__, older=older)
    forked = Checkpoint(ORIGIN, 7, bytes(32))
    with pytest.raises(RootError, match="first 7 entries"):
        run(head(300), tiles(300).__getitem__, older=[forked])
    with pytest.raises(ConsistencyError, match="shrank"):
        LogVerification(head(7), older=[head(8)])
    with pytest.raises(OriginError):
        LogVerification(head(7), older=[Checkpoint("other", 7, bytes(32))])


def test_a_check_that_stopped_early_establishes_nothing() -> None:
    whole, read = LogVerification(head(300)), tiles(300)
    with pytest.raises(IncompleteError, match="tile/entries/000 was not given"):
        whole.finish()
    with pytest.raises(IncompleteError, match="comes next"):
        whole.feed("tile/0/000", read["tile/0/000"])
    with pytest.raises(IncompleteError, match="asked for and not given"):
        list(whole.wanted())


def test_a_path_of_a_large_log_is_split_in_thousands() -> None:
    assert _path("0", 1_234_067, 256) == "tile/0/x001/x234/067"
    assert _path("entries", 1_000, 3) == "tile/entries/x001/000.p/3"
    assert _path("0", 7, 1) == "tile/0/007.p/1"


def mutations(proof: list[bytes]) -> list[list[bytes]]:
    changed = []
    for at, one in enumerate(proof):
        for byte in range(32):
            flipped = one[:byte] + bytes([one[byte] ^ 1 << byte % 8]) + one[byte + 1 :]
            changed.append([*proof[:at], flipped, *proof[at + 1 :]])
        changed.append([*proof[:at], *proof[at + 1 :]])
        changed.append([*proof[:at], one, *proof[at:]])
        changed.append([*proof[:at], one[:-1], *proof[at + 1 :]])
        changed.append([*proof[:at], b"", *proof[at + 1 :]])
    changed.append([*proof, bytes(32)])
    changed.append([bytes(32), *proof])
    return changed
