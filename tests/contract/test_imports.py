"""Which service may call which. Who may import whom is said in .importlinter, and asked by `lint-imports`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the bottom of the call graph to its top: a service calls those before it.
ORDER = ("identity", "dataset", "training", "deploy", "eval", "app", "aiops", "gateway")
# The protos of these areas are shared by all.
_SHARED = {"common"}
# Engines run in Ray and replicas; what they serve and call is fixed by the contract of a replica, not by the graph.
_CLIENT_ROOMS = ("clients", "events", "jobs", "http")


def stub_imports(path: Path) -> set[str]:
    """Areas whose gRPC stubs a file imports: `argosy.<area>.v1.<x>_pb2_grpc`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("argosy."):
            area = (node.module or "").split(".")[1]
            if any(alias.name.endswith("_pb2_grpc") for alias in node.names) or (node.module or "").endswith("_grpc"):
                found.add(area)
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("argosy.") and "_grpc" in a.name}
    return found - _SHARED


def wrong_calls(order: tuple[str, ...], calls: dict[str, set[str]]) -> list[str]:
    """The calls that do not go down."""
    place = {name: number for number, name in enumerate(order)}
    return [
        f"{caller} calls {callee}"
        for caller, callees in calls.items()
        for callee in sorted(callees)
        if callee != caller and place[callee] > place[caller]
    ]


@pytest.mark.parametrize("service", ORDER)
def test_calls_go_down(service: str) -> None:
    calls: set[str] = set()
    for path in (ROOT / "services" / service).rglob("*.py"):
        calls |= stub_imports(path)
    assert not wrong_calls(ORDER, {service: calls})


@pytest.mark.parametrize("service", ORDER)
def test_stubs_are_used_where_calls_belong(service: str) -> None:
    """A handler or a store that opened its own way to a peer would be a call that nobody sees in clients/."""
    folder = ROOT / "services" / service
    for path in folder.rglob("*.py"):
        room = path.relative_to(folder).parts[0]
        others = stub_imports(path) - {service}
        assert not others or room in (*_CLIENT_ROOMS, "engines", "app.py"), f"{path.relative_to(ROOT)} calls {others}"


def test_the_graph_test_can_fail() -> None:
    assert wrong_calls(ORDER, {"dataset": {"identity", "dataset"}, "gateway": {"app"}}) == []
    assert wrong_calls(ORDER, {"dataset": {"deploy"}}) == ["dataset calls deploy"]
