"""Who may import whom, and what a pure core may not touch. Each failure says the rule and its reason."""

from __future__ import annotations

import re

from tests.architecture.source_tree import Source, below, sources

SERVICES = ("registry", "broker", "scheduler", "audit", "quality")

# What a core may use of the standard library: computation on values, nothing that reads the world.
PURE = frozenset(
    """
    __future__ abc array base64 binascii bisect collections contextlib dataclasses decimal difflib enum
    fractions functools hashlib heapq itertools json math numbers operator re statistics string struct types
    typing zlib
    """.split()  # noqa: SIM905  # a list of forty quoted words is not easier to read
)
# Pure computation from elsewhere, by the package that may use it and why.
PURE_EXTRA = {
    # Matching and placement arithmetic. A task points weakly back to its collaboration: thousands are
    # forgotten at once, and the collector would otherwise stop the driver to find the circles.
    # Planners search with a generator made from the caller's seed; the first prefix that fits counts.
    "services.scheduler.core.planning": {"numpy", "random"},
    "services.scheduler.core": {"numpy", "scipy", "weakref"},
    "services.quality.core": {"numpy", "scipy"},  # statistics of scores
    "agent_client.verify": {"cryptography"},  # checks signatures
}
# Modules of services/common that know protos, each with its reason; everything else there is about none.
COMMON_WITH_PROTOS = {
    "services.common.outbox": "writes audit entries",
    "services.common.shipper": "speaks audit.Append",
    "services.common.etcd": "writes the ServiceReplica record that every service leaves in etcd",
}

# Importing module -> what of ours it may import ("X" is its own service). First match counts.
TABLE: list[tuple[str, list[str], str]] = [
    (r"services\.common\.core(\..*)?", ["services.common.core"], "the purest layer knows nothing but itself"),
    (
        r"services\.common(\..*)?",
        ["services.common", "muster"],
        "what two services share names no service; only COMMON_WITH_PROTOS may know protos",
    ),
    (
        r"services\.X\.core(\..*)?",
        ["services.X.core", "services.common.core"],
        "a core decides from values alone, so that it can be simulated and replayed",
    ),
    (
        r"services\.X\.(config|metrics)",
        ["services.X.core", "services.X.store", "services.common"],
        "settings and metrics are read by every part, so they may know contracts and nouns only",
    ),
    (
        r"services\.X\.store",
        ["services.X.core", "services.common"],
        "a storage protocol is a contract about the core's nouns and knows no implementation",
    ),
    (
        r"services\.X\.(wire|peers)(\..*)?",
        [
            "services.X.core",
            "services.X.store",
            "services.X.wire",
            "services.X.peers",
            "muster",
            "services.common",
        ],
        "translation knows the nouns, the storage contract's included, and the protos, and no driver",
    ),
    (
        r"services\.X\.stores(\..*)?",
        [
            "services.X.core",
            "services.X.store",
            "services.X.stores",
            "services.X.wire",
            "services.X.config",
            "services.X.metrics",
            "muster",
            "services.common",
        ],
        "a store is chosen by app.py and known by nobody else",
    ),
    (r"services\.X\.(app|__main__)", ["services.X", "muster", "services.common"], "the composition root"),
    (
        r"services\.X(\..*)?",
        [
            "services.X",
            "muster",
            "services.common",
            "!services.X.stores",
            "!services.X.app",
            "!services.X.__main__",
        ],
        "drivers and servicers know protocols; app.py alone chooses implementations",
    ),
    (
        r"services\.local(\..*)?",
        ["services.local", "services.common", *(f"services.{name}.app" for name in SERVICES)],
        "the local plane starts services and knows nothing of their insides",
    ),
    (r"services", [], "the root package is imported first by everything"),
    (
        r"agent_client\.core(\..*)?",
        ["agent_client.core"],
        "the client's core decides from values alone",
    ),
    (
        r"agent_client\.verify",
        [],
        "a verifier that runs the prover's code proves little",
    ),
    (
        r"agent_client(\..*)?",
        ["agent_client", "muster"],
        "the published package stands alone: users install it without the services",
    ),
    (r"examples(\..*)?", ["agent_client", "examples"], "an example shows what a user can do"),
]

