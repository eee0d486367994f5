"""Statistics of human work: published examples, definitions in plain Python, planted truths, bad input.

tests/integration/dataset/test_agreement_references.py compares them with scikit-learn and statsmodels.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataset.domain.forms import MAX_BOXES
from services.dataset.engines import intervals, pairs
from services.dataset.engines.agreement import summarise
from services.dataset.engines.annotators import seconds_outliers
from services.dataset.engines.answers import Field, read_value
from services.dataset.engines.boxes import iou, match
from services.dataset.engines.coefficients import cohen_kappa, interval_alpha, nominal_alpha, ordinal_alpha
from services.dataset.engines.edit_similarity import edit_distance
from services.dataset.engines.intervals import estimate, mean
from services.dataset.engines.reliability import Reliability, dawid_skene

Json = dict[str, Any]

CHOICE: Json = {"name": "f", "kind": "choice", "choices": ["a", "b", "c"]}
CHOICES: Json = {"name": "f", "kind": "choices", "choices": ["a", "b", "c"]}
RATING: Json = {"name": "f", "kind": "rating", "min": 1, "max": 5}
TEXT: Json = {"name": "f", "kind": "text"}
BOXES: Json = {"name": "f", "kind": "boxes"}

# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
OBSERVERS: list[list[int | None]] = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def answer(item: object, worker: object, value: object, **more: object) -> Json:
    return {"item": str(item), "worker": str(worker), "answer": {"f": value}, "right": None, "seconds": None, **more}


def table(rows: Sequence[Sequence[Any]]) -> list[Json]:
    """Answers from a table with a row a worker and a column an item."""
    return [answer(item, worker, value) for worker, row in enumerate(rows) for item, value in enumerate(row)]


def figures(field: Json, answers: list[Json]) -> dict[str, Json]:
    """The measures of the only field by name, with their level where one name comes twice."""
    measures = summarise([field], answers)["fields"][0]["measures"]
    names = Counter(measure["measure"] for measure in measures)
    return {
        measure["measure"] if names[measure["measure"]] == 1 else measure.get("choice", measure["level"]): measure
        for measure in measures
    }


def boxes(*given: tuple[str, float, float, float, float]) -> list[Json]:
    return [{"label": label, "box": list(box)} for label, *box in given]


def everything() -> tuple[list[Json], list[Json]]:
    """A form with each kind of field, and answers of four workers to thirty items."""
    rng = np.random.default_rng(7)
    form = [field | {"name": field["kind"]} for field in (CHOICE, CHOICES, RATING, TEXT, BOXES)]
    form.append({"name": "preference", "kind": "preference", "choices": ["left", "right", "tie"]})
    answers: list[Json] = []
    for item, worker in itertools.product(range(30), range(4)):
        if rng.random() < 0.2:
            continue
        noisy = (item + (rng.random() < 0.3)) % 3
        value = {
            "choice": "abc"[noisy],
            "choices": list("abc"[: noisy + 1]),
            "rating": int(noisy + 1),
            "text": ["the lamp is lit", "The  lamp is LIT", "no lamp"][noisy],
            "boxes": boxes(("a", item, 0, 10 + noisy, 10), ("b", 50, 50, 5, 5 + noisy)),
            "preference": ["left", "right", "tie"][noisy],
        }
        right = bool(rng.random() < 0.8) if item % 2 else None
        seconds = float(rng.lognormal(3))
        answers.append(
            {"item": f"i{item}", "worker": f"w{worker}", "answer": value, "right": right, "seconds": seconds}
        )
    return form, answers


# Published examples


def test_alphas_of_krippendorffs_example() -> None:
    named = [[value if value is None else "abcde"[value - 1] for value in row] for row in OBSERVERS]
    found = figures(CHOICE | {"choices": list("abcde")}, table(named))
    # Only eight units have the answers of all four.
    assert found["fleiss_kappa"]["items"] == 8
    nominal = found["krippendorff_alpha"]
    assert (round(nominal["value"], 3), nominal["level"], nominal["items"]) == (0.743, "nominal", 11)
    found = figures(RATING, table(OBSERVERS))
    assert round(found["ordinal"]["value"], 3) == 0.815
    assert round(found["interval"]["value"], 3) == 0.849
    assert found["interval"]["low"] < 0.849 < found["interval"]["high"] <= 1


def test_kappa_of_fourteen_raters_and_ten_subjects() -> None:
    # The worked example of Wikipedia's article on Fleiss' kappa.
    counts = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    answers = [
        answer(item, worker, value)
        for item, row in enumerate(counts)
        for worker, value in enumerate("".join(c * n for c, n in zip("abcde", row, strict=True)))
    ]
    found = figures(CHOICE | {"choices": list("abcde")}, answers)
    assert round(found["fleiss_kappa"]["value"], 3) == 0.210
    assert round(found["raw_agreement"]["value"], 3) == 0.378


def test_kappa_of_two_by_two_grant_proposals() -> None:
    # The worked example of Wikipedia's article on Cohen's kappa: observed 0.7, by chance 0.5.
    cells = {("a", "a"): 20, ("a", "b"): 5, ("b", "a"): 10, ("b", "b"): 15}
    one, other = zip(*(pair for pair, count in cells.items() for _ in range(count)), strict=True)
    pair = summarise([CHOICE], table([one, other]))["fields"][0]["pairs"][0]
    assert (pair["workers"], pair["measure"], pair["items"]) == (["0", "1"], "cohen_kappa", 50)
    assert pair["value"] == pytest.approx(0.4)
    # The asymptotic interval there is wide, too: Fleiss, Cohen and Everitt (1969) give a standard error of 0.127.
    assert (pair["low"], pair["high"]) == (pytest.approx(0.4 - 1.96 * 0.127, abs=0.05), pytest.approx(0.65, abs=0.05))


# Definitions


def alpha_by_definition(units: Sequence[Sequence[int]], level: str) -> float | None:
    """Krippendorff's alpha from the coincidence matrix, as he writes it down."""
    units = [unit for unit in units if len(unit) > 1]
    coincidences: Counter[tuple[int, int]] = Counter()
    for unit in units:
        for one, other in itertools.permutations(unit, 2):
            coincidences[one, other] += 1 / (len(unit) - 1)  # type: ignore[assignment]
    values = sorted({value for unit in units for value in unit})
    counts = {c: sum(coincidences[c, k] for k in values) for c in values}

    def difference(c: int, k: int) -> float:
        c, k = sorted((c, k))
        if level == "nominal":
            return float(c != k)
        if level == "interval":
            return (c - k) ** 2
        return (sum(counts[g] for g in values if c <= g <= k) - (counts[c] + counts[k]) / 2) ** 2

    expected = sum(counts[c] * counts[k] * difference(c, k) for c in values for k in values)
    observed = sum(coincidences[c, k] * difference(c, k) for c in values for k in values)
    return 1 - (sum(counts.values()) - 1) * observed / expected if expected else None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=2, max_size=5), min_size=1, max_size=8))
