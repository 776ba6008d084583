"""gRPC in and out: decode, check who asks, have it recorded, hand it on, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from muster.audit.v1 import audit_service_pb2 as pb
from muster.audit.v1 import audit_service_pb2_grpc as pb_grpc

from services.audit import wire
from services.audit.append_stream import AppendStream
from services.audit.core.model import Leaf
from services.audit.core.query import EntryFilter, decode_page_token, encode_page_token
from services.audit.core.tiles import CHECKPOINT_PATH, MalformedPathError, parse_path
from services.audit.driver import Driver, Published
from services.audit.metrics import AuditMetrics
from services.audit.reader import LogReader
from services.audit.recorder import SERVICE, Recorder
from services.common.core.errors import Reason, ServiceError, invalid
from services.common.rpc.interceptors import LiveCall, current_call

SERVICE_NAME = "muster.audit.v1.AuditService"
_OPERATORS = frozenset({"operator"})
# An agent can check the log's growth and prove what it did itself; everything else is the operators'.
_EVERYONE = frozenset({"operator", "service", "agent"})
ACCESS = {
    f"{SERVICE_NAME}/Append": frozenset({"service"}),
    f"{SERVICE_NAME}/Query": _OPERATORS,
    f"{SERVICE_NAME}/Tail": _OPERATORS,
    f"{SERVICE_NAME}/GetCheckpoint": _EVERYONE,
    f"{SERVICE_NAME}/GetInclusionProof": _OPERATORS | {"agent"},
    f"{SERVICE_NAME}/GetConsistencyProof": _EVERYONE,
    f"{SERVICE_NAME}/GetTile": _OPERATORS,
}
# Entries that one frame of a filtered tail may hold.
_TAIL_ENTRIES_MAX = 256


class AuditServicer(pb_grpc.AuditServiceServicer):
    """Serves `muster.audit.v1.AuditService`."""

    def __init__(
        self,
        driver: Driver,
        reader: LogReader,
        recorder: Recorder,
        metrics: AuditMetrics,
        *,
        stream_frames_max: int,
        tails_max: int,
        index_wait_ms: int,
    ) -> None:
        self._driver, self._reader, self._recorder = driver, reader, recorder
        self._metrics = metrics
        self._stream_frames_max, self._tails_max = stream_frames_max, tails_max
        self._index_wait_ms = index_wait_ms
        self._tails = 0

    async def Append(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # it writes to the context
        """Take frames as fast as the disk does; each is acked when it is durable."""
        del request_iterator  # the duplex reads from the context
        call = current_call.get()
        if call.principal.name == SERVICE:
            raise ServiceError(
                Reason.ACCESS_DENIED, "the audit service's own entries do not come by a stream"
            )
        stream = AppendStream(
            self._driver, call.principal, context, self._metrics, frames_max=self._stream_frames_max
        )
        try:
            await stream.run()
        finally:
            if stream.refusal is not None:
                await self._recorder.record_refused(
                    str(call.principal), "entries.append", stream.subject, call.cause_id, stream.refusal
                )

    async def Query(self, request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        """Return one page of entries that match."""
        del context
        call = current_call.get()
        async with self._refusals_recorded(call, "entries.query", self._log_subject):
            wanted = wire.decode_filter(request)
            limit = wire.decode_page_size(request.page.page_size)
            token = request.page.page_token
            start = decode_page_token(token, wanted, self._driver.published.size) if token else None
            page = await self._reader.query(wanted, start, limit, self._index_wait_ms)
            facts = wire.filter_facts(wanted) | {
                "found": str(len(page.leaves)),
                "tree_size": str(page.tree_size),
            }
            await self._record(call, "entries.query", self._log_subject, facts)
        response = pb.QueryResponse(entries=wire.encode_logged(page.leaves), tree_size=page.tree_size)
        if page.following is not None:
            response.page.next_page_token = encode_page_token(page.following, wanted)
        return response

    async def Tail(self, request: pb.TailRequest, context: Any) -> AsyncIterator[pb.TailResponse]:
        """Send entries from an index on, at the reader's pace, until it leaves."""
        del context
        call = current_call.get()
        begin = (
            request.from_leaf_index if request.HasField("from_leaf_index") else self._driver.published.size
        )
        async with self._refusals_recorded(call, "entries.tail", self._log_subject):
            wanted = wire.decode_tail_filter(request)
            if self._tails >= self._tails_max:
                self._metrics.limits_reached.labels("tails_max").inc()
                raise ServiceError(
                    Reason.QUOTA_EXCEEDED,
                    f"{self._tails_max} tails are open already: end one, or try again later",
                    metadata={"limit": "tails_max"},
                    retry_after_ms=1_000,
                )
            facts = wire.filter_facts(wanted) | {"from_leaf_index": str(begin)}
            await self._record(call, "entries.tail", self._log_subject, facts)
        self._tails += 1
        self._metrics.tails.set(self._tails)
        try:
            # One frame at a time, each read from the log when the last one was taken: a slow reader holds
            # up nobody and nothing is kept for it.
            while True:
                leaves, begin = await self._next_leaves(wanted, begin)
                if leaves:
                    yield pb.TailResponse(entries=wire.encode_logged(leaves))
        finally:
            self._tails -= 1
            self._metrics.tails.set(self._tails)

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Any) -> pb.GetCheckpointResponse:
        """Return the newest signed tree head and the key to check it with."""
        del request, context
        await self._record_repeated("checkpoint.read", self._log_subject)
        return pb.GetCheckpointResponse(
            checkpoint=self._driver.published.checkpoint, verifier_key=self._driver.verifier_key
        )

    async def GetInclusionProof(
        self, request: pb.GetInclusionProofRequest, context: Any
    ) -> pb.GetInclusionProofResponse:
        """Return an entry with the proof that it is in the log."""
        del context
        call = current_call.get()
        subject = f"entry/{request.leaf_index}"
        async with self._refusals_recorded(call, "entry.prove", subject):
            published = self._driver.published
            size = _tree_size("tree_size", request.tree_size, published)
            if request.leaf_index >= size:
                raise ServiceError(
                    Reason.ENTRY_NOT_FOUND, f"leaf {request.leaf_index} is not in a tree of {size} entries"
                )
            leaf, hashes = await self._reader.inclusion(request.leaf_index, size)
            (logged,) = wire.encode_logged([leaf])
            if call.principal.kind == "agent" and logged.entry.actor != str(call.principal):
                # The same answer whatever the entry is: an agent learns nothing about others' entries.
                raise ServiceError(
                    Reason.ACCESS_DENIED,
                    "an agent can have proofs of its own entries only: ask an operator",
                    metadata={"identity": str(call.principal), "method": f"{SERVICE_NAME}/GetInclusionProof"},
                )
            if call.principal.kind == "agent":
                await self._record_repeated("entry.prove", subject)
            else:
                await self._record(call, "entry.prove", subject, {"tree_size": str(size)})
        return pb.GetInclusionProofResponse(
            leaf_index=leaf.index,
            tree_size=size,
            hashes=hashes,
            entry=logged,
            checkpoint=_checkpoint_of(size, published),
        )

    async def GetConsistencyProof(
        self, request: pb.GetConsistencyProofRequest, context: Any
    ) -> pb.GetConsistencyProofResponse:
        """Return the proof that the log only grew from one size to another."""
        del context
        published = self._driver.published
        subject = f"tree/{request.old_tree_size}"
        async with self._refusals_recorded(current_call.get(), "consistency.prove", subject):
            new_size = _tree_size("new_tree_size", request.new_tree_size, published)
            if request.old_tree_size > new_size:
                raise invalid("old_tree_size", f"must be at most the newer size, {new_size}")
            hashes = await self._reader.consistency(request.old_tree_size, new_size)
            await self._record_repeated("consistency.prove", subject)
        return pb.GetConsistencyProofResponse(
            old_tree_size=request.old_tree_size,
            new_tree_size=new_size,
            hashes=hashes,
            checkpoint=_checkpoint_of(new_size, published),
        )

    async def GetTile(self, request: pb.GetTileRequest, context: Any) -> pb.GetTileResponse:
        """Return one resource of the log by its C2SP path."""
        del context
        if request.path == CHECKPOINT_PATH:
            await self._record_repeated("checkpoint.read", self._log_subject)
            return pb.GetTileResponse(data=self._driver.published.checkpoint)
        async with self._refusals_recorded(current_call.get(), "tile.read", request.path):
            try:
                path = parse_path(request.path)
            except MalformedPathError as error:
                raise invalid("path", str(error)) from None
            data = await self._reader.tile(path)
            await self._record_repeated("bundle.read" if path.level is None else "tile.read", str(path))
        return pb.GetTileResponse(data=data)

    @property
    def _log_subject(self) -> str:
        return f"log/{self._driver.origin}"

    async def _next_leaves(self, wanted: EntryFilter, begin: int) -> tuple[Sequence[Leaf], int]:
        """Wait for leaves from `begin` on; return those that are wanted, and where to go on."""
        if wanted == EntryFilter():
            await self._driver.wait_grown(begin)
            leaves = await self._reader.leaves(begin, self._driver.published.size)
            return leaves, leaves[-1].index + 1
        return await self._reader.find_next(wanted, begin, _TAIL_ENTRIES_MAX)

    async def _record(
        self, call: LiveCall, operation: str, subject: str, attributes: Mapping[str, str]
    ) -> None:
        await self._recorder.record_read(str(call.principal), operation, subject, call.cause_id, attributes)

    async def _record_repeated(self, operation: str, subject: str) -> None:
        call = current_call.get()
        await self._recorder.record_repeated_read(str(call.principal), operation, subject, call.cause_id)

    @asynccontextmanager
    async def _refusals_recorded(self, call: LiveCall, operation: str, subject: str) -> AsyncIterator[None]:
        try:
            yield
        except ServiceError as error:
            await self._recorder.record_refused(str(call.principal), operation, subject, call.cause_id, error)
            raise


def _tree_size(field: str, wanted: int, published: Published) -> int:
    if wanted > published.size:
        raise invalid(field, f"must be at most the newest checkpoint's {published.size}")
    return wanted or published.size


def _checkpoint_of(size: int, published: Published) -> bytes:
    return published.checkpoint if size == published.size else b""
