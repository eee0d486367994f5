"""The parts of AutoML: columns, folds, families, proposals, the mean; none of them peeps."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn import datasets
from sklearn.neighbors import KNeighborsClassifier

from libs.compute.context import EngineError
from services.training.domain.searches import TrialState
from services.training.engines.algorithms import automl
from services.training.engines.algorithms.features import Features, number_of
from services.training.engines.automl import tables, texts
from services.training.engines.automl.columns import Column, Kind, fit_features, profile, require_some
from services.training.engines.automl.ensemble import Member, losses, mix
from services.training.engines.automl.families import TABLE_FAMILIES, Neighbours
from services.training.engines.automl.folds import folds_of, sample_rows
from services.training.engines.automl.report import Report
from services.training.engines.automl.result_cache import ResultCache
from services.training.engines.automl.tables import Tables
from services.training.engines.automl.task import Answers, Task, deduce
from services.training.engines.automl.texts import TEXT_FAMILIES, Texts
from services.training.engines.automl.trials import Tried, propose
from tests.unit.training.tables import Rows, diabetes, docstrings, wine

FAMILIES = [family.name for family in TABLE_FAMILIES]


def answers_of(rows: Rows, target: str) -> tuple[dict[str, list[Any]], Answers, list[Any]]:
    columns = {name: [row.get(name) for row in rows] for name in rows[0] if name != target}
    used = require_some(profile(columns), target)
    return columns, deduce(target, [row[target] for row in rows], used, "auto"), used


def spoiled(columns: dict[str, list[Any]], asked: np.ndarray) -> dict[str, list[Any]]:
    """The same rows to learn from; the rows that are asked are quite different."""
    strange: Any = {float: 1e6, str: "never seen anywhere else"}
    return {
        name: [
            strange[type(value)] if row in asked and value is not None else value for row, value in enumerate(values)
        ]
        for name, values in columns.items()
    }


def test_features_are_learned_from_the_rows_to_learn_from_alone() -> None:
    """What a model learns does not change with the rows that it is asked; it would if features were fitted to all."""
    rows = [{"n1": 0.0, "colour": "", **row} for row in wine()]
    columns, answers, used = answers_of(rows, "grower")
    learned, asked = np.arange(100), np.arange(100, 178)
    usual = Tables(used, columns, answers).fold(TABLE_FAMILIES[0], {}, 0, learned, asked)
    strange = Tables(used, spoiled(columns, asked), answers).fold(TABLE_FAMILIES[0], {}, 0, learned, asked)
    assert np.array_equal(usual[0], strange[0])
    assert not np.array_equal(usual[1], strange[1])


def test_words_are_learned_from_the_rows_to_learn_from_alone() -> None:
    columns, answers, _ = answers_of(docstrings(("asyncio", "email")), "package")
    learned, asked = np.arange(150), np.arange(150, len(answers.values))
    for family in TEXT_FAMILIES:
        usual = Texts(["text"], columns, answers).fold(family, family.defaults, 0, learned, asked)
        strange = Texts(["text"], spoiled(columns, asked), answers).fold(family, family.defaults, 0, learned, asked)
        assert (usual[0] != strange[0]).nnz == 0
        assert (usual[1] != strange[1]).nnz > 0


def test_models_of_a_sample_are_those_that_all_rows_can_bear() -> None:
    """Neighbours keep all rows in their file: they are not tried on a sample of rows that are too many."""
    columns, answers, used = answers_of(diabetes(), "progress")
    whole = Tables(used, columns, answers)
    whole.families = TABLE_FAMILIES[:2]
    taken = whole.sample(np.arange(100))
    assert taken.families == TABLE_FAMILIES[:2]
    assert len(taken.columns["bmi"]) == len(taken.answers.values) == 100
    many = [{"n": 0.1 * place, "answer": 0.1 * place} for place in range(10)] * 20
    columns, answers, used = answers_of(many, "answer")
    assert "neighbours" in [family.name for family in Tables(used, columns, answers).families]


def test_equal_rows_are_foretold_together_and_classes_are_spread() -> None:
    rows = [{"a": number // 4, "b": "x"} for number in range(200)]
    columns = {name: [row[name] for row in rows] for name in ("a", "b")}
    answers = np.array([number // 4 % 5 == 0 for number in range(200)], np.int64)
    parts = folds_of(columns, answers, 2, 5, 3)
    assert all(len(set(parts[start : start + 4])) == 1 for start in range(0, 200, 4))
    shares = [answers[parts == part].mean() for part in range(5)]
    assert min(shares) == max(shares) == pytest.approx(0.2)
    assert np.array_equal(parts, folds_of(columns, answers, 2, 5, 3))
    numbers = np.arange(200.0)
    spread = folds_of({"n": numbers.tolist()}, numbers, 0, 4, 1)
    assert np.ptp([numbers[spread == part].mean() for part in range(4)]) < 15
    few = sample_rows(answers, 2, 50, 1)
    assert len(few) == 50
    # A class of two rows in ten thousand is not lost.
    rare = np.array([0] * 9_998 + [1] * 2)
    assert set(rare[sample_rows(rare, 2, 100, 1)]) == {0, 1}
    assert answers[few].mean() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("family", TABLE_FAMILIES, ids=FAMILIES)
@pytest.mark.parametrize(("rows", "target"), [(wine(), "grower"), (wine()[:120], "grower"), (diabetes(), "progress")])
def test_the_exported_file_is_what_was_trained(
    family: Any, rows: Rows, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three classes, of two and of numbers; a file that answers otherwise is not published."""
    columns, answers, used = answers_of(rows, target)
    problem = Tables(used, columns, answers)
    member = Member(0, family, {**family.defaults, **({"iterations": 20} if family.name == "boosting" else {})}, 1.0)
    assert "model.onnx" in problem.export([member], 1)
    exact = tables.mean_graph
    monkeypatch.setattr(tables, "mean_graph", lambda parts, weights, width: exact(parts, [0.99], width))
    with pytest.raises(EngineError, match="answers otherwise"):
        problem.export([member], 1)


