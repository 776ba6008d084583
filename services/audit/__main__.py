"""`python -m services.audit --config FILE`: run one replica until SIGTERM."""

from __future__ import annotations

import sys

from services.audit.app import build
from services.audit.config import AuditConfig
from services.audit.recorder import SERVICE
from services.common.command_line import run

if __name__ == "__main__":
    sys.exit(run(SERVICE, "Keeps the append-only, verifiable record of what happened.", AuditConfig, build))
