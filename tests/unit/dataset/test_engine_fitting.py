"""Imputation, standardisation and functions as whole cleanings."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError
from services.dataset.engines import cleaning, sandbox
from tests.unit.dataset.test_engine_tasks import recipe, rows_of, run, version_of


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}")


def table(count: int) -> list[dict[str, Any]]:
    """Rows with gaps; `price` has fractions, `kind` texts, `big` whole numbers beyond 2^53."""
    random = np.random.default_rng(3)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        row: dict[str, Any] = {"text": f"row {number}", "n": int(random.integers(0, 50)), "big": 2**60 + 2**20 * number}
        if random.random() < 0.8:
            row["price"] = float(random.normal(100, 15))
        if random.random() < 0.9:
            row["kind"] = "abc"[int(random.integers(0, 3))]
        rows.append(row)
    return rows


STEPS = (
    {"impute": {"columns": ["price", "n"], "method": "median"}},
    {"impute": {"columns": ["kind"], "method": "mode"}},
    {"standardise": {"columns": ["price"]}},
    {"standardise": {"columns": ["n"], "method": "min_max"}},
    {"standardise": {"columns": ["big"], "method": "robust"}},
)


def test_figures_are_those_of_the_whole_version(store: BlobStore) -> None:
    rows = table(200)
    result, _ = run(cleaning, store, version_of(store, rows), recipe=recipe(*STEPS))
    made = rows_of(store, result["manifest_digest"])
    prices = np.array([row["price"] for row in rows if "price" in row])
    filled = np.array([row.get("price", np.median(prices)) for row in rows])
    assert [row["price"] for row in made] == pytest.approx((filled - prices.mean()) / prices.std())
    assert (min(row["n"] for row in made), max(row["n"] for row in made)) == (0, 1)
    assert all(row["kind"] in "abc" for row in made)
    assert sorted(row["big"] for row in made)[99:101] == pytest.approx([-0.5 / 99.5, 0.5 / 99.5])
    first = result["report"]["rules"][0]
    price = next(one for one in first["fitted"] if one["column"] == "price")
    assert (price["values"], price["missing"]) == (len(prices), 200 - len(prices))
    assert price["figures"]["deviation"] == pytest.approx(prices.std())
    assert first["changed"] == 200 - len(prices)
    assert result["report"]["rules"][1]["rule"] == "impute 2"
    assert result["report"]["rules"][1]["fitted"][0]["mode"] in ('"a"', '"b"', '"c"')
    types = {column["name"]: column["type"] for column in result["columns"]}
    assert types == {"text": "string", "n": "double", "big": "double", "price": "double", "kind": "string"}


def test_figures_do_not_depend_on_shards(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    version = version_of(store, table(200))
    digests: set[str] = set()
    for rows in (200, 100, 50, 7):
        monkeypatch.setattr(cleaning, "SHARD_ROWS", rows)
        digests.add(run(cleaning, store, version, recipe=recipe(*STEPS))[0]["manifest_digest"])
    assert len(digests) == 1


def test_a_figure_of_each_shard_would_be_seen(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above protects against: figures taken where the rows are changed."""
    rows = table(200)
    whole, _ = run(cleaning, store, version_of(store, rows), recipe=recipe(*STEPS))
    halves = [
        run(cleaning, store, version_of(store, half), recipe=recipe(*STEPS))[0] for half in (rows[:100], rows[100:])
    ]
    made = [row["price"] for half in halves for row in rows_of(store, half["manifest_digest"])]
    assert made != [row["price"] for row in rows_of(store, whole["manifest_digest"])]


def test_missing_values_drop_rows_and_constants_fill_them(store: BlobStore) -> None:
    rows = [{"text": "a", "x": 1, "ok": True}, {"text": "b", "ok": False}, {"text": "c", "x": 2}]
    steps = ({"drop_missing": {"columns": ["x"]}}, {"impute": {"columns": ["ok"], "method": "constant", "value": True}})
    result, _ = run(cleaning, store, version_of(store, rows), recipe=recipe(*steps))
    made = [{name: row[name] for name in ("text", "x", "ok")} for row in rows_of(store, result["manifest_digest"])]
    assert made == [{"text": "a", "x": 1, "ok": True}, {"text": "c", "x": 2, "ok": True}]
    assert result["report"]["rules"][0]["examples"][0]["reason"] == "has no x"


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({"impute": {"columns": ["none"], "method": "mean"}}, "column none has no value"),
        ({"impute": {"columns": ["none"], "method": "mode"}}, "column none has no value"),
        ({"standardise": {"columns": ["same"], "method": "robust"}}, "one value in its middle half"),
    ],
)
def test_a_figure_that_does_not_exist_is_an_error(store: BlobStore, step: dict[str, Any], says: str) -> None:
    version = version_of(store, [{"text": "a", "same": value} for value in (1, 5, 5, 5, 9)])
    with pytest.raises(EngineError, match=says) as caught:
        run(cleaning, store, version, recipe=recipe(step))
    assert caught.value.reason == "CONTENT_INVALID"


