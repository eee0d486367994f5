"""House rules that a linter does not know. Each has a reason and an example that it refuses.

A line that must break a rule says why: `# allow(<rule>): <reason>` at its end or in the line above.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_ALLOW = re.compile(r"#.*\ballow\((?P<rule>[a-z-]+)\): \S")
_GENERATED = re.compile(r"libs/argosy/(\w+/v1|buf)/")


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: as it stands in `allow(...)`.
        reason: why it exists.
        example: a line that it must refuse.
        broken_by: whether a node breaks it.
        applies: whether it holds in a file, by its path in the repository.
    """

    name: str
    reason: str
    example: str
    broken_by: Callable[[ast.AST], bool]
    applies: Callable[[str], bool] = lambda path: True


@functools.cache
def called(node: ast.AST) -> str:
    """`a.b` of the call `a.b(...)`; empty for anything else."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def keyword(node: ast.AST, name: str) -> ast.expr | None:
    """The value of a keyword argument of a call."""
    if not isinstance(node, ast.Call):
        return None
    return next((given.value for given in node.keywords if given.arg == name), None)


def imported(node: ast.AST) -> set[str]:
    """Modules that an import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return {node.module or ""} if isinstance(node, ast.ImportFrom) else set()


def outside(*prefixes: str) -> Callable[[str], bool]:
    """Everywhere but below these paths."""
    return lambda path: not re.match("|".join(prefixes), path)


def _imports_any(*names: str) -> Callable[[ast.AST], bool]:
    return lambda node: any(f"{module}.".startswith(f"{name}.") for module in imported(node) for name in names)


_NETWORK = ("requests", "urllib.request", "http.client", "aiohttp", "websockets", "httpx", "httpcore")
_CONNECTS = ("socket.socket", "socket.create_connection", "asyncio.open_connection", "asyncio.start_server")
# What may open sockets: runner and Ray side (they look for what listens), the public client, the guarded client of
# libs.common.http, and the rooms for it.
_NETWORK_ROOMS = (
    "tests/",
    "libs/argosy/",
    "libs/common/testing/",
    "libs/common/http/",
    "libs/compute/",
    "deploy/",
    "services/[a-z]+/(clients|engines|http)/",
)

RULES = (
    Rule(
        "commit",
        "the binder, jobs and subscribers end a unit of work: a handler that commits breaks 'all or nothing'",
        "await call.uow.commit()",
        lambda node: called(node).endswith(".commit") and "uow" in called(node),
        lambda path: bool(re.match(r"services/[a-z]+/(handlers|domain|store)/", path)),
    ),
    Rule(
        "pickle",
        "reading a pickle runs whatever is in it",
        "import pickle",
        _imports_any("pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"),
        outside("tests/"),
    ),
    Rule("eval", "text is not code", "eval(text)", lambda node: called(node) in ("eval", "exec")),
    Rule(
        "yaml-load",
        "yaml.load makes objects of any class; use safe_load",
        "yaml.load(text)",
        lambda node: called(node) in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    ),
    Rule(
        "shell",
        "a shell reads meaning into file names",
        "subprocess.run(line, shell=True)",
        lambda node: (
            (
                (value := keyword(node, "shell")) is not None
                and not (isinstance(value, ast.Constant) and value.value is False)
            )
            or called(node) in ("os.system", "os.popen", "asyncio.create_subprocess_shell")
        ),
    ),
    Rule(
        "torch-load",
        "torch.load is pickle unless weights_only is set",
        "torch.load(path)",
        lambda node: (
            called(node) == "torch.load"
            and not (isinstance(value := keyword(node, "weights_only"), ast.Constant) and value.value is True)
        ),
    ),
    Rule(
        "create-task",
        "a task that nobody holds fails in silence; use a TaskGroup or libs.common.aio.Background",
        "asyncio.create_task(work())",
        lambda node: (
            called(node) in ("asyncio.create_task", "loop.create_task", "asyncio.get_running_loop().create_task")
        ),
        outside("libs/common/aio.py", "tests/"),
    ),
    Rule(
        "wall-clock",
        "time is handed in (libs.common.clock), so that tests do not wait and leases use one clock",
        "datetime.now(UTC)",
        lambda node: (
            called(node)
            in (
                "time.time",
                "datetime.now",
                "datetime.utcnow",
                "datetime.datetime.now",
                "datetime.datetime.utcnow",
                "date.today",
                "datetime.date.today",
            )
        ),
        # Engines run in Ray, where there is nobody to hand a clock in; the runner, the demo and the client are
        # programs for people.
        outside(
            "libs/common/clock.py", "services/[a-z]+/engines/", "deploy/", "libs/argosy/", "tests/", "libs/compute/"
        ),
    ),
    Rule(
        "network",
        "only the clients of HOUSE section 4 open sockets, because they guard where those lead",
        "import httpx",
        lambda node: _imports_any(*_NETWORK)(node) or called(node) in _CONNECTS,
        outside(*_NETWORK_ROOMS),
    ),
    Rule(
        "abort",
        "only the errors stage ends a call, so that every error has its details",
        "await context.abort(code, text)",
        lambda node: called(node).endswith("context.abort"),
        # OTLP is a foreign protocol with error forms of its own; its servicers are not bound through the chain.
        outside("libs/common/rpc/interceptors/errors.py", "services/aiops/handlers/otlp.py", "tests/"),
    ),
    Rule(
        "asyncio-run",
        "one event loop a process: grpc.aio shares one completion queue between loops",
        "asyncio.run(main())",
        lambda node: called(node) in ("asyncio.run", "asyncio.new_event_loop"),
        # `run` in libs.common.service is that one loop; what the harness starts is a process of its own.
        lambda path: (
            path.startswith(("services/", "libs/common/"))
            and "/engines/" not in path
            and not path.startswith(("libs/common/service.py", "libs/common/testing/"))
        ),
    ),
)


