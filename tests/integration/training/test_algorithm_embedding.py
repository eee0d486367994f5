"""Text embedding on pairs of sentences that say the same thing with other words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from libs.compute.context import EngineError
from services.training.engines.algorithms.embedding import ALGORITHM, info_nce
from services.training.engines.algorithms.interface import Table, Trained
from tests.integration.training.algorithms import (
    Recorder,
    parameters,
    refusal,
    require_cancel,
    require_damage_is_seen,
    require_reports,
    require_reproducible,
    table,
)

_QUICK = parameters(ALGORITHM, buckets=512, width=8, epochs=1, batch_size=8)
# Of each pair, one wording and the other.
_WHO = [
    *("the doctor/a physician", "the lawyer/an attorney", "my boss/the manager", "the kids/some children"),
    *("a cop/the police officer", "the teacher/an instructor", "our neighbour/a man from next door", "她/that woman"),
]
_DID = [
    *("bought/purchased", "sold/got rid of", "fixed/repaired", "looked for/tried to find"),
    *("broke/damaged", "hid/concealed", "borrowed/took on loan", "painted/coloured"),
]
_WHAT = [
    *("the car/an automobile", "a sofa/the couch", "the house/their home", "a bike/the bicycle"),
    *("the phone/a mobile phone", "a boat/the small boat", "the photo/that picture", "电脑/the computer"),
]
_WHEN = ["yesterday/one day ago", "at noon/at midday", "last week/seven days back", "早上/in the morning"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sentences() -> list[dict[str, str]]:
    """All of them in a seeded order; the negative says it about another thing in the words of the anchor."""
    made = []
    for parts in itertools.product(_WHO, _DID, _WHAT, _WHEN):
        plain, other = zip(*(part.split("/") for part in parts), strict=True)
        wrong = [plain[0], plain[1], "the dog", plain[3]]
        made.append({"anchor": " ".join(plain), "positive": " ".join(other), "negative": " ".join(wrong)})
    order = np.random.default_rng(1).permutation(len(made))
    return [made[index] for index in order]


def some(count: int) -> Table:
    return table(sentences()[:count])


@pytest.fixture(scope="module")
def trained() -> tuple[Trained, Recorder]:
    watch = Recorder()
    rows = sentences()
    given = parameters(ALGORITHM, buckets=4096, width=32, epochs=10, batch_size=64)
    return ALGORITHM.train(table(rows[:500]), table(rows[1000:1150]), given, 5, watch), watch


def test_it_finds_the_same_thing_in_other_words(trained: tuple[Trained, Recorder]) -> None:
    results = trained[0].results
    # 1.00 with two seeds.
    assert results["recall_at_1"] > results["baseline.recall_at_1"] + 0.5
    assert results["mrr"] > results["baseline.mrr"] + 0.4
    assert results["baseline.recall_at_1"] > results["baseline.random.recall_at_1"] == 1 / 150
    require_reports(trained[1])


def test_files_give_the_embedder_back(trained: tuple[Trained, Recorder]) -> None:
    embedder = ALGORITHM.load(trained[0].files)
    vectors = np.array(
        embedder.predict(
            ["the doctor bought the car yesterday", "A physician purchased an automobile", "my boss hid a sofa", "全新"]
        )
    )
    assert vectors.shape == (4, 32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    assert embedder.predict([]) == []
    with pytest.raises(EngineError, match="Row 2, column 'input': empty"):
        embedder.predict(["good", " "])
    require_damage_is_seen(ALGORITHM, trained[0].files)


def test_a_column_of_negatives_is_learned_from() -> None:
    rows = some(64)
    given = {**_QUICK, "negative_column": "negative"}
    with_negatives = ALGORITHM.train(rows, None, given, 1, Recorder())
    assert with_negatives.files != ALGORITHM.train(rows, None, _QUICK, 1, Recorder()).files


def test_one_seed_one_model() -> None:
    require_reproducible(ALGORITHM, some(30), _QUICK)


def test_it_can_be_cancelled() -> None:
    require_cancel(ALGORITHM, some(40), _QUICK)


def test_bad_rows_are_named() -> None:
    rows = sentences()[:10]
    bad = {"anchor": "words", "positive": None, "negative": ""}
    assert "Row 11, column 'positive': empty" in refusal(ALGORITHM, table([*rows, bad]), _QUICK)
    assert "same positive" in refusal(ALGORITHM, table([rows[0]] * 20), _QUICK)
    missing = {**_QUICK, "negative_column": "hard"}
    assert "no column 'hard'; they have anchor, positive, negative" in refusal(ALGORITHM, table(rows), missing)


def test_info_nce_of_two_pairs_and_a_negative() -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    candidates = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    same = torch.zeros(2, 3, dtype=torch.bool)
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(1.2) + 1))
    second = -math.log(math.exp(1.6) / (1 + math.exp(1.6) + math.exp(2)))
    assert info_nce(anchors, candidates, same, 0.5).item() == pytest.approx((first + second) / 2)
    same[1, 2] = True
    left_out = -math.log(math.exp(1.6) / (1 + math.exp(1.6)))
    assert info_nce(anchors, candidates, same, 0.5).item() == pytest.approx((first + left_out) / 2)