# Reads the world or differs between runs; none of these may be called in a core.
IMPURE_BUILTINS = frozenset({"open", "print", "input", "eval", "exec", "compile", "hash", "id", "__import__"})


def test_imports_follow_the_table() -> None:
    broken = [
        f"{source.path}:{line} imports {name}: {reason}"
        for source in below("services/", "agent_client/", "examples/")
        for line, name in source.imports()
        if _ours(name)
        for allowed, reason in [_row(source)]
        if not _allowed(name, allowed)
    ]
    assert not broken, _report(broken)


def test_no_service_knows_another() -> None:
    broken = [
        f"{source.path}:{line} imports {name}: services meet on the wire; say what you need in peers.py"
        for source in below("services/")
        for line, name in source.imports()
        for mine, theirs in [(_service(source.module), _service(name))]
        if mine in SERVICES and theirs in SERVICES and mine != theirs
    ]
    assert not broken, _report(broken)


def test_protos_in_common_are_counted() -> None:
    broken = [
        f"{source.path}:{line} imports {name}: services/common names no service; if it must, add it to "
        "COMMON_WITH_PROTOS with the reason"
        for source in below("services/common/")
        for line, name in source.imports()
        if name.startswith("muster") and not _allowed(source.module, list(COMMON_WITH_PROTOS))
    ]
    assert not broken, _report(broken)


def test_cores_use_pure_modules_only() -> None:
    broken = []
    for source in _cores():
        extra = next(
            (names for prefix, names in PURE_EXTRA.items() if _allowed(source.module, [prefix])), set()
        )
        broken += [
            f"{source.path}:{line} imports {name}: a core is pure; time arrives as `now`, ids and jitter"
            " inside the event, IO is an effect"
            for line, name in source.imports()
            if not _ours(name) and name.partition(".")[0] not in PURE | extra
        ]
    assert not broken, _report(broken)


def test_cores_call_nothing_impure() -> None:
    broken = [
        f"{source.path}:{line} calls {name}(): a core gives the same answer for the same input, on every run"
        for source in _cores()
        for line, name in source.calls()
        if name in IMPURE_BUILTINS or (name.startswith("random.") and name != "random.Random")
    ]
    assert not broken, _report(broken)


def test_cores_have_no_coroutines() -> None:
    broken = [
        f"{source.path}: has `async`: a core never waits; it returns an effect and gets an event back"
        for source in _cores()
        if re.search(r"^\s*async (def|with|for)\b", source.text, re.MULTILINE)
    ]
    assert not broken, _report(broken)


def test_every_source_has_a_row() -> None:
    missing = [source.path for source in below("services/", "agent_client/") if _row_or_none(source) is None]
    assert not missing, f"no row of TABLE is about {missing}"


def test_the_walk_sees_the_tree() -> None:
    """A table that matches nothing would pass in silence."""
    assert len(sources()) > 50
    assert len(_cores()) > 10


def _cores() -> list[Source]:
    return [
        source
        for source in below("services/", "agent_client/")
        if re.match(r"(services\.\w+|agent_client)\.core(\.|$)|agent_client\.verify$", source.module)
    ]


def _ours(name: str) -> bool:
    return name.partition(".")[0] in {"services", "agent_client", "muster", "tests", "benchmarks", "examples"}


def _service(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "services" and len(parts) > 1 else ""


def _row(source: Source) -> tuple[list[str], str]:
    row = _row_or_none(source)
    assert row is not None, f"no row of TABLE is about {source.path}"
    return row


def _row_or_none(source: Source) -> tuple[list[str], str] | None:
    service = _service(source.module)
    for pattern, allowed, reason in TABLE:
        if r"services\.X" in pattern and service not in SERVICES:
            continue
        if re.fullmatch(pattern.replace("X", service), source.module):
            return [name.replace("X", service) for name in allowed], reason
    return None


def _allowed(name: str, prefixes: list[str]) -> bool:
    def inside(prefix: str) -> bool:
        return name == prefix or name.startswith(prefix + ".")

    if any(inside(prefix[1:]) for prefix in prefixes if prefix.startswith("!")):
        return False
    return any(inside(prefix) for prefix in prefixes)


def _report(broken: list[str]) -> str:
    return "\n".join(["the layers are broken (see CONTRIBUTING.md):", *broken])
