"""Chinese in both scripts: the same text is found, other texts are not taken for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.blobs import BlobStore
from services.dataset.domain.recipes import read_recipe
from services.dataset.engines import chinese, cleaning
from services.dataset.engines.chinese import fold_script, to_simplified
from services.dataset.engines.recipe import Recipe
from services.dataset.engines.rules import comparable
from tests.unit.dataset.test_engine_alike import search
from tests.unit.dataset.test_engine_leakage import check
from tests.unit.dataset.test_engine_tasks import recipe, run, texts_of, version_of

# Articles 1 to 6 and 26 (1) of the Universal Declaration of Human Rights, as the United Nations publish them.
SIMPLIFIED = [
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "人人有权享有生命、自由和人身安全。",
    "任何人不得使为奴隶或奴役；一切形式的奴隶制度和奴隶买卖，均应予以禁止。",
    "任何人不得加以酷刑，或施以残忍的、不人道的或侮辱性的待遇或刑罚。",
    "人人在任何地方有权被承认在法律前的人格。",
    "人人都有受教育的权利，教育应当免费，至少在初级和基本阶段应如此。初级教育应属义务性质。",
]
TRADITIONAL = [
    "人人生而自由，在尊嚴和權利上一律平等。他們賦有理性和良心，並應以兄弟關係的精神相對待。",
    "人人有權享有生命、自由和人身安全。",
    "任何人不得使為奴隸或奴役；一切形式的奴隸制度和奴隸買賣，均應予以禁止。",
    "任何人不得加以酷刑，或施以殘忍的、不人道的或侮辱性的待遇或刑罰。",
    "人人在任何地方有權被承認在法律前的人格。",
    "人人都有受教育的權利，教育應當免費，至少在初級和基本階段應如此。初級教育應屬義務性質。",
]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}")


@pytest.mark.parametrize(("simplified", "traditional"), list(zip(SIMPLIFIED, TRADITIONAL, strict=True)))
def test_both_scripts_have_one_key(simplified: str, traditional: str) -> None:
    assert simplified != traditional
    assert fold_script(traditional) == simplified == fold_script(simplified) == to_simplified(traditional)
    assert comparable(f" {traditional}\n") == comparable(simplified)


def test_words_are_rewritten_as_words() -> None:
    # The sky is written as it is in both scripts; what is dry has another character.
    assert to_simplified("乾坤朗朗，衣服乾了。") == "乾坤朗朗，衣服干了。"
    # A key knows characters only, and so is the same whatever stands around them.
    assert fold_script("乾坤朗朗，衣服乾了。") == "干坤朗朗，衣服干了。"


def test_other_texts_stay_as_they_are() -> None:
    for text in ("", "Ünïcödé — “text”", "ひらがな", "한국어", "\ud800 lone", "emoji 🙂"):
        assert fold_script(text) == to_simplified(text) == text
    assert to_simplified("後\ud800後\x00") == "后\ud800后\x00"


@given(st.text(max_size=80))
def test_a_key_has_as_many_characters_and_is_its_own_key(text: str) -> None:
    folded = fold_script(text)
    assert len(folded) == len(text)
    assert fold_script(folded) == folded


def test_the_table_is_done_at_once() -> None:
    table = chinese._table()
    assert (table[table] == table).all()
    assert 2500 < np.count_nonzero(table != np.arange(len(table))) < 6000


def test_exact_duplicates_are_found_across_scripts(store: BlobStore) -> None:
    rows = [{"text": text} for text in (*SIMPLIFIED, *TRADITIONAL, "只有这一句。")]
    result, _ = run(cleaning, store, version_of(store, rows), recipe=recipe("exact_duplicates"))
    # The rows that stay are as they were.
    assert texts_of(store, result["manifest_digest"]) == [*SIMPLIFIED, "只有这一句。"]


def test_near_duplicates_are_found_across_scripts_and_no_others() -> None:
    long = ["".join(SIMPLIFIED[at:] + SIMPLIFIED[:at]) for at in range(2)]
    other_ending = "".join(TRADITIONAL)[:-6] + "都要遵守。"
    texts = [*SIMPLIFIED, *TRADITIONAL, long[0], other_ending]
    found = {(alike.row, alike.other) for alike in search(texts, 0.8)}
    assert found == {(at + len(SIMPLIFIED), at) for at in range(len(SIMPLIFIED))} | {(13, 12)}


def test_leaks_are_found_across_scripts(store: BlobStore) -> None:
    found = check(store, [*TRADITIONAL, "只有這一句在測試裡。"], [*SIMPLIFIED, "别的句子不在测试里。"])
    assert (found["exact_rows"], found["near_rows"], found["test_rows"]) == (len(SIMPLIFIED), 0, 7)


def test_the_operator_rewrites_and_reports_it() -> None:
    done = Recipe.compile(read_recipe({"steps": ["to_simplified"]}).to_json()).apply([TRADITIONAL[0], SIMPLIFIED[1]])
    assert (done.texts, done.changes) == (SIMPLIFIED[:2], {0: ["to_simplified"]})


def test_filters_of_pages_know_both_scripts() -> None:
    steps = [{"c4_quality": {"min_sentences": 1, "min_words_per_line": 2}}]
    judge = Recipe.compile(read_recipe({"language": "zh", "steps": steps}).to_json())
    for notice in ("本站的隐私政策已经更新。", "本站的隱私政策已經更新。"):
        assert judge.apply([f"今天天气很好。\n{notice}"]).texts == ["今天天气很好。"]
