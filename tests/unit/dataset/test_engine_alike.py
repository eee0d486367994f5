"""Near-duplicates: hashes mean what they should, nothing alike is missed, the answer does not depend on shards."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataset.engines.alike import Alike, Shingles, find_leaks, find_repeats
from services.dataset.engines.minhash import (
    RECALL,
    band_hashes,
    buckets,
    choose_banding,
    jaccard,
    set_hashes,
)
from services.dataset.engines.shingles import shingle_hashes, shingle_sets

WORDS = [f"{first}{second}" for first in ("ba", "ke", "lo", "mi", "nu") for second in ("rat", "sel", "tin", "vom")]


def shingles_of(text: str) -> set[tuple[str, ...]]:
    """The definition, in plain Python."""
    found = re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", text.casefold())
    return {tuple(found[at : at + 5]) for at in range(max(1, len(found) - 4))} if found else set()


def similarity(one: str, other: str) -> float:
    first, second = shingles_of(one), shingles_of(other)
    return len(first & second) / len(first | second) if first or second else 0.0


def changed(text: str, share: float, seed: int) -> str:
    """The text with a share of its words replaced."""
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) if chance.random() < share else word for word in text.split())


def one_word_off(text: str) -> str:
    """The text with one word in its middle changed: five shingles of 76, similarity 0.88."""
    found = text.split()
    return " ".join([*found[:40], "changed", *found[41:]])


def sample(seed: int, length: int = 80) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.sampled_from("aAbB12 ,.\n_世界é—"), max_size=60), max_size=8))
def test_hashes_stand_for_shingles(texts: list[str]) -> None:
    sets = shingle_sets(texts)
    assert [len(found) for found in sets] == [len(shingles_of(text)) for text in texts]
    assert all((np.diff(found.astype(object)) > 0).all() for found in sets)
    for one in range(len(texts)):
        for other in range(one):
            assert jaccard(sets[one], sets[other]) == similarity(texts[one], texts[other])


def test_a_signature_does_not_mind_repeats_and_neighbours() -> None:
    texts = ["", *(sample(seed, length) for seed, length in enumerate((3, 400, 0, 5, 1, 300, 7)))]
    banding = choose_banding(0.5)
    together = band_hashes(*shingle_hashes(texts), banding)
    for at, text in enumerate(texts):
        (found,) = shingle_sets([text])
        alone = band_hashes(found, np.array([0, len(found)]), banding)
        assert (together[:, at] == alone[:, 0]).all()
        assert together[:, at].any() == bool(text)


def test_hashes_do_not_depend_on_the_batch() -> None:
    texts = [sample(seed, length) for seed, length in enumerate((0, 1, 4, 5, 6, 300, 90_000, 3))]
    hashes, offsets = shingle_hashes(texts)
    for at, text in enumerate(texts):
        assert (shingle_hashes([text])[0] == hashes[offsets[at] : offsets[at + 1]]).all()


def test_signatures_agree_as_often_as_sets_are_alike() -> None:
    texts = [sample(1, 400), changed(sample(1, 400), 0.03, 2)]
    hashes, offsets = shingle_hashes(texts)
    banding = choose_banding(0.01)
    assert banding.rows == 1
    bands = band_hashes(hashes, offsets, banding)
    ours = float((bands[:, 0] == bands[:, 1]).mean())
    assert abs(ours - similarity(*texts)) < 0.15


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_banding_promises_its_recall(threshold: float) -> None:
    banding = choose_banding(threshold)
    assert banding.recall(threshold) >= RECALL
    assert banding.bands * banding.rows <= 128


def test_measured_recall_is_the_promised_one() -> None:
    threshold = 0.8
    pairs = [(sample(seed), changed(sample(seed), 0.02, seed)) for seed in range(1500)]
    alike = [pair for pair in pairs if similarity(*pair) >= threshold]
    assert len(alike) > 300
    hashes, offsets = shingle_hashes([text for pair in alike for text in pair])
    bands = band_hashes(hashes, offsets, choose_banding(threshold))
    found = (bands[:, 0::2] == bands[:, 1::2]).any(axis=0)
    assert found.mean() >= 0.99


def test_buckets() -> None:
    groups = buckets(np.array([7, 3, 7, 9, 3, 7], np.uint64))
    assert [group.tolist() for group in groups] == [[0, 2, 5], [1, 4]]
    assert buckets(np.zeros(0, np.uint64)) == []


def search(texts: list[str], threshold: float, shards: int = 1) -> list[Alike]:
    """`find_repeats` with hashes computed in so many shards."""
    size = -(-len(texts) // shards)
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    sets, bands = [], []
    for part in parts:
        hashes, offsets = shingle_hashes(part)
        sets.append(set_hashes(hashes, offsets))
        bands.append(band_hashes(hashes, offsets, choose_banding(threshold)))
    chosen = np.concatenate(sets), np.concatenate(bands, axis=1)
    return find_repeats(*chosen, threshold, lambda rows: [texts[row] for row in rows])


def components(texts: list[str], threshold: float) -> dict[int, int]:
    """Row to the first row of its group, by comparing all with all."""
    first = list(range(len(texts)))
    for one in range(len(texts)):
        for other in range(one):
            if first[one] != first[other] and similarity(texts[one], texts[other]) >= threshold:
                low, high = sorted((first[one], first[other]))
                first = [low if root == high else root for root in first]
    return dict(enumerate(first))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.0, 0.01, 0.02, 0.05]), st.integers(0, 4)), max_size=30))
def test_of_every_group_the_first_stays(plan: list[tuple[int, float, int]]) -> None:
    texts = [changed(sample(seed), share, variant) for seed, share, variant in plan]
    expected = {row: root for row, root in components(texts, 0.8).items() if row != root}
    if texts:
        assert {alike.row: alike.other for alike in search(texts, 0.8)} == expected


def test_the_number_of_shards_changes_nothing() -> None:
    texts = [changed(sample(number % 40), 0.02, number) for number in range(300)]
    assert search(texts, 0.8, 1) == search(texts, 0.8, 7)
    assert len(search(texts, 0.8)) > 100


def test_texts_without_words_are_never_alike() -> None:
    assert search(["...", "---", "...", ""], 0.5) == []


def test_a_template_with_many_fillings_is_not_compared_all_with_all() -> None:
    body = sample(1, 60)
    texts = [f"{body} {sample(number + 10, 40)}" for number in range(3000)]
    assert len(search(texts, 0.3)) > 2900


def test_leaks_are_found_and_named() -> None:
    texts = [sample(1), sample(2), one_word_off(sample(1)), sample(3), sample(2), "!!!"]
    hashes, offsets = shingle_hashes(texts)
    is_test = np.array([True, True, False, False, False, False])
    bands = band_hashes(hashes, offsets, choose_banding(0.8))
    leaks = find_leaks(set_hashes(hashes, offsets), bands, is_test, 0.8, lambda rows: [texts[row] for row in rows])
    assert [(leak.row, leak.other) for leak in leaks] == [(2, 0), (4, 1)]
    assert leaks[0].similarity == similarity(texts[2], texts[0])


def leaks_of(texts: list[str], is_test: np.ndarray, threshold: float, **options: Any) -> list[Alike]:
    hashes, offsets = shingle_hashes(texts)
    bands = band_hashes(hashes, offsets, choose_banding(threshold))
    sets = set_hashes(hashes, offsets)
    return find_leaks(sets, bands, is_test, threshold, lambda rows: [texts[row] for row in rows], **options)


def test_templated_texts_are_not_compared_with_every_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 300 texts shares buckets with 3,000 references that it is not like; 50 leaks are planted among them."""
    body = sample(1, 150)
    references = [f"{body} {sample(number + 10, 30)}" for number in range(3000)]
    planted = [one_word_off(references[60 * number]) for number in range(50)]
    texts = [*references, *(f"{body} {sample(number + 10_000, 30)}" for number in range(250)), *planted]
    compared = 0

    def counted(self: Shingles, one: int, other: int) -> float:
        nonlocal compared
        compared += 1
        return jaccard(self._sets[one], self._sets[other])

    monkeypatch.setattr(Shingles, "similarity", counted)
    leaks = leaks_of(texts, np.arange(len(texts)) < len(references), 0.8)
    assert [(leak.row, leak.other) for leak in leaks] == [(3250 + number, 60 * number) for number in range(50)]
    # 754,155 without a bound, 56,411 with it.
    assert compared < 100_000


def test_a_search_for_leaks_ends_between_two_texts() -> None:
    """All texts are in one bucket: whoever cancels does not wait for its end."""
    texts = [f"{sample(1, 200)} {sample(number + 10, 3)}" for number in range(200)]
    told: list[float] = []

    def progress(share: float) -> None:
        told.append(share)
        if share > 0.5:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        leaks_of(texts, np.arange(len(texts)) < 100, 0.999, progress=progress)
    assert told[-1] < 0.52