def test_alphas_are_those_of_the_coincidence_matrix(units: list[list[int]]) -> None:
    levels = np.array([1, 2, 4, 8])
    rows = np.array([[unit.count(level) for level in levels] for unit in units])
    formulas = {"nominal": nominal_alpha, "ordinal": ordinal_alpha, "interval": interval_alpha(levels)}
    for level, formula in formulas.items():
        value = formula(rows, np.ones((1, len(rows))))[0]
        expected = alpha_by_definition(units, level)
        assert (None if np.isnan(value) else value) == (None if expected is None else pytest.approx(expected))


@settings(max_examples=100, deadline=None)
@given(st.text("abé字", max_size=9), st.text("abé字", max_size=9))
def test_edit_distance_is_levenshteins(one: str, other: str) -> None:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    assert edit_distance(one, other) == row[-1]


def test_iou() -> None:
    corners = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [3, 3, 3, 9]], float)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 9]], float)
    assert iou(corners, others).tolist() == [1, pytest.approx(1 / 3), 0, 0]


def test_boxes_are_matched_as_if_all_had_been_compared() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        # Whole numbers, so that sides meet and boxes are equal.
        one, other = (
            read_value(Field("f", "boxes"), boxes(*(("a", *rng.integers([9, 9, 7, 7]).tolist()) for _ in range(9))))
            for _ in range(2)
        )
        overlap = iou(np.repeat(one.corners, 9, axis=0), np.tile(other.corners, (9, 1))).reshape(9, 9)
        matched: list[float] = []
        while overlap.max() >= 0.5:
            at = np.unravel_index(overlap.argmax(), (9, 9))
            matched.append(overlap[at])
            overlap[at[0]] = overlap[:, at[1]] = 0
        found = match([one, other], np.zeros(2, np.int64), pairs.Pairs(np.array([0]), np.array([1])))
        assert (found.placed[0], found.overlap[0]) == (len(matched), pytest.approx(sum(matched)))


