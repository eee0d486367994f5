"""Chinese word segmentation. No text with marked words is at hand, so a small grammar over real words makes it, with
names of people that no list has, and words that a list of words takes for others (研究 生命, 研究生)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from libs.compute.context import EngineError
from services.training.engines.algorithms.interface import Table, Trained
from services.training.engines.algorithms.segmentation import ALGORITHM
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

_QUICK = parameters(ALGORITHM, channels=8, epochs=1, batch_size=8)
_SURNAMES = "王李张刘陈杨赵黄周吴徐孙"
_GIVEN = "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超霞平刚英华文玲辉红波宁"
_TIMES = ["今天", "昨天", "去年", "今年", "上午", "下午", "三月", "星期一", "当时", "最近"]
_PLACES = [
    "北京",
    "上海",
    "广州",
    "南京",
    "武汉",
    "成都",
    "大学",
    "中国",
    "医院",
    "公司",
    "图书馆",
    "实验室",
    "火车站",
    "北京大学",
]
_PEOPLE = ["研究生", "大学生", "学生", "教授", "工人", "中国人", "科学家", "生物学家"]
_VERBS = ["研究", "讨论", "学习", "发现", "介绍", "发展", "了解", "关心", "重视"]
_THINGS = [
    "生命",
    "生物",
    "生活",
    "科学",
    "问题",
    "历史",
    "文化",
    "技术",
    "人民",
    "经济",
    "语言",
    "方法",
    "国家",
    "学问",
    "家庭",
    "发展",
    "化学",
]
_NUMBERS = "一二三四五六七八九"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sentence(random: np.random.Generator) -> list[str]:
    """The words of a sentence."""

    def one(words: str | list[str]) -> str:
        return str(random.choice(list(words)))

    def who() -> list[str]:
        if random.random() < 0.5:
            return [one(_SURNAMES) + "".join(one(_GIVEN) for _ in range(random.integers(1, 3)))]
        return [one(_PEOPLE)]

    words = [one(_TIMES)] if random.random() < 0.6 else []
    words += who()
    if random.random() < 0.3:
        words += ["和", *who()]
    if random.random() < 0.6:
        words += ["在", one(_PLACES)]
    words += [one(_VERBS), *(["了"] if random.random() < 0.3 else [])]
    if random.random() < 0.3:
        words += [one(_NUMBERS) + one("十百千"), "个"]
    words += [one(_THINGS), *(["的", one(_THINGS)] if random.random() < 0.5 else [])]
    return [*words, "。"]


def sentences(count: int, seed: int) -> Table:
    random = np.random.default_rng(seed)
    return table([{"text": " ".join(sentence(random))} for _ in range(count)])


@pytest.fixture(scope="module")
def trained() -> tuple[Trained, Recorder]:
    watch = Recorder()
    given = parameters(ALGORITHM, channels=48, epochs=10, batch_size=32)
    return ALGORITHM.train(sentences(600, 1), sentences(200, 2), given, 5, watch), watch


def test_it_finds_words_that_longest_match_does_not(trained: tuple[Trained, Recorder]) -> None:
    results = trained[0].results
    assert results["unknown_words"] > 0.05
    # 1.00 with two seeds; longest match has 0.90.
    assert results["f1"] > results["baseline.f1"] + 0.08
    assert results["baseline.f1"] > results["baseline.single_characters.f1"] + 0.2
    require_reports(trained[1])


def test_files_give_the_segmenter_back(trained: tuple[Trained, Recorder]) -> None:
    segmenter = ALGORITHM.load(trained[0].files)
    found = segmenter.predict(["今天 王芳在大学研究生命科学的历史。", "研究生在大学讨论生物问题。", "", "鑫"])
    assert found[0][:7] == ["今天", "王芳", "在", "大学", "研究", "生命", "科学"]
    assert found[1][0] == "研究生"
    assert found[2:] == [[], ["鑫"]]
    long = "研究生在大学讨论生物问题。" * 60
    assert "".join(segmenter.predict([long])[0]) == long
    assert segmenter.predict([]) == []
    with pytest.raises(EngineError, match="Row 2, column 'input': not a text"):
        segmenter.predict(["好", 3])
    require_damage_is_seen(ALGORITHM, trained[0].files)


def test_lists_of_words_are_read_as_texts_with_spaces_are() -> None:
    random = np.random.default_rng(6)
    words = [sentence(random) for _ in range(20)]
    lists, texts = table([{"text": one} for one in words]), table([{"text": " ".join(one)} for one in words])
    assert ALGORITHM.train(lists, None, _QUICK, 1, Recorder()) == ALGORITHM.train(texts, None, _QUICK, 1, Recorder())


def test_one_seed_one_model() -> None:
    require_reproducible(ALGORITHM, sentences(30, 4), _QUICK)


def test_it_can_be_cancelled() -> None:
    require_cancel(ALGORITHM, sentences(40, 4), _QUICK)


def test_bad_rows_are_named() -> None:
    rows = [{"text": "今天 研究 生命"}] * 10
    assert "Row 11, column 'text': empty" in refusal(ALGORITHM, table([*rows, {"text": "  "}]), _QUICK)
    assert "Row 11, column 'text': empty" in refusal(ALGORITHM, table([*rows, {"text": None}]), _QUICK)
    lists = [{"text": ["今天", "研究"]}] * 10
    assert "with an empty word" in refusal(ALGORITHM, table([*lists, {"text": ["好", ""]}]), _QUICK)
    assert "neither a text nor a list" in refusal(ALGORITHM, table([{"text": 3}] * 10), _QUICK)
    assert "no column 'words'" in refusal(ALGORITHM, table(rows), {**_QUICK, "words_column": "words"})
