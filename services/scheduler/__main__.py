"""`python -m services.scheduler --config FILE`: run one replica until SIGTERM."""

from __future__ import annotations

import sys

from services.common.command_line import run
from services.scheduler.app import build
from services.scheduler.config import SchedulerConfig

if __name__ == "__main__":
    sys.exit(run("scheduler", "Decides which agent gets which task.", SchedulerConfig, build))
