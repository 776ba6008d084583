"""`python -m services.broker --config FILE`: run one replica until SIGTERM."""

from __future__ import annotations

import sys

from services.broker.app import SERVICE, build
from services.broker.config import BrokerConfig
from services.common.command_line import run

if __name__ == "__main__":
    sys.exit(run(SERVICE, "Carries envelopes between agents through durable mailboxes.", BrokerConfig, build))
