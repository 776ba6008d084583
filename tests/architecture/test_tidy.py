"""The code is under test too: lengths, leftovers, and calls that have a better replacement here."""

from __future__ import annotations

import ast
import re

from tests.architecture.source_tree import ROOT, Source, below, sources

# The median file of the codebases that we learn from has 75 to 250 lines; beyond these it has two topics.
SOURCE_LINES_MAX = 420
TEST_LINES_MAX = 600
FUNCTION_LINES_MAX = 90
# path -> (its own limit, why it is one file).
LONG_FILES: dict[str, tuple[int, str]] = {}

LEFTOVERS = re.compile(r"\b(TODO|FIXME|XXX|HACK|WIP)\b|NotImplementedError|breakpoint\(\)")

# Call -> (where it is allowed, what to use instead and why). Paths are prefixes.
_EDGES = ("tests/", "benchmarks/", "agent_client/", "services/local/")
BANNED_CALLS: dict[str, tuple[tuple[str, ...], str]] = {
    "time.time": (("services/common/clock.py", *_EDGES), "a Clock: time must be replaceable"),
    "time.time_ns": (("services/common/clock.py", *_EDGES), "a Clock"),
    "time.monotonic": (_EDGES, "a Clock"),
    # The agents' client and the local plane have threads and processes of their own to wait for.
    "time.sleep": (_EDGES, "a condition to wait for: a service never blocks its loop"),
    "datetime.now": (_EDGES, "a Clock"),
    "datetime.utcnow": ((), "a Clock; it returns a naive time"),
    "datetime.today": ((), "a Clock"),
    "asyncio.get_event_loop": ((), "asyncio.get_running_loop(): the other one may make a new loop"),
    "asyncio.ensure_future": (("tests/", "benchmarks/"), "asyncio.create_task with a name"),
    "logging.getLogger": (
        ("services/common/logs.py", "tests/", "agent_client/"),
        "services.common.logs.get: every line is JSON with its cause",
    ),
    "sqlite3.connect": (
        ("services/common/sqlite.py", "tests/", "benchmarks/"),
        "services.common.sqlite: durable when it says so",
    ),
    "pickle.loads": ((), "protobuf or JSON: pickle runs what it reads"),
    "os.system": ((), "subprocess.run with a list"),
    "print": (
        ("tests/", "benchmarks/", "examples/", "agent_client/cli/", "docs/", "proto/"),
        "services.common.logs: a service speaks JSON lines",
    ),
}


def test_no_file_has_grown_too_long() -> None:
    broken = []
    for source in sources():
        is_test = source.path.startswith(("tests/", "benchmarks/"))
        limit, why = LONG_FILES.get(source.path, (TEST_LINES_MAX if is_test else SOURCE_LINES_MAX, ""))
        lines = source.text.count("\n")
        if lines > limit:
            broken.append(f"{source.path} has {lines} lines, at most {limit} {why}: give each topic its file")
    assert not broken, "\n".join(broken)


def test_no_function_has_grown_too_long() -> None:
    broken = [
        f"{source.path}:{node.lineno} {node.name} has {length} lines, at most {FUNCTION_LINES_MAX}: keep the "
        "control flow here and move the leaves out"
        for source in below("services/", "agent_client/")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for length in [(node.end_lineno or node.lineno) - node.lineno + 1]
        if length > FUNCTION_LINES_MAX
    ]
    assert not broken, "\n".join(broken)


def test_no_exception_outlives_its_reason() -> None:
    stale = [path for path in LONG_FILES if not (ROOT / path).exists()]
    assert not stale, f"LONG_FILES names files that are gone: {stale}"


def test_nothing_is_left_over() -> None:
    broken = [
        f"{source.path}:{number}: {found.group()}: finish it, or open an issue and say nothing here"
        for source in sources()
        if source.path != "tests/architecture/test_tidy.py"
        for number, line in enumerate(source.text.splitlines(), 1)
        if (found := LEFTOVERS.search(line))
    ]
    assert not broken, "\n".join(broken)


def test_no_merge_is_left_unfinished() -> None:
    folders = (ROOT / name for name in ("docs", "services", "agent_client", "proto/muster", "k8s"))
    documents = [*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]
    broken = [
        f"{path.relative_to(ROOT)} holds a conflict's marker: merge it"
        for path in documents
        if path.suffix in {".md", ".proto", ".toml", ".yaml"}
        and re.search(r"^(<{7}|>{7}) ", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not broken, "\n".join(broken)


def test_banned_calls_have_replacements() -> None:
    broken = [
        f"{source.path}:{line} calls {name}: use {BANNED_CALLS[name][1]}"
        for source in sources()
        for line, name in source.calls()
        if name in BANNED_CALLS and not source.path.startswith(BANNED_CALLS[name][0])
    ]
    assert not broken, "\n".join(broken)


def test_tests_wait_for_conditions() -> None:
    """A sleep is too long on a fast machine and too short on a busy one; `asyncio.sleep(0)` is no sleep."""
    broken = [
        f"{source.path}:{node.lineno} sleeps: use `await eventually(...)` or an event; when time itself is"
        " under test, end the line with `# sleeps: <reason>`"
        for source in below("tests/")
        if source.path != "tests/conftest.py"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("asyncio.sleep", "time.sleep", "sleep")
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
        and "# sleeps: " not in source.text.splitlines()[node.lineno - 1]
    ]
    assert not broken, "\n".join(broken)


def test_no_exception_is_swallowed_unseen() -> None:
    broken = []
    for source in below("services/", "agent_client/"):
        lines = source.text.splitlines()
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            if node.type is None:
                broken.append(f"{source.path}:{node.lineno} has a bare except: name what you expect")
            elif ast.unparse(node.type) in ("Exception", "BaseException") and not _explained(node, lines):
                broken.append(
                    f"{source.path}:{node.lineno} catches {ast.unparse(node.type)}: raise it again, or say"
                    " why nothing else is right, in a comment on that line or the next"
                )
    assert not broken, "\n".join(broken)


def test_no_transport_is_open() -> None:
    """Every hop is mTLS, in tests as well: what runs without it there would run without it elsewhere."""
    broken = [
        f"{source.path} uses {word}: services.common.rpc.server and .channel, services.common.tls"
        for source in below("services/", "agent_client/", "tests/", "examples/")
        if source.path != "tests/architecture/test_tidy.py"
        for word in ("add_insecure_port", "insecure_channel", "CERT_NONE", "_create_unverified_context")
        if word in source.text
    ]
    assert not broken, "\n".join(broken)


def test_every_module_says_what_it_is() -> None:
    broken = [
        f"{source.path} has no docstring: one sentence about its one topic"
        for source in _ours_and_tests()
        if source.text.strip() and ast.get_docstring(source.tree) is None
    ]
    assert not broken, "\n".join(broken)


def _ours_and_tests() -> list[Source]:
    return below("services/", "agent_client/", "benchmarks/", "examples/", "tests/")


def _explained(node: ast.ExceptHandler, lines: list[str]) -> bool:
    if any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node)):
        return True
    around = lines[node.lineno - 1 : node.lineno + 1]
    comments = [line.split("#", 1)[1] for line in around if "#" in line]
    return any(comment.replace("noqa: BLE001", "").strip(" #") for comment in comments)
