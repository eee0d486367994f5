"""MLflow's routes: names, filters, what a request gives; without a service."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from libs.common.clock import SYSTEM_CLOCK
from libs.common.errors import ArgosyError
from services.gateway.domain import mlflow_names as names
from services.gateway.domain.buckets import Bucket, Budget
from services.gateway.http.caller import Caller
from services.gateway.http.exchange import Exchange
from services.gateway.http.mlflow.artifacts import Artifacts
from services.gateway.http.mlflow.errors import ParameterError
from services.gateway.http.mlflow.filters import Comparison, parse_filter, parse_order
from services.gateway.http.mlflow.given import Given, number_json
from services.gateway.http.mlflow.matching import meets


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", []),
        ("metrics.loss < 0.5", [Comparison("metric", "loss", "<", (), 0.5)]),
        ("metric.`my key` >= -1e-3", [Comparison("metric", "my key", ">=", (), -1e-3)]),
        ('params."a.b" != "x"', [Comparison("param", "a.b", "!=", ("x",))]),
        ("tags.mlflow.source.name ilike '%py'", [Comparison("tag", "mlflow.source.name", "ILIKE", ("%py",))]),
        ("run_id not in ('a', \"b\")", [Comparison("attribute", "run_id", "NOT IN", ("a", "b"))]),
        (
            "status = 'FINISHED' and attributes.start_time > 5",
            [
                Comparison("attribute", "status", "=", ("FINISHED",)),
                Comparison("attribute", "start_time", ">", (), 5.0),
            ],
        ),
    ],
)
def test_filters_are_read(given: str, found: list[Comparison]) -> None:
    assert parse_filter(given) == found


@pytest.mark.parametrize(
    "given",
    [
        "metrics.",
        "a",
        "a =",
        "a = 'x",
        "a = 'x' b = 'y'",
        "x.a = 'b'",
        "a IN ('b'",
        "a IN 'b'",
        "a IS NULL",
        "a = 1.2.3",
        " AND ".join(["a = 'b'"] * 21),
    ],
)
def test_what_is_no_filter_is_refused(given: str) -> None:
    with pytest.raises(ParameterError):
        parse_filter(given)


def test_orders_are_read() -> None:
    assert parse_order("metrics.loss DESC") == ("metric", "loss", True)
    assert parse_order(" params.`a b` ") == ("param", "a b", False)
    assert parse_order("start_time asc") == ("attribute", "start_time", False)
    for wrong in ("", "metrics.loss down", "colour.a DESC"):
        with pytest.raises(ParameterError):
            parse_order(wrong)


def test_patterns_of_many_stars_take_no_time() -> None:
    start = time.process_time()
    assert not meets("a" * 2000, Comparison("attribute", "name", "LIKE", ("%a" * 200 + "b",)))
    # Measured: 20 ms. A regular expression of 200 stars does not end.
    assert time.process_time() - start < 5
    for pattern, matches in (("%", True), ("a%", True), ("%c", True), ("a_c", True), ("a_", False), ("", False)):
        assert meets("abc", Comparison("attribute", "name", "LIKE", (pattern,))) == matches
    assert meets("ABC", Comparison("attribute", "name", "ILIKE", ("a%",)))


@pytest.mark.parametrize("name", ["a", "my-run", "Vision: a first try", "日本", "--", "x" * 100, "_"])
def test_an_experiment_gets_an_id_that_is_one(name: str) -> None:
    made = names.new_training_id(name)
    assert names.training("acme", made) == f"orgs/acme/trainings/{made}"
    assert made == names.new_training_id(name)
    assert names.new_training_id(name + "!") != made


def test_ids_say_what_they_stand_for() -> None:
    run = "orgs/acme/trainings/my-training/runs/run-1"
    assert names.run_id(run) == "my-training_run-1"
    assert names.run("acme", "my-training_run-1") == run
    assert names.run("rival", "my-training_run-1") == run.replace("acme", "rival")
    for wrong in ("", "a", "a_b_c", "A_b", "a/b_c", "a_" + "b" * 64, "_", "a_"):
        assert names.run("acme", wrong) is None
    assert names.training("acme", "0") == "orgs/acme/trainings/mlflow-default"
    assert names.experiment_id("orgs/acme/trainings/mlflow-default/runs/r") == "0"
    assert names.artifact_root(run) == "mlflow-artifacts:/my-training/my-training_run-1/artifacts"


def test_values_have_their_types() -> None:
    given = Given({"a": "5", "b": 1.0, "c": "NaN", "d": [{"key": "k", "value": "v"}], "e": True})
    assert (given.whole("a", 0), given.whole("b", 0), given.whole("x", 7)) == (5, 1, 7)
    assert math.isnan(given.number("c"))
    assert given.pairs("d", 1, 10) == {"k": "v"}
    for call in (
        lambda: given.whole("e", 0),
        lambda: given.whole("c", 0),
        lambda: given.number("d"),
        lambda: given.text("b"),
        lambda: given.pairs("d", 0, 10),
        lambda: given.pairs("d", 1, 0),
        lambda: given.texts("d", 5),
        lambda: given.one("d"),
        given.run_id,
    ):
        with pytest.raises(ParameterError):
            call()
    with pytest.raises(ArgosyError):
        Given.of_body([])
    assert [number_json(value) for value in (1.5, math.nan, math.inf, -math.inf)] == [
        1.5,
        "NaN",
        "Infinity",
        "-Infinity",
    ]


class Renewed:
    """An authenticator whose every caller has another token."""

    def __init__(self) -> None:
        self.count = 0

    async def authenticate(self, authorization: bytes | None) -> Caller:
        self.count += 1
        budget = Budget(Bucket(100, 0.0), Bucket(100, 0.0))
        token = f"token-{self.count}"
        return Caller("acme", "users/a", 3, token, "", 0.0, 0.0, budget, ("authorization", token))


async def test_each_part_of_a_file_has_a_token_that_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.http.mlflow.artifacts.PART_BYTES", 10)
    used: list[str] = []

    async def append(request: Any, metadata: Any, timeout: float) -> None:
        used.append(dict(metadata)["authorization"])

    pieces = [{"type": "http.request", "body": b"x" * 10, "more_body": number < 2} for number in range(3)]
    sent: list[Any] = []

    async def receive() -> Any:
        return pieces.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    path = b"/api/2.0/mlflow-artifacts/artifacts/t/t_r/artifacts/file"
    scope = {"method": "PUT", "raw_path": path, "query_string": b"", "headers": [(b"authorization", b"Bearer ak_x")]}
    backend: Any = SimpleNamespace(artifacts=SimpleNamespace(AppendRunArtifact=append))
    by_method = Artifacts(Renewed(), backend).prefixed()["/api/2.0/mlflow-artifacts/artifacts/"]
    await by_method["PUT"](Exchange(scope, receive, send, SYSTEM_CLOCK))
    assert sent[0]["status"] == 200
    # The first one was asked for before the first byte.
    assert used == ["token-2", "token-3", "token-4"]
