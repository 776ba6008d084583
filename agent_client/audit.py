"""Read the audit log, and check it instead of trusting it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from google.protobuf.message import DecodeError
from muster.audit.v1 import audit_service_pb2 as audit
from muster.audit.v1 import entry_pb2
from muster.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from muster.common.v1 import page_pb2

from agent_client.connection import Connection, Method
from agent_client.context import Context, load_context
from agent_client.errors import NotFoundError
from agent_client.loop import link_thread
from agent_client.texts import refuses_half_characters
from agent_client.tls import Dialer
from agent_client.verify import (
    Checkpoint,
    LogVerification,
    MalformedKeyError,
    SignatureError,
    VerificationError,
    VerifierKey,
    verify_checkpoint,
    verify_consistency,
    verify_inclusion,
)
from agent_client.wire import timestamp

PAGE_SIZE = 500
# Seconds that a call may take with all its retries, unless the log is opened with another patience.
PATIENCE_S = 30.0
# Beside context.json: the log's key as first seen, and the newest checkpoint that was verified.
KEY_FILE = "audit.key"
CHECKPOINT_FILE = "verified-checkpoint"


class TrustFileError(VerificationError):
    """What this side keeps of the log was changed; the message names the file."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification established; `previous_size` is None at the first one."""

    origin: str
    tree_size: int
    root_hash: str
    previous_size: int | None
    verifier_key: str


@dataclass(frozen=True, slots=True)
class Proven:
    """An entry that is in the log under a signed checkpoint."""

    leaf_index: int
    entry: entry_pb2.Entry
    tree_size: int
    root_hash: str
    proof: tuple[str, ...]


