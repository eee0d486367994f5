"""The route table against the descriptors themselves."""

from __future__ import annotations

import random

import pytest

from libs.common.errors import ArgosyError
from services.gateway.http.routes import MethodNotAllowed, RouteTable, default_table, parse_template

TABLE = default_table()


def _example(route) -> str:
    """A path that the route answers."""
    filled = ["training" if index == route.area_segment else f"x{index}" for index in range(len(route.segments))]
    path = [filled[index] if part == "*" else part for index, part in enumerate(route.segments)]
    return "/" + "/".join(path) + (f":{route.verb}" if route.verb else "")


@pytest.mark.parametrize("route", TABLE.routes, ids=lambda route: f"{route.http_method} {route.template}")
def test_every_route_is_found_by_its_path(route):
    match = TABLE.match(route.http_method, _example(route))
    assert match is not None
    assert match.route is route
    assert [name for name, _ in match.values] == [name for name, _, _ in route.variables]


def test_variables_and_verbs():
    match = TABLE.match("POST", "/v1/orgs/acme/datasets/d/versions/1:clean")
    assert match is not None
    assert match.route.method.name == "CleanVersion"
    assert match.values == (("name", "orgs/acme/datasets/d/versions/1"),)
    assert match.area == "dataset"
    match = TABLE.match("PATCH", "/v1/orgs/acme/datasets/d")
    assert match is not None
    assert match.values == (("dataset.name", "orgs/acme/datasets/d"),)
    assert match.route.body == "dataset"


def test_tasks_go_to_the_service_that_the_path_names():
    for area in ("dataset", "training", "deploy", "eval"):
        match = TABLE.match("GET", f"/v1/orgs/acme/{area}/tasks/t1:watch")
        assert match is not None
        assert (match.area, match.route.method.name) == (area, "WatchTask")
    assert TABLE.match("GET", "/v1/orgs/acme/identity/tasks/t1") is None


def test_a_literal_wins_over_a_wildcard():
    match = TABLE.match("GET", "/v1/orgs/acme/datasets/tasks")
    assert match is not None
    assert match.route.method.name == "GetDataset"


def test_percent_encoding():
    match = TABLE.match("GET", "/v1/orgs/a%C3%BC/datasets/d")
    assert match is not None
    assert match.values[0][1] == "orgs/aü/datasets/d"
    for bad in ("a%2Fb", "a%00", "%ff", "a%0a"):
        with pytest.raises(ArgosyError):
            TABLE.match("GET", f"/v1/orgs/{bad}")


@pytest.mark.parametrize(
    "path", ["", "v1", "/", "//", "/v1/", "/v1/orgs/", "/v1/orgs//datasets", "/v1/orgs/a:", "/v2/orgs"]
)
def test_no_route(path):
    try:
        match = TABLE.match("GET", path)
    except MethodNotAllowed:
        pytest.fail("a path without a route has no methods")
    assert match is None or path == "/v1/orgs/a:"


def test_other_methods_are_told():
    with pytest.raises(MethodNotAllowed) as caught:
        TABLE.match("PUT", "/v1/orgs/acme/datasets/d")
    assert caught.value.allowed == ["DELETE", "GET", "PATCH"]
    assert TABLE.match("HEAD", "/v1/orgs/acme/datasets/d") is not None


def test_matching_any_path_never_fails():
    source = random.Random(7)
    words = ["v1", "orgs", "a", "datasets", "*", "", "tasks", "%41", "a:b", ":", "..", "x" * 300]
    for _ in range(3000):
        path = "/".join(source.choice(words) for _ in range(source.randint(0, 12)))
        try:
            TABLE.match(source.choice(["GET", "POST", "BREW"]), "/" + path)
        except MethodNotAllowed:
            continue


def test_templates():
    assert parse_template("/v1/{a.b=x/*/y/*}/z/{c}:go") == (
        ("v1", "x", "*", "y", "*", "z", "*"),
        "go",
        (("a.b", 1, 5), ("c", 6, 7)),
    )
    for bad in ("v1/x", "/v1/{a=**}", "/v1//x"):
        with pytest.raises(ValueError, match="not supported"):
            parse_template(bad)


def test_a_path_bound_twice_is_refused():
    services = {route.method.containing_service.full_name: route.method.containing_service for route in TABLE.routes}
    one = services["argosy.dataset.v1.DatasetService"]
    with pytest.raises(ValueError, match="bound twice"):
        RouteTable([one, one], [])
