"""The route table: what `google.api.http` says in the descriptors, compiled into a tree.

Matching costs one dictionary look-up a path segment. A template may say `*` where another says a literal, so the tree
is made deterministic when it is built: the branch of a literal also holds everything that a wildcard at the same place
would lead to, and where both end at one route, the more literal template wins.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

import argosy
from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from libs.common.auth.policy import MethodPolicy, read_policy
from libs.common.errors import invalid_field

_BRACES = re.compile(r"(\{[^{}]*\})")
_AREA_PACKAGE = re.compile(r"^argosy\.([a-z]+)\.v1$")
# The package of the services that other services mount; the area in the path says which of them is meant.
_SHARED_AREA = "common"


@dataclass(frozen=True, slots=True)
class Route:
    """One HTTP method and path template bound to one RPC.

    Attributes:
        http_method: `GET`, `POST`, ...
        template: as it stands in the proto.
        segments: literals and `*`, without the custom verb.
        verb: custom verb behind the colon; empty for none.
        variables: field path -> half-open range of segments.
        body: `*`, the name of a field, or empty.
        method: the RPC.
        policy: who may call it and how long it may take.
        area: service that answers; None where the path says it (`area_segment`).
        area_segment: segment that names the service, for services that others mount.
    """

    http_method: str
    template: str
    segments: tuple[str, ...]
    verb: str
    variables: tuple[tuple[str, int, int], ...]
    body: str
    method: MethodDescriptor
    policy: MethodPolicy
    area: str | None
    area_segment: int | None

    @property
    def request_class(self) -> type:
        return GetMessageClass(self.method.input_type)

    @property
    def response_class(self) -> type:
        return GetMessageClass(self.method.output_type)


@dataclass(frozen=True, slots=True)
class Match:
    """A route with what the path said: the service and the values of the variables, decoded."""

    route: Route
    area: str
    values: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    wildcard: _Node | None = None
    # verb -> HTTP method -> route
    leaves: dict[str, dict[str, Route]] = field(default_factory=dict)


class MethodNotAllowed(Exception):
    """The path exists with other HTTP methods only."""

    def __init__(self, allowed: Iterable[str]) -> None:
        super().__init__("method not allowed")
        self.allowed = sorted(allowed)


class RouteTable:
    """All routes of some services.

    Args:
        services: descriptors to read `google.api.http` from; methods without it have no route.
        mounted: areas whose service mounts the shared services (TaskService).
    """

    def __init__(self, services: Iterable[ServiceDescriptor], mounted: Iterable[str]) -> None:
        self.routes = tuple(route for service in services for route in _routes_of(service))
        self._mounted = frozenset(mounted)
        self._root = _deterministic((_tree(self.routes),))

    def match(self, http_method: str, path: str) -> Match | None:
        """The route of a request; None if there is no such path.

        Args:
            http_method: in capitals; `HEAD` is answered like `GET`.
            path: still percent-encoded, without the query.

        Raises:
            MethodNotAllowed: the path has routes, but none for this method.
            ArgosyError: INVALID_FIELD if the value of a variable is not UTF-8 or holds a slash or a control character.
        """
        parts = path.split("/")
        if parts[0] or len(parts) < 2:
            return None
        parts[-1], _, verb = parts[-1].partition(":")
        node = self._root
        for part in parts[1:]:
            below = node.literals.get(part, node.wildcard if part else None)
            if below is None:
                return None
            node = below
        by_method = node.leaves.get(verb)
        if not by_method:
            return None
        route = by_method.get("GET" if http_method == "HEAD" else http_method)
        if route is None:
            raise MethodNotAllowed(by_method)
        return self._bind(route, parts[1:])

    def _bind(self, route: Route, parts: list[str]) -> Match | None:
        values = tuple(
            (name, "/".join(_decoded(part, name) if "%" in part else part for part in parts[start:end]))
            for name, start, end in route.variables
        )
        area = route.area
        if area is None:
            area = parts[route.area_segment or 0]
            if area not in self._mounted:
                return None
        return Match(route, area, values)


def _decoded(part: str, name: str) -> str:
    try:
        text = unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise invalid_field(name, "the path is not UTF-8") from None
    if "/" in text or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise invalid_field(name, "the path holds an encoded slash or control character")
    return text


def service_descriptors() -> tuple[ServiceDescriptor, ...]:
    """Every service of the packages `argosy.<area>.v1`, in order of name."""
    found: dict[str, ServiceDescriptor] = {}
    stubs = sorted(folder for root in argosy.__path__ for folder in Path(root).glob("*/v1"))
    for folder in stubs:
        package = f"argosy.{folder.parent.name}.v1"
        for module in pkgutil.iter_modules([str(folder)]):
            if module.name.endswith("_pb2"):
                file = importlib.import_module(f"{package}.{module.name}").DESCRIPTOR
                found.update({service.full_name: service for service in file.services_by_name.values()})
    return tuple(found[name] for name in sorted(found))


def _routes_of(service: ServiceDescriptor) -> Iterable[Route]:
    for method in service.methods:
        options = method.GetOptions()
        if not options.HasExtension(annotations_pb2.http):  # type: ignore[arg-type]
            continue
        rule: http_pb2.HttpRule = options.Extensions[annotations_pb2.http]  # type: ignore[index]
        for one in (rule, *rule.additional_bindings):
            yield _route(method, one)


def _route(method: MethodDescriptor, rule: http_pb2.HttpRule) -> Route:
    kind = rule.WhichOneof("pattern")
    if kind is None or kind == "custom":
        raise ValueError(f"{method.full_name} has no path or a custom HTTP method")
    template: str = getattr(rule, kind)
    segments, verb, variables = parse_template(template)
    area, area_segment = _area_of(method, segments)
    for name, _, _ in variables:
        _check_field(method, name)
    if rule.body not in ("", "*"):
        _check_field(method, rule.body)
    return Route(
        kind.upper(), template, segments, verb, variables, rule.body, method, read_policy(method), area, area_segment
    )


def _area_of(method: MethodDescriptor, segments: tuple[str, ...]) -> tuple[str | None, int | None]:
    package = method.containing_service.file.package  # type: ignore[union-attr]
    matched = _AREA_PACKAGE.match(package)
    if matched is None:
        raise ValueError(f"{method.full_name} lies outside of argosy.<area>.v1")
    if matched[1] != _SHARED_AREA:
        return matched[1], None
    # `v1/orgs/*/{area}/...`
    return None, segments.index("*") + 1


def _check_field(method: MethodDescriptor, path: str) -> None:
    message = method.input_type
    for name in path.split("."):
        if message is None or name not in message.fields_by_name:
            raise ValueError(f"{method.full_name}: the path names the field {path}, which the request lacks")
        message = message.fields_by_name[name].message_type


def parse_template(template: str) -> tuple[tuple[str, ...], str, tuple[tuple[str, int, int], ...]]:
    """Takes a path template apart: segments (literals and `*`), custom verb, and variables as ranges of segments.

    The grammar is that of google/api/http.proto, without `**`, which no route of Argosy has.
    """
    bare = ""
    variables: list[tuple[str, int, int]] = []
    for piece in _BRACES.split(template):
        if not piece.startswith("{"):
            bare += piece
            continue
        name, _, inner = piece[1:-1].partition("=")
        start = bare.count("/") - 1
        bare += inner or "*"
        variables.append((name, start, bare.count("/")))
    path, _, verb = bare.partition(":")
    segments = tuple(path.split("/")[1:])
    if not path.startswith("/") or "**" in segments or "{" in path or "" in segments:
        raise ValueError(f"path template {bare!r} is not supported")
    return segments, verb, tuple(variables)


def _tree(routes: Iterable[Route]) -> _Node:
    root = _Node()
    for route in routes:
        node = root
        for segment in route.segments:
            if segment == "*":
                node.wildcard = node.wildcard or _Node()
                node = node.wildcard
            else:
                node = node.literals.setdefault(segment, _Node())
        leaf = node.leaves.setdefault(route.verb, {})
        if route.http_method in leaf:
            raise ValueError(f"{route.http_method} {route.template} is bound twice")
        leaf[route.http_method] = route
    return root


def _deterministic(nodes: tuple[_Node, ...]) -> _Node:
    """Merges nodes that one path can reach, most literal first, into one; and so on down the tree."""
    merged = _Node()
    for node in nodes:
        for verb, by_method in node.leaves.items():
            leaf = merged.leaves.setdefault(verb, {})
            for http_method, route in by_method.items():
                leaf.setdefault(http_method, route)
    wildcards = tuple(node.wildcard for node in nodes if node.wildcard)
    if wildcards:
        merged.wildcard = _deterministic(wildcards)
    for literal in {literal for node in nodes for literal in node.literals}:
        followers = [follower for node in nodes for follower in (node.literals.get(literal), node.wildcard) if follower]
        merged.literals[literal] = _deterministic(tuple(followers))
    return merged


# Areas whose service mounts TaskService, because it has long work.
TASK_AREAS = ("dataset", "training", "deploy", "eval")


def default_table(tasks: Iterable[str] = TASK_AREAS) -> RouteTable:
    """The routes of all services of Argosy."""
    return RouteTable(service_descriptors(), tasks)


def templates(table: RouteTable) -> Mapping[str, list[Route]]:
    """Routes by path template, for listings."""
    found: dict[str, list[Route]] = {}
    for route in table.routes:
        found.setdefault(route.template, []).append(route)
    return found