def test_a_column_of_one_value_becomes_zero(store: BlobStore) -> None:
    version = version_of(store, [{"text": "a", "x": 4.5}, {"text": "b", "x": 4.5}])
    result, _ = run(cleaning, store, version, recipe=recipe({"standardise": {"columns": ["x"]}}))
    assert [row["x"] for row in rows_of(store, result["manifest_digest"])] == [0, 0]


FUNCTION = """
import re

def row(row):
    if row["n"] % 3 == 0:
        return None
    row["half"] = row["n"] / 2
    row["text"] = re.sub("row", "Row", row["text"])
    del row["big"]
    return row
"""


def test_a_function_changes_and_drops_rows(store: BlobStore) -> None:
    rows = [{"text": f"row {number}", "n": number, "big": "x"} for number in range(6)]
    step = {"python": {"function": FUNCTION, "name": "thirds"}}
    result, _ = run(cleaning, store, version_of(store, rows), recipe=recipe(step))
    made = rows_of(store, result["manifest_digest"])
    assert [(row["text"], row["half"]) for row in made] == [("Row 1", 0.5), ("Row 2", 1), ("Row 4", 2), ("Row 5", 2.5)]
    types = {column["name"]: column["type"] for column in result["columns"]}
    assert types == {"text": "string", "n": "int64", "half": "double"}
    rule = result["report"]["rules"][0]
    assert (rule["rule"], rule["operator"], rule["dropped"], rule["changed"]) == ("thirds", "python", 2, 4)
    assert rule["code_digest"] == sha256(FUNCTION.encode()).hexdigest()
    assert rule["examples"][0]["reason"] == "the function gave None"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("def row(row):\n    return 1 / row['n']", "line 2: ZeroDivisionError: division by zero"),
        ("def row(row):\n    return [row]", "it gave list; wanted is the row"),
        ("def row(row):\n    return {**row, 'source': 'x'}", "source says where a row comes from"),
        ("def row(row):\n    return {**row, '': 1}", "a column name must have"),
        ("def row(row):\n    return {**row, 'text': '\\ud800'}", "not representable as JSON"),
        ("def row(row):\n    raise ValueError('a' + chr(0) + chr(0xd800))", "ValueError: a\ufffd?"),
    ],
)
def test_errors_of_a_function(store: BlobStore, function: str, says: str) -> None:
    version = version_of(store, [{"text": "a", "n": 0}])
    with pytest.raises(EngineError) as caught:
        run(cleaning, store, version, recipe=recipe({"python": {"function": function}}))
    assert caught.value.reason == "CONTENT_INVALID"
    assert says in caught.value.message
    assert "(file, position 0)" in caught.value.message


def test_errors_of_a_function_may_drop_rows(store: BlobStore) -> None:
    version = version_of(store, [{"text": "a", "n": number} for number in (0, 1)])
    step = {"python": {"function": "def row(row):\n    return 1 / row['n'] > 0", "on_error": "drop"}}
    result, _ = run(cleaning, store, version, recipe=recipe(step))
    assert result["row_count"] == 1
    assert result["report"]["rules"][0]["examples"][0]["reason"] == "line 2: ZeroDivisionError: division by zero"


def test_no_function_runs_where_there_is_no_sandbox(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text("""input(); print('{"missing": "prctl 22: Invalid argument"}')""")
    monkeypatch.setattr(sandbox, "CHILD", child)
    version = version_of(store, [{"text": "a"}])
    with pytest.raises(EngineError, match="no sandbox for functions can be set up here: prctl 22") as caught:
        run(cleaning, store, version, recipe=recipe({"python": {"function": "def row(row):\n    return row"}}))
    assert caught.value.reason == "PREFLIGHT_FAILED"


def test_the_row_is_named_at_which_a_function_ends_its_process(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaning, "SHARD_ROWS", 4)
    function = "import json\ndef row(row):\n    return row['n'] != 6 or json.codecs.sys.modules['os']._exit(9)"
    version = version_of(store, [{"text": "a", "n": number} for number in range(9)])
    with pytest.raises(EngineError, match=r"position 6\): its process ended with code 9"):
        run(cleaning, store, version, recipe=recipe({"python": {"function": function}}))


def test_types_are_those_that_the_rows_hold(store: BlobStore) -> None:
    rows = [{"text": "a", "price": "1.5"}, {"text": "b", "price": "2"}]
    steps = (
        {"compute": {"column": "price", "value": "cast(price AS double)"}},
        {"python": {"function": "def row(row):\n    row['more'] = [1]\n    return row"}},
    )
    result, _ = run(cleaning, store, version_of(store, rows), recipe=recipe(*steps))
    types = {column["name"]: column["type"] for column in result["columns"]}
    assert types == {"text": "string", "price": "double", "more": "json"}
    assert [row["price"] for row in rows_of(store, result["manifest_digest"])] == [1.5, 2]
