"""The twelve tasks of the decision, as the JSON that `muster submit` takes.

python -m examples.flood_response.collaboration examples/flood_response/scenario.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# task: (skill, seconds that it usually takes, tasks whose results it needs, resources)
TASKS: dict[str, tuple[str, float, list[str], list[str]]] = {
    "gauge-quality": ("gauge-quality", 0.2, [], []),
    "road-status": ("road-status", 0.2, [], []),
    "team-readiness": ("team-readiness", 0.2, [], []),
    "rainfall-outlook": ("rainfall-outlook", 1.0, [], []),
    "inundation-forecast": ("inundation-forecast", 3.0, ["gauge-quality", "rainfall-outlook"], []),
    "situation-picture": ("situation-picture", 0.3, ["gauge-quality", "road-status", "rainfall-outlook"], []),
    "road-outlook": ("road-outlook", 0.3, ["road-status", "inundation-forecast"], []),
    "priorities": ("risk-priorities", 0.2, ["inundation-forecast"], []),
    "shelter-assignment": (
        "shelter-assignment",
        0.5,
        ["priorities", "road-status", "road-outlook", "inundation-forecast"],
        [],
    ),
    # Both orders use the bridge over the Qinghe; its lock keeps one from planning on the other's time.
    "evacuation-routes": (
        "evacuation-routes",
        0.5,
        ["priorities", "road-status", "road-outlook", "shelter-assignment"],
        ["bridge-3"],
    ),
    "team-orders": (
        "team-orders",
        0.5,
        [
            "team-readiness",
            "priorities",
            "road-status",
            "road-outlook",
            "shelter-assignment",
            "inundation-forecast",
        ],
        ["bridge-3"],
    ),
    "decision": (
        "decision",
        0.3,
        [
            "situation-picture",
            "inundation-forecast",
            "road-outlook",
            "priorities",
            "evacuation-routes",
            "team-orders",
        ],
        [],
    ),
}


def collaboration(scenario: dict[str, Any]) -> dict[str, Any]:
    """Return the submission for `scenario`, which travels with it as the shared context."""
    return {
        "name": scenario["name"],
        "collaboration_type": "flood-response",
        "priority": "HIGH",
        "coordinator_agent": "strategist",
        "shared_context": scenario,
        "tasks": [
            {
                "task_id": task_id,
                "task_name": task_id.replace("-", " "),
                "required_skills": [skill],
                "estimated_duration": seconds,
                "dependencies": dependencies,
                "resources": [{"resource": resource, "mode": "EXCLUSIVE"} for resource in resources],
            }
            for task_id, (skill, seconds, dependencies, resources) in TASKS.items()
        ],
    }


def main() -> int:
    """Print the submission for the scenario file named on the command line."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m examples.flood_response.collaboration SCENARIO.json\n")
        return 2
    scenario = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    json.dump(collaboration(scenario), sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