def test_neighbours_are_those_of_scikit_learn() -> None:
    found: Any = datasets.load_wine()
    rows = ((found.data - found.data.mean(0)) / found.data.std(0)).astype(np.float32)
    ours = Neighbours(7, 3).fit(rows[::2], found.target[::2]).predict_proba(rows[1::2])
    theirs: Any = KNeighborsClassifier(7, weights=lambda distances: 1 / (distances + 0.1))
    assert np.abs(ours - theirs.fit(rows[::2], found.target[::2]).predict_proba(rows[1::2])).max() < 1e-4


def test_columns_are_seen_for_what_they_are() -> None:
    count = 60
    columns: dict[str, list[Any]] = {
        "number": [number * 0.7 % 5 for number in range(count)],
        "row": list(range(1000, 1000 + count)),
        "order": [f"A-{number}" for number in range(count)],
        "colour": ["red", "green", None] * 20,
        "same": ["x"] * count,
        "nothing": [None, ""] * 30,
        "day": [f"2026-01-{number % 28 + 1:02}T10:00:00" for number in range(count)],
        "story": [f"the {number}th customer came and said that all was well" for number in range(count)],
        "town": [f"town {number % 55}" for number in range(count)],
    }
    found = {column.name: column for column in profile(columns)}
    kinds = {name: column.kind for name, column in found.items() if not column.dropped}
    assert kinds == {
        "number": Kind.NUMBER,
        "colour": Kind.CATEGORY,
        "day": Kind.TIME,
        "story": Kind.TEXT,
        "town": Kind.CATEGORY,
    }
    assert "counts the rows" in found["row"].dropped
    assert "another value in every row" in found["order"].dropped
    assert "same value in every row, 'x'" in found["same"].dropped
    assert "no value" in found["nothing"].dropped
    assert found["colour"].missing == pytest.approx(1 / 3, abs=1e-5)
    assert "50 most frequent values of 55" in found["town"].notes[0]
    features = fit_features([column for column in found.values() if not column.dropped], columns)
    inputs = features.encode(columns)
    # A number, two colours and their gap, a time with three circles, 256 of words, 50 towns.
    assert inputs.shape == (count, 1 + 3 + 7 + 256 + 50)
    assert np.isfinite(inputs).all()
    day = next(feature for feature in features.columns if feature.name == "day")
    first, noon = day.encode(["2026-01-05T00:00:00", "2026-01-05T12:00:00"])
    assert first[1:3].tolist() == [0.0, 1.0]
    assert noon[1:3].tolist() == [0.0, -1.0]


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["yes", "no"] * 20, "classification"),
        ([True, False] * 20, "classification"),
        ([0, 1, 2, 3] * 20, "classification"),
        (list(range(40)), "regression"),
        ([0.5, 1.0, 2.0] * 20, "regression"),
        ([3, 4, 5, 6, 7, 8], "regression"),
        (["1,250.5", "3", "0.75"] * 20, "regression"),
        (["0", "1"] * 20, "classification"),
        (["007", "008"] * 20, "classification"),
    ],
)
def test_the_task_is_read_off_the_answers(values: list[Any], task: str) -> None:
    assert deduce("answer", values, profile({"n": [1.0] * len(values)}), "auto").task == task


