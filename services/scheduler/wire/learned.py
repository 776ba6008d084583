"""What was learned, as it is kept: `core.prediction` to `muster.scheduler.v1.Learned*Record` and back."""

from __future__ import annotations

from muster.scheduler.v1 import record_pb2 as record_pb

from services.common.core.instants import Instant
from services.scheduler.core.policies.bandit import ArmCell, LoadCell, PolicyCell
from services.scheduler.core.prediction.cells import (
    AgentCell,
    Learned,
    LearnedKey,
    Line,
    PairCell,
    Rate,
    TypeCell,
)


def encode(value: Learned) -> bytes:
    """Return one record."""
    if isinstance(value, PolicyCell):
        return _policies(value).SerializeToString()
    message = _agent(value) if isinstance(value, AgentCell) else _type(value)
    return message.SerializeToString()


def decode(key: LearnedKey, raw: bytes) -> Learned:
    """Return what one record holds; raises DecodeError."""
    if key.kind == "agents":
        agent = record_pb.LearnedAgentRecord.FromString(raw)
        return AgentCell(
            {row.task_type: _read_pair(row) for row in agent.pairs},
            {row.skill: _read_rate(row.outcomes) for row in agent.skills},
            Instant(agent.time_ms),
        )
    if key.kind == "policies":
        return _read_policies(record_pb.LearnedPoliciesRecord.FromString(raw))
    row = record_pb.LearnedTypeRecord.FromString(raw)
    return TypeCell(
        _read_line(row.line),
        _read_rate(row.outcomes),
        row.misses,
        row.widening,
        row.judged,
        row.inside,
        row.skill,
        row.count,
        Instant(row.time_ms),
        tuple(row.texts),
    )


def _agent(cell: AgentCell) -> record_pb.LearnedAgentRecord:
    message = record_pb.LearnedAgentRecord(time_ms=cell.time)
    for task_type, pair in cell.pairs.items():
        message.pairs.add(
            task_type=task_type,
            line=_line(pair.line),
            outcomes=_rate(pair.outcomes),
            quality=_rate(pair.quality),
            misses=pair.misses,
            count=pair.count,
            time_ms=pair.time,
        )
    for skill, rate in cell.skills.items():
        message.skills.add(skill=skill, outcomes=_rate(rate))
    return message


def _type(cell: TypeCell) -> record_pb.LearnedTypeRecord:
    return record_pb.LearnedTypeRecord(
        line=_line(cell.line),
        outcomes=_rate(cell.outcomes),
        misses=cell.misses,
        widening=cell.widening,
        judged=cell.judged,
        inside=cell.inside,
        skill=cell.skill,
        count=cell.count,
        time_ms=cell.time,
        texts=cell.texts,
    )


def _policies(cell: PolicyCell) -> record_pb.LearnedPoliciesRecord:
    message = record_pb.LearnedPoliciesRecord(frozen=cell.frozen)
    for name, load in cell.loads.items():
        row = message.loads.add(
            load=name,
            preferred=load.preferred,
            chosen=load.chosen,
            explored=load.explored,
            credit=load.credit,
        )
        for arm, each in load.arms.items():
            row.arms.add(
                name=arm,
                weight=each.weight,
                total=each.total,
                squares=each.squares,
                count=each.count,
                shut=each.shut,
            )
    return message


def _read_policies(message: record_pb.LearnedPoliciesRecord) -> PolicyCell:
    loads = {
        row.load: LoadCell(
            {
                each.name: ArmCell(each.weight, each.total, each.squares, each.count, each.shut)
                for each in row.arms
            },
            row.preferred,
            row.chosen,
            row.explored,
            row.credit,
        )
        for row in message.loads
    }
    return PolicyCell(loads, message.frozen)


def _line(line: Line) -> record_pb.LearnedLineRecord:
    return record_pb.LearnedLineRecord(
        weight=line.weight,
        mean_declared=line.mean_declared,
        mean_actual=line.mean_actual,
        declared_squares=line.declared_squares,
        products=line.products,
    )


def _rate(rate: Rate) -> record_pb.LearnedRateRecord:
    return record_pb.LearnedRateRecord(successes=rate.successes, failures=rate.failures)


def _read_line(row: record_pb.LearnedLineRecord) -> Line:
    return Line(row.weight, row.mean_declared, row.mean_actual, row.declared_squares, row.products)


def _read_rate(row: record_pb.LearnedRateRecord) -> Rate:
    return Rate(row.successes, row.failures)


def _read_pair(row: record_pb.LearnedPairRecord) -> PairCell:
    return PairCell(
        _read_line(row.line),
        _read_rate(row.outcomes),
        _read_rate(row.quality),
        row.misses,
        row.count,
        Instant(row.time_ms),
    )
