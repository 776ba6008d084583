"""`python -m services.local` with fake services: the launcher's tests start this as a process of its own.

Environment: FAKE_EXTRA is JSON for `PlaneSettings.extra`, FAKE_GRACE_S replaces the launcher's grace.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path

from services.local import __main__ as command
from services.local import launcher, part


def fake_command(service: str, config: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("fake_service.py")), service, str(config)]


if __name__ == "__main__":
    part.service_command = fake_command
    launcher.STOP_GRACE_S = float(os.environ.get("FAKE_GRACE_S", launcher.STOP_GRACE_S))
    extra = json.loads(os.environ.get("FAKE_EXTRA", "{}"))
    vars(command)["PlaneSettings"] = functools.partial(launcher.PlaneSettings, extra=extra)
    sys.exit(command.main())
