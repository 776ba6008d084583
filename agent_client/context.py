"""Where the plane is, and with which certificate this process speaks to it.

The directory $MUSTER_HOME (default `./.muster`) holds `context.json`; `muster up` writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_client.errors import ContextError

HOME_VARIABLE = "MUSTER_HOME"
HOME_DEFAULT = ".muster"
CONTEXT_FILE = "context.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate of this plane and its key; `principal` is for example "agent/field-1"."""

    principal: str
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Context:
    """A plane as this process reaches it: registry addresses (host:port), its CA, where certificates are."""

    home: Path
    registry: tuple[str, ...]
    trust_domain: str
    ca: Path
    operator_certificate: Path
    operator_key: Path
    agents_directory: Path

    def operator(self) -> Identity:
        """Return the operator's identity. Raises ContextError when its files are missing."""
        name = self.operator_certificate.stem
        return self._checked(Identity(f"operator/{name}", self.operator_certificate, self.operator_key))

    def agent(self, name: str) -> Identity:
        """Return the identity of the agent `name`. Raises ContextError when it has none yet."""
        folder = self.agents_directory
        return self._checked(Identity(f"agent/{name}", folder / f"{name}.crt", folder / f"{name}.key"))

    def _checked(self, identity: Identity) -> Identity:
        missing = [path for path in (identity.certificate, identity.key) if not path.is_file()]
        if not missing:
            return identity
        kind, _, name = identity.principal.partition("/")
        advice = (
            f"run `muster agents enroll {name}`"
            if kind == "agent"
            else "run `muster up`, or ask whoever runs the plane for an operator certificate"
        )
        raise ContextError(
            f"{identity.principal} has no certificate: {missing[0]} is missing; {advice}",
            reason="NO_CERTIFICATE",
        )


def find_home(home: str | os.PathLike[str] | None = None) -> Path:
    """Return the directory of the plane's context: `home`, else $MUSTER_HOME, else `./.muster`."""
    return Path(home or os.environ.get(HOME_VARIABLE) or HOME_DEFAULT).absolute()


def load_context(home: str | os.PathLike[str] | None = None) -> Context:
    """Read the context of a plane. Raises ContextError that says what to do when there is none."""
    folder = find_home(home)
    path = folder / CONTEXT_FILE
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ContextError(
            f"no plane is known here: {path} does not exist; run `muster up` in another terminal, "
            f"or set {HOME_VARIABLE} to the directory of a running plane"
        ) from None
    except (OSError, ValueError) as error:
        raise ContextError(f"{path} can not be read: {error}; run `muster up` to write it anew") from error
    if not isinstance(document, dict):
        raise ContextError(f"{path} is not a JSON object; run `muster up` to write it anew")
    try:
        return _from_document(folder, document)
    except (KeyError, TypeError) as error:
        raise ContextError(f"{path} lacks {error}; run `muster up` to write it anew") from error


def _from_document(folder: Path, document: Mapping[str, Any]) -> Context:
    registry = document["registry"]
    operator = document["operator"]
    # An absolute path in the file wins over the folder: that is how pathlib joins.
    return Context(
        home=folder,
        registry=(registry,) if isinstance(registry, str) else tuple(registry),
        trust_domain=document["trust_domain"],
        ca=folder / document["ca"],
        operator_certificate=folder / operator["certificate"],
        operator_key=folder / operator["key"],
        agents_directory=folder / document["agents_directory"],
    )
