"""Cleaning and splitting as whole engines, without Ray."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.blobs import BlobStore
from libs.compute.context import EngineCancelled, EngineError, LocalContext
from libs.compute.versions import load_index, read_rows
from services.dataset.domain.recipes import read_recipe
from services.dataset.engines import cleaning, splitting
from services.dataset.engines.access import StoreBlobs
from services.dataset.engines.index import save
from services.dataset.engines.minhash import Banding
from services.dataset.engines.recall import near_duplicate_report
from services.dataset.engines.splitting import choose_test_rows
from services.dataset.engines.writing import VersionWriter
from tests.unit.dataset.test_engine_alike import changed, one_word_off, sample, shingles_of


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}")


def version_of(store: BlobStore, rows: list[dict[str, Any]]) -> str:
    """The manifest of a version with these rows; `source` is provenance."""
    blobs = StoreBlobs(store)
    writer = VersionWriter(blobs)
    for number, row in enumerate(rows):
        content = {name: value for name, value in row.items() if name != "source"}
        writer.add(content, row.get("source", "file"), number)
    return save(writer.finish(), blobs).manifest_digest


def run(engine: Any, store: BlobStore, version: str, **spec: Any) -> tuple[dict[str, Any], LocalContext]:
    defaults = {"version": version, "grant": "", "text_column": "text"}
    context = LocalContext({**defaults, **spec}, blobs_write=store, blobs_read=store)
    return engine.run(context), context


def recipe(*steps: Any) -> dict[str, Any]:
    """The spec of a recipe with these steps."""
    return read_recipe({"steps": list(steps)}).to_json()


def texts_of(store: BlobStore, digest: str) -> list[str]:
    return [text for batch in read_rows(store, digest, ["text"]) for text in batch["text"].to_pylist()]


def test_clean_keeps_drops_and_changes(store: BlobStore) -> None:
    texts = [
        sample(1),
        "<p>" + sample(2) + "</p>",
        "x",
        sample(1) + " ",
        sample(2),
        one_word_off(sample(1)),
        sample(4),
    ]
    version = version_of(store, [{"text": text, "n": number} for number, text in enumerate(texts)])
    steps = ["html", "normalise", {"length": {"min_chars": 3}}, "exact_duplicates", "near_duplicates"]
    result, context = run(cleaning, store, version, recipe=recipe(*steps))
    assert texts_of(store, result["manifest_digest"]) == [sample(1), sample(2), sample(4)]
    report = result["report"]
    assert (report["rows_in"], report["rows_out"]) == (7, 3)
    assert {rule["rule"]: rule["dropped"] for rule in report["rules"] if rule["dropped"]} == {
        "length": 1,
        "exact_duplicates": 2,
        "near_duplicates": 1,
    }
    assert report["changed"] == {"html": 1, "normalise": 2}
    assert [batch["n"].to_pylist() for batch in read_rows(store, result["manifest_digest"])] == [[0, 1, 6]]
    index = load_index(store.load_manifest_sync(version), StoreBlobs(None, store))
    duplicate = next(rule for rule in report["rules"] if rule["rule"] == "exact_duplicates")["examples"][0]
    assert duplicate["row_id"] == index.id_of(3)
    assert index.id_of(0) in duplicate["reason"]
    assert context.recorded.progress[-1][0] == 1.0


def test_clean_that_changes_nothing_stores_nothing_and_is_the_same_version(store: BlobStore) -> None:
    version = version_of(store, [{"text": sample(number)} for number in range(20)])
    result, _ = run(cleaning, store, version, recipe=recipe("normalise", "exact_duplicates"))
    assert result["new_byte_count"] == 0
    assert result["manifest_digest"] == version


def test_clean_gives_the_same_for_any_size_of_shards(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [changed(sample(number % 30), 0.02, number) + " " * (number % 3) for number in range(200)]
    version = version_of(store, [{"text": text} for text in texts])
    steps = recipe("normalise", "exact_duplicates", "near_duplicates")
    whole, _ = run(cleaning, store, version, recipe=steps)
    monkeypatch.setattr(cleaning, "SHARD_ROWS", 17)
    parts, _ = run(cleaning, store, version, recipe=steps)
    for result in (whole, parts):
        result["report"].pop("seconds")
    assert whole == parts
    assert 0 < whole["row_count"] < 150


def test_clean_that_drops_all_is_an_error(store: BlobStore) -> None:
    version = version_of(store, [{"text": "a"}])
    with pytest.raises(EngineError, match="no row is left"):
        run(cleaning, store, version, recipe=recipe({"length": {"min_chars": 5}}))


def test_clean_hears_a_cancel(store: BlobStore) -> None:
    version = version_of(store, [{"text": "a"}])
    spec = {"version": version, "grant": "", "text_column": "text", "recipe": recipe("words")}
    context = LocalContext(spec, blobs_write=store, blobs_read=store, cancel_when=lambda _: True)
    with pytest.raises(EngineCancelled):
        cleaning.run(context)


def test_the_recall_of_near_duplicates_is_measured(store: BlobStore) -> None:
    version = version_of(store, [{"text": sample(number)} for number in range(150)])
    near = run(cleaning, store, version, recipe=recipe("near_duplicates"))[0]["report"]["near_duplicates"]
    assert (near["bands"], near["rows_per_band"], near["threshold"]) == (25, 5, 0.8)
    assert near["planted_pairs"] > 50
    assert near["found_pairs"] >= 0.98 * near["planted_pairs"]
    assert near["curve"][0] == {"similarity": 0.0, "probability": 0.0}
    assert near["curve"][16]["probability"] == pytest.approx(near["expected_recall"])
    assert "near_duplicates" not in run(cleaning, store, version, recipe=recipe("html"))[0]["report"]


def test_bands_that_are_too_wide_are_seen_by_the_measurement() -> None:
    near = near_duplicate_report([sample(number) for number in range(150)], 0.8, Banding(2, 64))
    assert near["found_pairs"] < 0.7 * near["planted_pairs"]


def test_a_recipe_is_tried_on_a_sample_and_nothing_is_stored(store: BlobStore, tmp_path: Path) -> None:
    version = version_of(store, [{"text": f"<b>{sample(number % 40)}</b>"} for number in range(200)])
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    steps = recipe("html", "exact_duplicates", "near_duplicates")
    result, context = run(cleaning, store, version, recipe=steps, sample_rows=120)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert list(result) == ["report"]
    report = result["report"]
    assert (report["rows_in"], report["changed"]) == (120, {"html": 120})
    assert 30 < report["rows_out"] <= 40
    change = report["rules"][0]["changed_examples"][0]
    assert change["before"].startswith("<b>")
    assert change["before"][3:23] == change["after"][:20]
    again, _ = run(cleaning, store, version, recipe=steps, sample_rows=120)
    for tried in (result, again):
        tried["report"].pop("seconds")
    assert again == result
    whole, _ = run(cleaning, store, version, recipe=steps, sample_rows=1000)
    assert whole["report"]["rows_in"] == 200
    assert context.recorded.progress[-1][0] == 0.95


def test_text_that_is_no_text_is_cleaned_too(store: BlobStore) -> None:
    version = version_of(store, [{"text": 5}, {"text": ["a", "b"]}, {"other": "x"}, {"text": "<b>word</b> \x00 end"}])
    result, _ = run(cleaning, store, version, recipe=recipe("html", {"length": {"min_chars": 1}}))
    assert result["row_count"] == 3
    assert result["report"]["rules"][1]["dropped"] == 1


def split(store: BlobStore, version: str, **spec: Any) -> dict[str, Any]:
    defaults = {"group_column": "source", "test_fraction": 0.25, "near_duplicate_threshold": 0.8, "seed": 1}
    return run(splitting, store, version, **{**defaults, **spec})[0]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from([0.0, 0.01, 0.05]), st.integers(0, 3), st.integers(0, 6)),
        min_size=2,
        max_size=40,
    ),
    st.integers(0, 3),
)
def test_split_is_disjoint_by_group_and_by_likeness(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, float, int, int]], seed: int
) -> None:
    store = BlobStore(f"file://{tmp_path_factory.mktemp('blobs')}")
    rows = [
        {"text": changed(sample(text), share, variant), "source": f"file-{group}", "number": number}
        for number, (text, share, variant, group) in enumerate(plan)
    ]
    version = version_of(store, rows)
    with suppress(EngineError):
        check_split(store, rows, split(store, version, seed=seed))


def check_split(store: BlobStore, rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    sides = {side: rows_of(store, result[side]["manifest_digest"]) for side in ("train", "test")}
    numbers = {side: [row["number"] for row in found] for side, found in sides.items()}
    for found in numbers.values():
        assert found == sorted(set(found))
    assert not set(numbers["train"]) & set(numbers["test"])
    assert not {row["source"] for row in sides["train"]} & {row["source"] for row in sides["test"]}
    assert len(numbers["train"]) + len(numbers["test"]) + result["train"]["report"]["leakage_count"] == len(rows)
    tests = [shingles_of(row["text"]) for row in sides["test"]]
    for train in map(shingles_of, (row["text"] for row in sides["train"])):
        assert all(len(train & test) / len(train | test) < 0.8 for test in tests)


def rows_of(store: BlobStore, digest: str) -> list[dict[str, Any]]:
    return [row for batch in read_rows(store, digest) for row in batch.to_pylist()]


def test_split_counts_and_shows_leaks(store: BlobStore) -> None:
    rows = [{"text": sample(number), "source": f"s{number}"} for number in range(40)]
    rows += [{"text": one_word_off(sample(number)), "source": f"copy{number}"} for number in range(40)]
    result = split(store, version_of(store, rows), test_fraction=0.3)
    report = result["train"]["report"]
    assert report["leakage_count"] > 5
    assert len(report["leakage_examples"]) == min(20, report["leakage_count"])
    assert 0.8 <= report["leakage_examples"][0]["similarity"] <= 1.0
    assert result["train"]["new_byte_count"] == result["test"]["new_byte_count"] == 0


def test_split_by_a_column_keeps_rows_without_a_value_apart(store: BlobStore) -> None:
    rows = [{"text": sample(number), "who": None if number % 2 else number % 6} for number in range(60)]
    result = split(store, version_of(store, rows), group_column="who", test_fraction=0.5)
    train, test = (rows_of(store, result[side]["manifest_digest"]) for side in ("train", "test"))
    assert not {row["who"] for row in train if row["who"] is not None} & {row["who"] for row in test}
    assert any(row["who"] is None for row in train)
    assert any(row["who"] is None for row in test)


@given(
    st.lists(st.integers(0, 12).map(lambda group: str(group).encode()), min_size=2, max_size=200),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_groups_are_whole_and_both_sides_have_some(groups: list[bytes], fraction: float, seed: int) -> None:
    if len(set(groups)) < 2:
        with pytest.raises(EngineError):
            choose_test_rows(groups, fraction, seed)
        return
    chosen = choose_test_rows(groups, fraction, seed)
    test = {group for group, taken in zip(groups, chosen, strict=True) if taken}
    train = {group for group, taken in zip(groups, chosen, strict=True) if not taken}
    assert test
    assert train
    assert not test & train
    order = random.Random(seed)
    shuffled = list(groups)
    order.shuffle(shuffled)
    again = choose_test_rows(shuffled, fraction, seed)
    assert {group for group, taken in zip(shuffled, again, strict=True) if taken} == test


def test_another_seed_gives_another_choice() -> None:
    groups = [str(number).encode() for number in range(100)]
    first, second = choose_test_rows(groups, 0.2, 1), choose_test_rows(groups, 0.2, 2)
    assert first.sum() == second.sum() == 20
    assert (first != second).any()
