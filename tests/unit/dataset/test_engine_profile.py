"""Profiles: what is counted, and what the page shows of it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from argosy.dataset.v1 import dataset_pb2
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from libs.common.blobs import BlobStore
from libs.compute.context import EngineCancelled, LocalContext
from services.dataset.engines import profile
from services.dataset.engines.profile import ColumnTally, distribution
from services.dataset.handlers.profile_page import page
from tests.unit.dataset.test_engine_tasks import version_of

ENGLISH = "The harbour master keeps a lamp lit for every ship that is late."
GERMAN = "Der Hafenmeister lässt für jedes Schiff, das sich verspätet, eine Lampe brennen."


def profiled(store: BlobStore, rows: list[dict[str, Any]]) -> dict[str, Any]:
    spec = {"version": version_of(store, rows), "grant": ""}
    result = profile.run(LocalContext(spec, blobs_write=store, blobs_read=store))["profile"]
    # As the task's row keeps it.
    return json.loads(json.dumps(result))


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}")


def test_every_kind_of_column_is_counted(store: BlobStore) -> None:
    rows: list[dict[str, Any]] = [
        {"text": ENGLISH, "label": "a", "score": 0.5, "size": 3, "good": True, "tags": ["x"], "source": "one"},
        {"text": GERMAN, "label": "b", "score": 1.5, "size": 4, "good": True, "tags": ["x"], "source": "one"},
        {"text": "", "label": "a", "score": None, "size": 100_000, "good": False, "tags": ["y"], "source": "two"},
        {"text": ENGLISH, "label": "a", "score": 0.5, "size": 3, "good": True, "tags": ["x"], "source": "two"},
    ]
    found = profiled(store, rows)
    assert (found["row_count"], found["profiled_rows"], found["duplicate_rows"]) == (4, 4, 1)
    assert {value["value"]: value["count"] for value in found["sources"]} == {"one": 2, "two": 2}
    columns = {column["name"]: column for column in found["columns"]}
    text = columns["text"]
    assert (text["missing"], text["distinct"]) == (1, 2)
    assert {value["value"]: value["count"] for value in text["languages"]} == {"en": 2, "de": 1}
    assert (text["chars"]["min"], text["chars"]["max"], text["words"]["min"]) == (len(ENGLISH), len(GERMAN), 12)
    assert columns["label"]["top_values"] == [{"value": "a", "count": 3}, {"value": "b", "count": 1}]
    assert (columns["score"]["missing"], columns["score"]["numbers"]["mean"]) == (1, pytest.approx(2.5 / 3))
    assert columns["size"]["numbers"]["logarithmic"]
    assert columns["good"]["top_values"][0] == {"value": "true", "count": 3}
    assert columns["tags"]["top_values"][0] == {"value": '["x"]', "count": 3}
    assert "top_values" not in columns["text"] or columns["text"]["top_values"][0]["count"] == 2


def test_a_large_version_is_sampled_and_says_so(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "SAMPLED_ROWS", 50)
    found = profiled(store, [{"n": number} for number in range(300)])
    assert (found["row_count"], found["profiled_rows"]) == (300, 50)
    assert found["columns"][0]["distinct"] == 50
    assert found == profiled(store, [{"n": number} for number in range(300)])
    shown = page(ParseDict(found, dataset_pb2.VersionProfile()))
    assert "figures from 50 of them" in shown


def test_a_cancel_is_heard(store: BlobStore) -> None:
    spec = {"version": version_of(store, [{"n": 1}]), "grant": ""}
    with pytest.raises(EngineCancelled):
        profile.run(LocalContext(spec, blobs_write=store, blobs_read=store, cancel_when=lambda _: True))


def test_values_are_counted_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_COUNTED", 10)
    tally = ColumnTally("n", "int53")
    for start in range(0, 100, 8):
        tally.add(list(range(start, start + 8)))
    assert tally.figures()["distinct_is_more"]


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=50)
    | st.lists(st.integers(0, 10**9), min_size=1, max_size=50)
)
def test_no_value_falls_out_of_a_histogram(values: list[float]) -> None:
    found = distribution(np.array(values, np.float64))
    assert sum(found["counts"]) == len(values)
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert sorted(found["edges"]) == found["edges"]
    assert (found["min"], found["max"]) == (min(values), max(values))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


def test_the_page_shows_charts_and_runs_nothing(store: BlobStore) -> None:
    hostile = "<script>alert(1)</script>"
    rows = [{"text": f"{ENGLISH} {number}", "label": hostile, "n": number, "source": hostile} for number in range(40)]
    shown = page(ParseDict(profiled(store, rows), dataset_pb2.VersionProfile(version="orgs/acme/<b>")))
    parser = _Tags()
    parser.feed(shown)
    assert parser.found.count("svg") >= 5
    assert not {"script", "b", "link", "img", "iframe"} & set(parser.found)
    assert "&lt;script&gt;alert(1)" in shown
    assert "http" not in shown


def test_the_page_says_in_words_what_no_chart_shows(store: BlobStore) -> None:
    rows = [
        {"code": f"{number % 90:04}", "size": 1_234_567.0 + number, "gap": None if number else "x"}
        for number in range(100)
    ]
    shown = page(ParseDict(profiled(store, rows), dataset_pb2.VersionProfile(version="v")))
    assert "always 4" in shown
    assert "99 missing (99.0%), 1 value." in shown
    # Whole digits instead of powers of ten; of ninety values only those that come again.
    assert "1,234,616" in shown
    assert "e+0" not in shown
    assert shown.count("<td class=value") == 1 + 10


def test_an_empty_profile_has_a_page() -> None:
    shown = page(dataset_pb2.VersionProfile())
    assert "0 rows" in shown
    assert "There are no columns." in shown
