"""What agents say while they work, beyond results: savepoints, progress and requests for locks."""

from __future__ import annotations

from muster.scheduler.v1 import work_pb2 as work_pb

from services.common.core.errors import Reason
from services.common.core.fencing import FencingToken
from services.common.core.ids import CollaborationId, TaskId
from services.scheduler.core.effects import AckSavepoint
from services.scheduler.core.events import SavepointReport, StreamId, Suspended
from services.scheduler.core.model import AttemptRef, Limits, Payload
from services.scheduler.wire import values, work

LIMITS = Limits()


def test_savepoints_come_alone_and_with_a_suspension() -> None:
    ref = AttemptRef(CollaborationId("c"), TaskId("t"), FencingToken(1, 2))
    message = work_pb.WorkRequest()
    saved, large = message.savepoints.add(), message.savepoints.add()
    with_point, without = message.results.add(), message.results.add()
    for row in (saved, large, with_point, without):
        values.put_attempt_ref(row.attempt, ref)
    saved.savepoint.data = b"half"
    large.savepoint.data = bytes(LIMITS.payload_bytes_max + 1)
    with_point.suspended.savepoint.data = b"more"
    without.suspended.SetInParent()
    frame, refused = work.frame(message, StreamId(1), "c", 0.5, LIMITS)
    assert frame.savepoints == (SavepointReport(ref, Payload("", b"half")),)
    assert [report.outcome for report in frame.results] == [
        Suspended(Payload("", b"more")),
        Suspended(None),
    ]
    [refusal] = refused
    assert isinstance(refusal, AckSavepoint)
    assert refusal.error is not None
    assert refusal.error.reason is Reason.PAYLOAD_TOO_LARGE


def test_progress_out_of_bounds_is_brought_back() -> None:
    reports = [
        work_pb.AttemptProgress(progress=number, stage="ä" * 100)
        for number in (-1.0, 2.0, float("nan"), 0.25)
    ]
    frame, _ = work.frame(work_pb.WorkRequest(progress=reports), StreamId(1), "c", 0.5, LIMITS)
    assert [report.progress for report in frame.progress] == [0.0, 1.0, 0.0, 0.25]
    assert {len(report.stage.encode()) for report in frame.progress} == {128}


def test_lock_requests_wait_for_ever_not_at_all_or_for_a_while() -> None:
    requests = [work_pb.LockRequest(lock_request_id=number) for number in range(3)]
    requests[1].wait_max.SetInParent()
    requests[2].wait_max.FromMilliseconds(700)
    frame, _ = work.frame(work_pb.WorkRequest(lock_requests=requests), StreamId(1), "c", 0.5, LIMITS)
    assert [request.wait_ms_max for request in frame.lock_requests] == [None, 0, 700]