def test_numbers_and_days_in_texts_are_told() -> None:
    """What a spreadsheet leaves behind: a few words among the numbers, and days as people write them."""
    columns: dict[str, list[Any]] = {
        "price": [f"{number * 37:,}.5" for number in range(97)] + ["n/a", "ask", "n/a"],
        "code": [f"0{number % 40}" for number in range(100)],
        "sold": [f"{number % 28 + 1}/2/2026" for number in range(100)],
    }
    price, code, sold = profile(columns)
    assert (price.kind, price.dropped, price.written) == (Kind.NUMBER, "", True)
    assert price.notes == ["its texts are read as numbers; 3 others count as gaps, 'n/a' among them"]
    assert (price.missing, code.kind, sold.kind) == (0.03, Kind.CATEGORY, Kind.CATEGORY)
    assert sold.notes == ["its days would be read as times if '1/2/2026' were written like 2026-01-31"]
    features = fit_features([price], columns)
    inputs = features.encode({"price": ["1,794.5", "1794.5", 1794.5, "n/a", None]})
    assert inputs[:3].tolist() == [inputs[0].tolist()] * 3
    assert inputs[3:, 1].tolist() == [1.0, 1.0]
    assert Features.from_json(json.loads(json.dumps(features.to_json()))) == features


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12.0), (" -1,234.5 ", -1234.5), (".5", 0.5), ("1e3", 1000.0), ("0", 0.0), ("3.", 3.0), (True, None)]
    + [(text, None) for text in ("007", "1,23", "inf", "nan", "1_000", "", ".", "-", "1e999", "12 kg", "٣", None)],
)
def test_texts_that_are_numbers(text: Any, number: float | None) -> None:
    assert number_of(text) == number


def test_the_mean_of_unlike_models_is_found() -> None:
    """Two models, each right where the other errs: the mean is better than both (Caruana et al., 2004)."""
    right = np.array([0, 1] * 50)
    sure = np.where(np.arange(100)[:, None] < 50, 0.95, 0.4)
    one = np.where(np.eye(2)[right] > 0, sure, 1 - sure)
    other = np.where(np.eye(2)[right] > 0, sure[::-1], 1 - sure[::-1])
    useless = np.full((100, 2), 0.5)
    weights = mix({4: one, 2: other, 9: useless}, right, dict.fromkeys((4, 2, 9), 1.0), 60.0)
    assert set(weights) == {4, 2}
    assert sum(weights.values()) == pytest.approx(1)
    mixed = sum(weight * {4: one, 2: other}[trial] for trial, weight in weights.items())
    assert losses(np.asarray(mixed), right).mean() < losses(one, right).mean()


@pytest.mark.parametrize(
    ("seconds", "left", "chosen"),
    [
        ({4: 1.0, 2: 1.0}, 2.0, {4, 2}),
        # There is time for one of them: the best.
        ({4: 1.0, 2: 1.0}, 1.5, {4}),
        ({4: 3.0, 2: 1.0}, 2.0, {2}),
        # There is time for none: the quickest.
        ({4: 3.0, 2: 1.0}, 0.0, {2}),
    ],
)
def test_the_mean_has_models_that_there_is_time_for(seconds: Any, left: float, chosen: set[int]) -> None:
    right = np.array([0, 1] * 50)
    sure = np.where(np.arange(100)[:, None] < 50, 0.95, 0.4)
    one = np.where(np.eye(2)[right] > 0, sure, 1 - sure)
    other = np.where(np.eye(2)[right] > 0, sure[::-1], 1 - sure[::-1])
    assert set(mix({4: one, 2: other}, right, seconds, left)) == chosen