# Kinds of fields


def test_choices_agree_one_by_one_and_as_sets() -> None:
    found = figures(CHOICES, table([[["a", "b"], ["a"], [], ["c"]], [["a"], ["a"], [], ["b"]]]))
    assert found["jaccard"]["value"] == pytest.approx((1 / 2 + 1 + 1 + 0) / 4)
    by_choice = [alpha_by_definition(units, "nominal") for units in (
        [[1, 1], [1, 1], [0, 0], [0, 0]], [[1, 0], [0, 0], [0, 0], [0, 1]], [[0, 0], [0, 0], [0, 0], [1, 0]],
    )]  # fmt: skip
    assert [found[choice]["value"] for choice in "abc"] == [pytest.approx(alpha) for alpha in by_choice]
    assert found["mean_krippendorff_alpha"]["value"] == pytest.approx(np.mean([a for a in by_choice if a is not None]))


def test_texts_agree_without_case_and_spaces() -> None:
    found = figures(TEXT, table([["A  lamp", "ship"], ["a lamp\n", "shop"]]))
    assert found["equal"]["value"] == 0.5
    assert found["edit_similarity"]["value"] == pytest.approx((1 + 3 / 4) / 2)


def test_boxes_agree_in_place_and_label() -> None:
    one = boxes(("cat", 0, 0, 10, 10), ("dog", 100, 100, 20, 20), ("cat", 300, 0, 10, 10))
    other = boxes(("cat", 0, 0, 10, 8), ("cat", 100, 100, 20, 20))
    found = figures(BOXES, [answer("i", "w", one), answer("i", "v", other)])
    # One match with its label, of five boxes; two in place.
    assert found["f1"]["value"] == pytest.approx(2 / 5)
    assert found["mean_iou"]["value"] == pytest.approx((0.8 + 1) / 2)
    units = [[0, 0], [0, 1], [0, 2]]
    assert found["krippendorff_alpha"]["value"] == pytest.approx(alpha_by_definition(units, "nominal"))


def test_a_box_has_one_partner_and_an_object_one_box_of_each_worker() -> None:
    twice = boxes(("cat", 0, 0, 10, 10), ("cat", 0, 0, 10, 9))
    once = boxes(("cat", 0, 0, 10, 10))
    found = figures(BOXES, [answer("i", "u", twice), answer("i", "v", once), answer("i", "w", once)])
    # Of the pairs with u one box of three is left over.
    assert found["f1"]["value"] == pytest.approx(2 * 3 / (3 + 3 + 2))
    units = [[0, 0, 0], [0, 9, 9]]
    assert found["krippendorff_alpha"]["value"] == pytest.approx(alpha_by_definition(units, "nominal"))


def test_known_answers_are_counted_as_they_were_judged() -> None:
    answers = [answer(item, "w", "a", right=item == 0) for item in range(5)]
    answers.append(answer("x", "w", "a", right=None))
    worker = summarise([CHOICE], answers)["workers"][0]
    # Wilson's interval of one in five, from the table of Newcombe (1998), Statistics in Medicine 17, 857-872.
    counted = {"answers": 5, "correct": 1, "accuracy": 0.2, "low": pytest.approx(0.0362, abs=1e-4)}
    assert worker["gold"] == {**counted, "high": pytest.approx(0.6245, abs=1e-4)}
    assert summarise([CHOICE], answers[-1:])["workers"][0]["gold"] is None


def test_a_worker_out_of_time_is_an_outlier() -> None:
    usual: dict[str, float | None] = {f"w{number}": 20.0 + number for number in range(9)}
    assert seconds_outliers(usual) == set()
    assert seconds_outliers(usual | {"fast": 0.0, "slow": 900.0, "unknown": None}) == {"fast", "slow"}
    # Of too few, and where most are equal, there is no scale.
    medians: dict[str, float | None] = {**dict.fromkeys("abcde", 20.0), "f": 21.0}
    assert seconds_outliers(medians) == set()
    assert seconds_outliers({"a": 1.0, "b": 1.0, "c": 1.0, "d": 100.0}) == set()
    answers = [
        answer(item, worker, "a", seconds=1.0 if worker == 8 else 20.0 + worker)
        for item, worker in itertools.product(range(3), range(9))
    ]
    workers = summarise([CHOICE], answers)["workers"]
    assert [worker["worker"] for worker in workers if worker["seconds_outlier"]] == ["8"]
    assert workers[8]["median_seconds"] == 1
    for bad in (None, "1", -1.0, float("nan"), float("inf"), 10**400):
        assert summarise([CHOICE], [answer("i", "w", "a", seconds=bad)])["workers"][0]["median_seconds"] is None


