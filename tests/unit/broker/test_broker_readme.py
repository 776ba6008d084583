"""What the README says of states and limits is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from services.broker.config import BrokerConfig
from services.broker.core.table import TABLE, DeliveryInput, DeliveryState
from services.broker.metrics import BrokerMetrics
from services.common.metrics import Metrics
from services.common.service_config import ServiceConfig

README = Path(__file__).parents[3] / "services" / "broker" / "README.md"
_MIB = 1024 * 1024


def section(name: str) -> str:
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*)<!-- /{name} -->", text, re.DOTALL)
    assert found is not None
    return found[1]


def states() -> str:
    lines = ["| state | input → next state |", "|---|---|"]
    for state in DeliveryState:
        ways: dict[DeliveryState, list[str]] = {}
        for given in DeliveryInput:
            if TABLE.allows(state, given):
                ways.setdefault(TABLE.next("", state, given), []).append(f"`{given.name}`")
        told = "; ".join(f"{', '.join(inputs)} → {target.name}" for target, inputs in ways.items())
        lines.append(f"| **{state.name}** | {told or 'the end'} |")
    return "\n".join(lines) + "\n"


def diagram() -> str:
    """Return the table as a diagram that GitHub draws."""
    lines = ["```mermaid", "stateDiagram-v2", f"  [*] --> {TABLE.start.name}"]
    ways: dict[tuple[DeliveryState, DeliveryState], list[str]] = {}
    for state, given, target in TABLE.rows():
        ways.setdefault((state, target), []).append(given.name)
    lines += [
        f"  {state.name} --> {target.name}: {', '.join(inputs)}" for (state, target), inputs in ways.items()
    ]
    ends = [state for state in DeliveryState if not any(source is state for source, _, _ in TABLE.rows())]
    lines += [f"  {state.name} --> [*]" for state in ends]
    return "\n".join([*lines, "```"]) + "\n"


def limits() -> str:
    own = [
        field
        for name, field in BrokerConfig.__dataclass_fields__.items()
        if name not in ServiceConfig.__dataclass_fields__
    ]
    rows = [
        f"| `{one.name}` | {_amount(one.default, one.metadata['unit'])} | {one.metadata['help']} |"
        for one in own
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _amount(value: object, unit: str) -> str:
    if unit == "bytes" and isinstance(value, int) and value % _MIB == 0:
        return f"{value // _MIB:,} MiB"
    if isinstance(value, int):
        return f"{value:,} {unit}".strip().replace(" %", " %")
    return f"`{value}`"


def test_the_states_are_the_tables() -> None:
    assert section("states") == states()


def test_the_diagram_is_the_tables() -> None:
    assert section("diagram") == diagram()


def test_each_input_of_the_table_has_its_metric() -> None:
    metrics = Metrics("broker")
    BrokerMetrics(metrics)
    shown = {
        sample.labels["input"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "muster_broker_delivery_transitions"
    }
    assert shown == {given.name.lower() for given in DeliveryInput}


def test_the_limits_are_the_settings() -> None:
    assert section("limits") == limits()
