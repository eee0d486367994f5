"""Leakage: planted leaks are found and named, others are not, and shards change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from libs.common.blobs import BlobStore
from libs.compute.context import EngineCancelled, EngineError, LocalContext
from libs.compute.versions import load_index
from services.dataset.engines import leakage
from services.dataset.engines.access import StoreBlobs
from tests.unit.dataset.test_engine_alike import changed, one_word_off, sample, similarity
from tests.unit.dataset.test_engine_tasks import version_of


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}")


def spec_of(store: BlobStore, test: list[Any], train: list[Any], **spec: Any) -> dict[str, Any]:
    manifests = {
        side: version_of(store, [{column: text} for text in texts])
        for side, texts, column in (("test", test, "text"), ("train", train, spec.get("train_text_column", "text")))
    }
    defaults = {"text_column": "text", "train_text_column": "text", "near_duplicate_threshold": 0.8}
    return {"test_grant": "", "train_grant": "", **manifests, **defaults, **spec}


def check(store: BlobStore, test: list[Any], train: list[Any], **spec: Any) -> dict[str, Any]:
    context = LocalContext(spec_of(store, test, train, **spec), blobs_write=store, blobs_read=store)
    return leakage.run(context)["leakage"]


def test_planted_leaks_are_counted_and_shown_as_pairs(store: BlobStore) -> None:
    train = [sample(number) for number in range(60)]
    test = [f"  {train[7]}\n", one_word_off(train[9]), sample(100), "", "!!", train[11].upper()]
    spec = spec_of(store, test, [*train, "!!", ""])
    found = leakage.run(LocalContext(spec, blobs_write=store, blobs_read=store))["leakage"]
    assert (found["test_rows"], found["train_rows"]) == (6, 62)
    assert (found["exact_rows"], found["near_rows"], found["leaked_share"]) == (2, 2, 4 / 6)
    ids = {
        side: load_index(store.load_manifest_sync(spec[side]), StoreBlobs(None, store)) for side in ("test", "train")
    }
    pairs = [(ids["test"].id_of(at), ids["train"].id_of(other)) for at, other in ((0, 7), (1, 9), (4, 60), (5, 11))]
    assert [(pair["test_row_id"], pair["train_row_id"]) for pair in found["examples"]] == pairs
    assert [pair["similarity"] for pair in found["examples"]] == [1.0, similarity(test[1], train[9]), 1.0, 1.0]
    assert found["examples"][1]["test_text"] == test[1][: len(found["examples"][1]["test_text"])]
    assert found["near_duplicates"]["threshold"] == 0.8


def test_versions_without_a_common_row_do_not_leak(store: BlobStore) -> None:
    found = check(store, [sample(number) for number in range(100, 160)], [sample(number) for number in range(80)])
    assert (found["exact_rows"], found["near_rows"], found["leaked_share"], found["examples"]) == (0, 0, 0.0, [])
    near = found["near_duplicates"]
    assert near["found_pairs"] >= 0.98 * near["planted_pairs"] > 20


def test_pairs_are_told_by_the_threshold_and_nothing_else(store: BlobStore) -> None:
    train = [sample(number) for number in range(40)]
    test = [changed(text, 0.04, number) for number, text in enumerate(train)]
    for threshold in (0.5, 0.7, 0.9):
        alike = [max(similarity(text, other) for other in train) >= threshold for text in test]
        found = check(store, test, train, near_duplicate_threshold=threshold)
        assert found["exact_rows"] + found["near_rows"] == sum(alike), threshold
        assert 0 < sum(alike) < 41


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_shards_change_nothing(store: BlobStore, monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    train = [changed(sample(number % 30), 0.02, number) for number in range(120)]
    test = [changed(sample(number), 0.01, number) for number in range(15, 55)]
    whole = check(store, test, train)
    monkeypatch.setattr(leakage, "SHARD_ROWS", -(-len(train) // shards))
    parts = check(store, test, train)
    for found in (whole, parts):
        found.pop("seconds")
    assert parts == whole
    assert 10 < whole["exact_rows"] + whole["near_rows"] <= 15


def test_columns_may_have_different_names(store: BlobStore) -> None:
    assert check(store, [sample(1)], [sample(1)], train_text_column="body")["leaked_share"] == 1.0


@pytest.mark.parametrize(("test", "train", "side"), [([""], ["a"], "test"), (["a"], [" "], "training")])
def test_a_side_without_text_is_no_clean_bill(store: BlobStore, test: list[str], train: list[str], side: str) -> None:
    with pytest.raises(EngineError, match=f"no row of the {side} version has text"):
        check(store, test, train)


def test_a_number_and_the_text_of_it_are_the_same(store: BlobStore) -> None:
    """A column of CSV is numbers, or texts because of a single cell of its file."""
    numbers, texts = [1.5, 3, 4.25, 1e-7], ["1.50", "n/a", "3.0", "0.0000001", "04.25"]
    assert check(store, numbers, texts)["exact_rows"] == 3
    assert check(store, texts, numbers)["exact_rows"] == 3


def test_it_hears_a_cancel(store: BlobStore) -> None:
    spec = spec_of(store, ["a"], ["a"])
    with pytest.raises(EngineCancelled):
        leakage.run(LocalContext(spec, blobs_write=store, blobs_read=store, cancel_when=lambda _: True))
