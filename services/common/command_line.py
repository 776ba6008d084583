"""`python -m services.<service> --config FILE`: what every service's `__main__` does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from services.common import logs
from services.common.config import ConfigError, describe, load
from services.common.lifecycle import Service, run_service
from services.common.service_config import ServiceConfig

C = TypeVar("C", bound=ServiceConfig)

EXIT_USAGE = 2


def run(
    service: str,
    description: str,
    config_class: type[C],
    build: Callable[[C], Awaitable[Service]],
    *,
    arguments: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Read the settings, run the service until it is told to stop, return the exit code.

    Those of `run_service`, and 2 when the settings can not be used; the reason is then on stderr. `--help`
    lists every setting. Environment variables are `MUSTER_<SERVICE>_<SETTING>`.
    """
    prefix = f"MUSTER_{service.upper()}_"
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{service}",
        description=description,
        epilog=f"settings, in FILE or as {prefix}<SETTING> in the environment:\n\n{describe(config_class)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with the settings")
    options = parser.parse_args(arguments)
    try:
        config = load(config_class, options.config, os.environ if environ is None else environ, prefix)
        logs.configure(service, config.replica_id, config.log_level)
    except (ConfigError, ValueError) as error:
        # There is no log to write to before the settings are known.
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return EXIT_USAGE
    return run_service(lambda: build(config))