@functools.cache
def sources() -> list[tuple[str, str]]:
    """Path in the repository and text of every Python file that people write."""
    rooms = ("libs", "services", "deploy", "protos", "tests")
    paths = {str(path.relative_to(ROOT)): path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))}
    written = (name for name in paths if not _GENERATED.match(name) and "/node_modules/" not in name)
    return [(name, paths[name].read_text()) for name in written]


@functools.cache
def statements(text: str) -> list[ast.Call | ast.Import | ast.ImportFrom]:
    """What rules look at: calls and imports."""
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)]


def breaches(rule: Rule, text: str) -> list[int]:
    """Lines that break a rule and do not say why."""
    lines = text.splitlines()

    def allowed(number: int) -> bool:
        near = lines[max(0, number - 2) : number]
        return any((match := _ALLOW.search(line)) and match["rule"] == rule.name for line in near)

    broken = {node.lineno for node in statements(text) if rule.broken_by(node)}
    return sorted(number for number in broken if not allowed(number))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_holds(rule: Rule) -> None:
    faults = [f"{name}:{line}" for name, text in sources() if rule.applies(name) for line in breaches(rule, text)]
    assert not faults, f"{rule.reason}: {', '.join(faults)}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_can_fail_and_can_be_excused(rule: Rule) -> None:
    example = f"async def f():\n    {rule.example}"
    assert breaches(rule, example) == [2]
    assert breaches(rule, f"{example}  # allow({rule.name}): a reason") == []
    assert breaches(rule, f"{example}  # allow({rule.name}):") == [2]


def foreign_imports(path: Path, service: str) -> set[str]:
    """What a domain imports beside the standard library and the pure modules of libs.common."""
    pure = ("libs.common.domain", "libs.common.clock", "libs.common.ids", f"services.{service}.domain")
    modules = {module for node in ast.walk(ast.parse(path.read_text())) for module in imported(node)}
    return {m for m in modules if m.split(".")[0] not in sys.stdlib_module_names and not m.startswith(pure)}


def test_domains_are_pure() -> None:
    faults = {
        str(path.relative_to(ROOT)): foreign
        for path in (ROOT / "services").glob("*/domain/**/*.py")
        if (foreign := foreign_imports(path, path.relative_to(ROOT).parts[1]))
    }
    assert not faults


_QUERIES = ("select", "update", "delete", "sqlalchemy.select", "sa.select", "sa.update", "sa.delete")


def untenanted(text: str) -> list[int]:
    """Functions with a query that neither names an organization nor says why it spans all."""
    lines = text.splitlines()
    found: list[int] = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not any(called(inner) in _QUERIES for inner in ast.walk(node)):
            continue
        body = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        excused = any((match := _ALLOW.search(line)) and match["rule"] == "tenant" for line in body.splitlines())
        if not re.search(r"\borg\b|\buow\b|\bself\._uow\b|\bname\b|\bparent\b", body) and not excused:
            found.append(node.lineno)
    return found


def test_queries_are_bound_to_an_organization() -> None:
    """Row-level security binds what goes through a unit of work; a query elsewhere names the organization itself."""
    faults = [
        f"{name}:{line}"
        for name, text in sources()
        if re.match(r"services/[a-z]+/store/", name)
        for line in untenanted(text)
    ]
    assert not faults, f"un-tenanted queries: {', '.join(faults)}"


def test_the_query_rule_can_fail() -> None:
    assert untenanted("async def f(c):\n    return await c.execute(select(t))") == [1]
    assert untenanted("async def f(c, org):\n    return await c.execute(select(t).where(t.c.org == org))") == []