def test_pairs_with_most_items_in_common_are_shown() -> None:
    answers = [answer(item, worker, "a") for worker in range(20) for item in range(2 + (worker < 2) * 3)]
    shown = summarise([CHOICE], answers)["fields"][0]["pairs"]
    assert len(shown) == 100
    assert (shown[0]["workers"], shown[0]["items"]) == (["0", "1"], 5)


def test_many_pairs_are_those_of_a_sample_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.repeat(np.arange(50), 4)
    assert len(pairs.pairs_of(items, 0)) == 300
    monkeypatch.setattr(pairs, "MOST_PAIRS", 60)
    found = pairs.pairs_of(items, 0)
    assert len(found) == 60
    assert (items[found.left] == items[found.right]).all()
    assert (found.left < found.right).all()


# Intervals


def test_intervals_hold_the_true_kappa() -> None:
    rng = np.random.default_rng(0)
    joint = np.array([[0.35, 0.06, 0.04], [0.03, 0.22, 0.05], [0.02, 0.05, 0.18]])
    chance = joint.sum(axis=0) @ joint.sum(axis=1)
    kappa = (np.trace(joint) - chance) / (1 - chance)
    held = 0
    for number in range(150):
        cells = rng.choice(9, 120, p=joint.ravel())
        found = estimate(np.column_stack(np.divmod(cells, 3)), cohen_kappa, number)
        held += found["low"] <= kappa <= found["high"]
    # 95 % of 150 are 142; fewer than 133 come once in a thousand times.
    assert held >= 133


def test_items_of_a_kind_are_drawn_as_if_one_by_one() -> None:
    values = np.repeat([0.0, 1.0], [300, 100])
    kinds = estimate(values[:, None], mean, 1)
    singles = estimate(np.column_stack([values, np.arange(400)]), mean, 1)
    standard_error = (0.25 * 0.75 / 400) ** 0.5
    for found in (kinds, singles):
        assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_blocks_of_resamples_are_as_good_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random((300, 1))
    at_once = estimate(values, mean, 5)
    monkeypatch.setattr(intervals, "_BLOCK", 300 * 64)
    assert estimate(values, mean, 5) == at_once


# Reliability


def simulated(confusion: np.ndarray, items: int, overlap: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """True classes, and items, workers and answers of workers with these confusion matrices."""
    rng = np.random.default_rng(seed)
    workers, classes, _ = confusion.shape
    truth = rng.integers(classes, size=items)
    item = np.repeat(np.arange(items), overlap)
    worker = np.concatenate([np.sort(rng.choice(workers, overlap, replace=False)) for _ in range(items)])
    share = np.cumsum(confusion[worker, truth[item]], axis=1)
    return truth, [item, worker, (share < rng.random((len(item), 1))).sum(axis=1)]


def fitted(answers: list[np.ndarray]) -> Reliability:
    fit = dawid_skene(answers[0], answers[1], answers[2], 0)
    assert fit is not None
    return fit


def confusions(accuracies: Sequence[float], classes: int) -> np.ndarray:
    matrices = [np.full((classes, classes), (1 - accuracy) / (classes - 1)) for accuracy in accuracies]
    for matrix, accuracy in zip(matrices, accuracies, strict=True):
        np.fill_diagonal(matrix, accuracy)
    return np.array(matrices)


def test_planted_confusion_matrices_are_found() -> None:
    planted = confusions([0.9, 0.8, 0.85, 0.6, 0.75], 3)
    # Takes class 2 for class 1, as people do where guidelines are unclear.
    planted[1] = [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.6, 0.35]]
    _, answers = simulated(planted, 2_000, 4, 1)
    fit = fitted(answers)
    assert np.abs(fit.confusion - planted).max() < 0.06
    truth = np.einsum("k,wkk->w", np.full(3, 1 / 3), planted)
    assert ((fit.bounds[0] <= truth) & (truth <= fit.bounds[1])).sum() >= 4
    assert (fit.bounds[1] - fit.bounds[0]).max() < 0.1
    assert (np.diff(fit.log_likelihood) > -1e-6).all()