def test_the_last_rows_are_those_that_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, answers, used = answers_of(diabetes(), "progress")
    whole = Tables(used, columns, answers)
    few = whole.sample(np.arange(100))
    said: list[str] = []
    watch: Any = SimpleNamespace(log=said.append)

    def rows(times: float) -> int:
        report = Report("progress", used, answers, [])
        last = automl._last(whole, few, times, 1, watch, report)
        assert bool(report.warnings) == (len(last.answers.values) < 442)
        return len(last.answers.values)

    assert [rows(times) for times in (0.0, 1.0, 2.5, 4.5, 100.0)] == [100, 100, 250, 442, 442]
    assert said[0] == "the models learned from 100 of 442 rows: there was no room or time for more"
    # Nor more than there is room for: ten inputs a row.
    monkeypatch.setattr(tables, "_MOST_INPUTS", 3_000)
    whole = Tables(used, columns, answers)
    assert (rows(100.0), whole.search_rows) == (300, 300)


def test_neighbours_are_looked_for_where_there_is_room_for_their_inputs() -> None:
    """A column of texts is one column, and 256 inputs: what is counted is inputs, and rows by themselves."""
    count = 15_000
    number = Column("n", Kind.NUMBER, 0.0, count)
    text = Column("t", Kind.TEXT, 0.0, count)

    def names(rows: int, *used: Column) -> list[str]:
        columns = {column.name: [0.0] * rows for column in used}
        answers = Answers(Task.REGRESSION, "", [], np.zeros(rows))
        return [family.name for family in Tables(used, columns, answers).families]

    assert "neighbours" in names(count, number)
    assert "neighbours" in names(count, text)
    assert "neighbours" not in names(20_000, text)
    assert "neighbours" not in names(20_001, number)


def test_columns_become_as_many_inputs_as_they_say() -> None:
    columns: dict[str, list[Any]] = {
        "number": [0.5, 1.5, None, 2.5],
        "colour": ["red", "green", None, "red"],
        "day": [f"2026-01-0{number}" for number in range(1, 5)],
        "story": ["the first customer came at noon and said little"] * 3 + ["the last one left as late as that"],
        "price": ["1,234.5", "7", "-0.5", "12"],
    }
    for column in profile(columns):
        assert fit_features([column], columns).encode(columns).shape[1] <= column.inputs <= 256
    assert sum(column.inputs for column in profile(columns)) < 280


def test_what_is_kept_is_bounded() -> None:
    kept, made = ResultCache(1_000), list[int]()

    def make(number: int) -> np.ndarray:
        made.append(number)
        return np.zeros(50)

    for number in (0, 1, 0, 2, 0, 1):
        kept.get(number, partial(make, number))
        assert kept.size <= 1_000
    # Two have room: 1 was asked for longest ago when 2 came.
    assert made == [0, 1, 2, 1]
    assert kept.get("large", lambda: np.zeros(1_000)).size == 1_000


def test_terms_of_many_texts_are_those_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, answers, _ = answers_of(docstrings(("asyncio", "email")), "package")
    monkeypatch.setattr(texts, "_COUNTED_CHARACTERS", 10_000)
    problem = Texts(["text"], columns, answers)
    counted: list[int] = []
    fit_transform = texts.CountVectorizer.fit_transform

    def counting(counter: Any, given: Any) -> Any:
        counted.append(sum(map(len, given)))
        return fit_transform(counter, given)

    monkeypatch.setattr(texts.CountVectorizer, "fit_transform", counting)
    family = TEXT_FAMILIES[0]
    files = problem.export([Member(0, family, family.defaults, 1.0)], 1)
    assert len(counted) == 1
    assert counted[0] < 12_000 < sum(map(len, columns["text"]))
    assert problem.search_rows < len(answers.values) / 2
    assert texts.TextPredictor(files).outputs(["Run the event loop."]).shape == (1, 2)


def test_proposals_learn_which_family_is_good() -> None:
    """Forests do well here: of the next proposals most are forests, and the same seed gives the same ones."""
    tried: list[Tried] = []
    while len(tried) < 30:
        family, point = propose(TABLE_FAMILIES, tried, 5)
        assert (family, point) == propose(TABLE_FAMILIES, tried, 5)
        score = 0.1 + abs(float(point["share"]) - 0.7) if family.name == "random-forest" else 2.0
        tried.append(Tried(len(tried), family.name, point, TrialState.FINISHED, [score], score))
    later = [each.family for each in tried[10:]]
    # By chance it would be a sixth.
    assert later.count("random-forest") > len(later) / 3
    best = min(tried, key=lambda each: each.score)
    assert abs(float(best.parameters["share"]) - 0.7) < 0.2
