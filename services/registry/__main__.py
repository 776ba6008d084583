"""`python -m services.registry --config FILE`: run one replica until SIGTERM."""

from __future__ import annotations

import sys

from services.common.command_line import run
from services.registry.app import build
from services.registry.config import RegistryConfig
from services.registry.servicer import SERVICE

if __name__ == "__main__":
    sys.exit(run(SERVICE, "Knows which agents are alive and what they can do.", RegistryConfig, build))