def test_the_most_probable_answers_beat_the_majority_when_there_are_bad_workers() -> None:
    planted = confusions([0.95, 0.95, 0.8, 0.2, 0.1], 2)
    truth, answers = simulated(planted, 600, 5, 2)
    votes = np.bincount(answers[0] * 2 + answers[2], minlength=1_200).reshape(-1, 2)
    majority = (votes.argmax(axis=1) == truth).mean()
    assert (fitted(answers).posterior.argmax(axis=1) == truth).mean() > majority + 0.1


def test_intervals_of_accuracy_hold_the_planted_ones() -> None:
    accuracies = [0.9, 0.85, 0.8, 0.75, 0.6]
    held = [
        (fit.bounds[0] <= np.array(accuracies)) & (np.array(accuracies) <= fit.bounds[1])
        for fit in (fitted(simulated(confusions(accuracies, 3), 150, 3, seed)[1]) for seed in range(6))
    ]
    assert np.mean(held) >= 0.8


def test_a_worker_whom_nobody_can_be_compared_with_has_no_reliability() -> None:
    answers = [answer(item, worker, "ab"[item % 2]) for item in range(6) for worker in ("u", "v")]
    answers += [answer("alone", "w", "a"), answer("single", "u", "b")]
    found = summarise([CHOICE], answers)
    assert [len(worker["reliability"]) for worker in found["workers"]] == [1, 1, 0]
    assert found["workers"][0]["reliability"][0]["choices"] == ["a", "b"]
    assert "alone" not in found["consensus"]["f"]
    assert found["consensus"]["f"]["single"]["answer"] == "b"
    assert found["consensus"]["f"]["0"]["probability"] > 0.9
    assert summarise([CHOICE], answers, consensus=False)["consensus"] == {}


# Invariances and bad input


def test_order_of_answers_does_not_matter() -> None:
    form, answers = everything()
    found = summarise(form, answers)
    json.dumps(found, allow_nan=False)
    order = np.random.default_rng(1).permutation(len(answers))
    assert summarise(form, [answers[at] for at in order]) == found
    assert summarise(form, answers) == found


def test_names_of_workers_do_not_matter() -> None:
    form, answers = everything()
    renamed = [given | {"worker": "zyxw"[int(given["worker"][1:])]} for given in answers]
    for one, other in zip(summarise(form, answers)["fields"], summarise(form, renamed)["fields"], strict=True):
        for measure, same in zip(one["measures"], other["measures"], strict=True):
            # Of texts a sum in another order, of the rest the very same.
            assert {k: v if isinstance(v, str) else pytest.approx(v) for k, v in measure.items() if v is not None} == {
                k: v for k, v in same.items() if v is not None
            }


def test_the_last_answer_of_a_worker_to_an_item_counts() -> None:
    answers = [answer("i", "u", "a"), answer("i", "v", "b"), answer("i", "v", "a")]
    assert figures(CHOICE, answers)["raw_agreement"]["value"] == 1


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        (CHOICE, ["z", 1, True, ["a"], {"a": 1}, ""]),
        (CHOICES, ["a", ["z"], [["a"]], [None], {"a": 1}, 3]),
        (RATING, [0, 6, 2.5, "3", True, float("nan"), float("inf"), 10**400, [1]]),
        (TEXT, [1, ["text"], {"text": 1}, False]),
        (
            BOXES,
            [
                "box",
                ["box"],
                [{"label": "a"}],
                [{"label": 1, "box": [0, 0, 1, 1]}],
                boxes(("a", float("nan"), 0, 1, 1)),
                boxes(("a", 0, 0, float("inf"), 1)),
                boxes(("a", 0, 0, -1, 1)),
                boxes(("a", 1e308, 1e308, 1e308, 1e308)),
                [{"label": "a", "box": [0, 0, 1]}],
                [{"label": "a", "box": [0, 0, "1", 1]}],
                boxes(("a", 0, 0, 1, 1)) * (MAX_BOXES + 1),
            ],
        ),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_values_that_no_form_gives_are_left_out_and_counted(field: Json, bad: list[Any]) -> None:
    good = {"choice": "a", "choices": ["a"], "rating": 3.0, "text": "a", "boxes": boxes(("a", 0, 0, 9, 9))}[
        field["kind"]
    ]
    answers = [answer("i", worker, good) for worker in "uv"]
    answers += [answer("i", f"bad{number}", value) for number, value in enumerate(bad)] + [answer("i", "w", None)]
    found = summarise([field], answers)
    assert (found["fields"][0]["invalid"], found["fields"][0]["workers"], found["fields"][0]["items"]) == (
        len(bad),
        2,
        1,
    )
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kind", ["choice", "choices", "rating", "text", "boxes", "preference"])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_said_is_none(kind: str, workers: int) -> None:
    value = {"choices": ["a"], "rating": 1, "boxes": []}.get(kind, "a")
    field = {"name": "f", "kind": kind, "choices": ["a", "b"], "min": 1, "max": 2}
    found = summarise([field], [answer("i", worker, value) for worker in range(workers)])["fields"][0]
    assert (found["items"], found["workers"], found["pairs"]) == (0, workers, [])
    assert {(m["value"], m["low"], m["high"], m["items"]) for m in found["measures"]} == {(None, None, None, 0)}