@refuses_half_characters
class AuditLog:
    """The audit log as the context's operator, or `agent`, may read it; see `Client` for the arguments."""

    def __init__(
        self,
        *,
        home: str | os.PathLike[str] | None = None,
        agent: str | None = None,
        patience: float = PATIENCE_S,
    ) -> None:
        self._context: Context = load_context(home)
        identity = self._context.agent(agent) if agent else self._context.operator()
        self._thread = link_thread()
        self._connection = Connection(Dialer(self._context, identity), patience)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._thread.run(self._connection.close())

    async def query(
        self,
        *,
        actor: str = "",
        operation: str = "",
        subject: str = "",
        collaboration_id: str = "",
        cause_id: str = "",
        service: str = "",
        outcomes: tuple[str, ...] = (),
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 100,
    ) -> list[entry_pb2.LoggedEntry]:
        """Return entries in log order that match all that is given, at most `limit`.

        `operation` and `subject` may end in "*". `outcomes` are names such as "REFUSED". An entry of several
        operations matches when one of them does; `agent_client.operations` tells them apart, and the answer's
        `group_positions` say which those are.
        """
        request = audit.QueryRequest(
            actor=actor,
            operation=operation,
            subject=subject,
            collaboration_id=collaboration_id,
            cause_id=cause_id,
            service=service,
            outcomes=[entry_pb2.Outcome.Value(f"OUTCOME_{name.upper()}") for name in outcomes],
            start_time=None if start is None else timestamp(start),
            end_time=None if end is None else timestamp(end),
        )
        found: list[entry_pb2.LoggedEntry] = []
        token = ""
        while len(found) < limit:
            page = page_pb2.PageRequest(page_size=min(PAGE_SIZE, limit - len(found)), page_token=token)
            request.page.CopyFrom(page)
            answer = await self._call(lambda channel: AuditServiceStub(channel).Query, request)
            found.extend(answer.entries)
            token = answer.page.next_page_token
            if not token:
                break
        return found[:limit]

    async def tail(
        self, *, from_index: int | None = None, collaboration_id: str = ""
    ) -> AsyncGenerator[entry_pb2.LoggedEntry, None]:
        """Yield entries as they are logged, for ever, from `from_index` or from the end.

        A broken stream goes on where it was, unless nothing had come yet: then, from the end. Raises
        MusterError when the log stays away.
        """
        request = audit.TailRequest(collaboration_id=collaboration_id)
        if from_index is not None:
            request.from_leaf_index = from_index
        frames = self._connection.follow(
            "audit", lambda channel: AuditServiceStub(channel).Tail, lambda: request
        )
        async with contextlib.aclosing(self._thread.relay(frames)) as relayed:
            async for frame in relayed:
                for logged in frame.entries:
                    request.from_leaf_index = logged.leaf_index + 1
                    yield logged

    async def verify(self, report: Callable[[int, int], None] = lambda _done, _all: None) -> Verified:
        """Check the signature, every entry and tile, and that the log only grew since the last time.

        The log's key is trusted at first sight and kept beside the context; so is the checkpoint that was
        verified. `report` gets entries done and entries in all. Raises VerificationError.
        """
        answer = await self._call(
            lambda channel: AuditServiceStub(channel).GetCheckpoint, audit.GetCheckpointRequest()
        )
        key = self._trusted_key(answer.verifier_key)
        checkpoint = self._signed(answer.checkpoint, key)
        previous = self._previous(key)
        # Every leaf is read anyway, so the older head is recomputed instead of proved.
        whole = LogVerification(checkpoint, older=[] if previous is None else [previous])
        checked = 0
        for path in whole.wanted():
            tile = await self._call(
                lambda channel: AuditServiceStub(channel).GetTile, audit.GetTileRequest(path=path)
            )
            checked += len(whole.feed(path, tile.data))
            report(checked, checkpoint.size)
        whole.finish()
        _write(self._context.home / CHECKPOINT_FILE, bytes(answer.checkpoint))
        return Verified(
            origin=checkpoint.origin,
            tree_size=checkpoint.size,
            root_hash=checkpoint.root.hex(),
            previous_size=None if previous is None else previous.size,
            verifier_key=str(key),
        )

    async def prove(self, leaf_index: int) -> Proven:
        """Return an entry with its inclusion proof, checked, in a log that continues the one verified last.

        Raises NotFoundError, VerificationError.
        """
        answer = await self._call(
            lambda channel: AuditServiceStub(channel).GetInclusionProof,
            audit.GetInclusionProofRequest(leaf_index=leaf_index),
        )
        head = await self._call(
            lambda channel: AuditServiceStub(channel).GetCheckpoint, audit.GetCheckpointRequest()
        )
        key = self._trusted_key(head.verifier_key)
        checkpoint = self._signed(answer.checkpoint, key)
        await self._check_continues(self._previous(key), checkpoint)
        if not answer.entry.leaf:
            raise NotFoundError(f"entry {leaf_index} came without its leaf", reason="ENTRY_NOT_FOUND")
        verify_inclusion(answer.entry.leaf, leaf_index, list(answer.hashes), checkpoint)
        try:
            entry = entry_pb2.Entry.FromString(answer.entry.leaf)
        except DecodeError as error:
            raise VerificationError(f"leaf {leaf_index} is in the log and is no entry") from error
        # What is shown is read from the very bytes that were proved.
        return Proven(
            leaf_index=leaf_index,
            entry=entry,
            tree_size=checkpoint.size,
            root_hash=checkpoint.root.hex(),
            proof=tuple(value.hex() for value in answer.hashes),
        )

    async def _check_continues(self, previous: Checkpoint | None, checkpoint: Checkpoint) -> None:
        if previous is None:
            return
        hashes: list[bytes] = []
        if 0 < previous.size < checkpoint.size:
            answer = await self._call(
                lambda channel: AuditServiceStub(channel).GetConsistencyProof,
                audit.GetConsistencyProofRequest(old_tree_size=previous.size, new_tree_size=checkpoint.size),
            )
            hashes = list(answer.hashes)
        verify_consistency(previous, checkpoint, hashes)

    def _trusted_key(self, offered: str) -> VerifierKey:
        path = self._context.home / KEY_FILE
        if not path.exists():
            VerifierKey.parse(offered)
            _write(path, offered.encode())
        try:
            return VerifierKey.parse(path.read_text(encoding="utf-8", errors="replace").strip())
        except MalformedKeyError as error:
            raise TrustFileError(
                f"{path}, the key that this log is trusted by, was changed: {error}; restore it, or remove "
                "it to trust the key that the plane offers now"
            ) from error

    def _signed(self, note: bytes, key: VerifierKey) -> Checkpoint:
        try:
            return verify_checkpoint(note, key)
        except SignatureError as error:
            path = self._context.home / KEY_FILE
            raise SignatureError(
                f"{error}; that is the key in {path}, trusted since the first time. If this plane was made "
                f"anew, remove {KEY_FILE} and {CHECKPOINT_FILE} there; if not, keep them as evidence"
            ) from error

    def _previous(self, key: VerifierKey) -> Checkpoint | None:
        path = self._context.home / CHECKPOINT_FILE
        if not path.exists():
            return None
        try:
            return verify_checkpoint(path.read_bytes(), key)
        except VerificationError as error:
            raise TrustFileError(
                f"{path}, the newest checkpoint that was verified here, was changed: {error}; restore it, or "
                "remove it to check the log without what it was before"
            ) from error

    async def _call(self, method: Method, request: Any) -> Any:
        return await self._thread.run(self._connection.call("audit", method, request))


def _write(path: Path, data: bytes) -> None:
    """Replace a file of the context, 0600, whole or not at all."""
    part = path.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_bytes(data)
    part.replace(path)