def test_one_class_alone_leaves_coefficients_undefined() -> None:
    found = figures(CHOICE, table([["a"] * 5, ["a"] * 5]))
    assert (found["raw_agreement"]["value"], found["fleiss_kappa"]["value"]) == (1, None)
    assert found["krippendorff_alpha"]["value"] is None
    ratings = figures(RATING, table([[3] * 7, [3] * 7]))
    assert (ratings["ordinal"]["value"], ratings["interval"]["value"]) == (None, None)
    nothing = figures(BOXES, table([[[]] * 3, [[]] * 3]))
    assert {measure["value"] for measure in nothing.values()} == {None}
    assert {measure["items"] for measure in nothing.values()} == {3}


def test_boxes_without_area_match_nothing() -> None:
    flat = boxes(("a", 5, 5, 0, 0), ("a", 5, 5, 0, 9))
    found = figures(BOXES, [answer("i", worker, flat) for worker in "uv"])
    assert (found["f1"]["value"], found["mean_iou"]["value"]) == (0, None)


def test_a_thousand_boxes() -> None:
    many = boxes(*((f"l{number % 300}", number % 40 * 20, number // 40 * 20, 15, 15) for number in range(MAX_BOXES)))
    found = figures(BOXES, [answer("i", worker, many) for worker in "uv"])
    assert (found["f1"]["value"], found["mean_iou"]["value"], found["krippendorff_alpha"]["value"]) == (1, 1, 1)


def test_the_same_box_again_and_again_does_not_fill_the_memory() -> None:
    same = boxes(("a", 0, 0, 9, 9)) * 200
    # Of the 40,000 pairs that overlap each box keeps sixteen, here with the same partners.
    found = figures(BOXES, [answer("i", worker, same) for worker in "uv"])
    assert found["f1"]["value"] == pytest.approx(16 / 200)
    crowd = boxes(*(("a", number / 4, 0, 9, 9) for number in range(12)))
    assert figures(BOXES, [answer("i", worker, crowd) for worker in "uv"])["f1"]["value"] == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ([{"kind": "text"}], "fields[0].name"),
        ([{"name": "f", "kind": "mood"}], "fields[0].kind"),
        ([TEXT | {"name": "t"}, {"name": "f", "kind": "choice"}], "fields[1].choices"),
        ([{"name": "f", "kind": "choice", "choices": ["a", "a"]}], "fields[0].choices"),
        ([{"name": "f", "kind": "choices", "choices": [1]}], "fields[0].choices"),
        ([{"name": "f", "kind": "rating", "min": 5, "max": 1}], "fields[0]: min and max"),
        ([{"name": "f", "kind": "rating", "min": 0, "max": 10**9}], "fields[0]: min and max"),
        ([TEXT, TEXT], "fields: two have one name"),
    ],
)
def test_a_field_that_is_none_is_named(fields: list[Json], named: str) -> None:
    with pytest.raises(ValueError, match=named.replace("[", r"\[").replace("]", r"\]")):
        summarise(fields, [])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"worker": "w", "answer": {}}, "item"),
        ({"item": "i", "worker": 3, "answer": {}}, "worker"),
        ({"item": "i", "worker": "w", "answer": "a"}, "answer"),
        ({"item": "i", "worker": "w", "answer": {}, "right": "yes"}, "right"),
    ],
)
def test_an_answer_that_is_none_is_named(given: Json, named: str) -> None:
    with pytest.raises(ValueError, match=rf"answers\[1\]\.{named}"):
        summarise([TEXT], [answer("i", "w", "a"), given])
