"""Agreement: how far people gave the same answers to the same items, and whom to believe where they did not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.dataset.engines.annotators import summarise_workers
from services.dataset.engines.answers import (
    BOXES,
    CHOICE,
    CHOICES,
    PREFERENCE,
    RATING,
    TEXT,
    Answers,
    Column,
    Field,
    read_fields,
)
from services.dataset.engines.boxes import match
from services.dataset.engines.coefficients import (
    cohen_kappa,
    fleiss_kappa,
    interval_alpha,
    nominal_alpha,
    nominal_alpha_of,
    ordinal_alpha,
    quadratic_weighted_kappa,
    raw_agreement,
)
from services.dataset.engines.edit_similarity import edit_similarity
from services.dataset.engines.intervals import Formula, estimate, mean, ratio
from services.dataset.engines.pairs import Pairs, pairs_of
from services.dataset.engines.reliability import Reliability, dawid_skene

# Pairs of workers that are shown, those with most items in common.
_SHOWN_PAIRS = 100
# Pairs of texts whose characters are compared: 1.5 s at most. A mean of so many is known to two percent.
_COMPARED_TEXTS = 2_000
# Classes without an order, of which one is true.
_NOMINAL = (CHOICE, PREFERENCE)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Measure:
    """A figure of a field: `rows` is (items, columns), what `formula` needs to know of each item."""

    name: str
    level: str | None
    rows: np.ndarray
    formula: Formula
    choice: str | None = None


@dataclass(frozen=True, slots=True)
class _Paired:
    """A figure of two workers: `rows` is (pairs of answers, columns), those of `pairs`."""

    name: str
    pairs: Pairs
    rows: np.ndarray
    formula: Formula


def summarise(fields: list[Json], answers: list[Json], seed: int = 0, consensus: bool = True) -> Json:
    """Agreement by field, reliability by worker, the most probable answer by item.

    docs/architecture/agreement.md says which figure means what. Every figure has `value`, `low`, `high` (95 %) and
    `items`, the number it rests on; what is undefined is None.

    Args:
        fields: Of the form: `name`, `kind` (choice, choices, rating, text, boxes, preference), and `choices`, or `min`
            and `max` of a rating.
        answers: `item`, `worker`, `answer` by field's name, `right` against the known answer or None, `seconds` or
            None. Of two answers of a worker to an item the last one counts. A value that no form with these fields
            gives is left out and counted as `invalid`.
        seed: Of the resampling. The order of the answers does not matter.
        consensus: Whether to give the most probable answers, which grow with the items.

    Returns:
        `fields`, `workers`, `consensus` by field and item; can be written as JSON.

    Raises:
        ValueError: Names the field or answer that is none.
    """
    form = read_fields(fields)
    given = Answers(answers)
    columns = [given.column(field) for field in form]
    fits = {column.field.name: fit for column in columns if (fit := _fit(column, seed)) is not None}
    return {
        "fields": [_summarise_field(column, given.workers, seed) for column in columns],
        "workers": summarise_workers(form, given, fits),
        "consensus": _consensus(form, given.items, fits) if consensus else {},
    }


def _fit(column: Column, seed: int) -> Reliability | None:
    if column.field.kind not in _NOMINAL:
        return None
    return dawid_skene(column.items, column.workers, np.array(column.values, np.int64), seed)


def _consensus(form: Sequence[Field], items: Sequence[str], fits: Mapping[str, Reliability]) -> Json:
    return {field.name: _most_probable(field, items, fits[field.name]) for field in form if field.name in fits}


def _most_probable(field: Field, items: Sequence[str], fit: Reliability) -> Json:
    best = fit.posterior.argmax(axis=1)
    names = [field.choices[number] for number in fit.classes[best]]
    probabilities = np.take_along_axis(fit.posterior, best[:, None], axis=1)[:, 0].tolist()
    return {
        items[int(item)]: {"answer": name, "probability": probability}
        for item, name, probability in zip(fit.items, names, probabilities, strict=True)
    }


def _summarise_field(column: Column, workers: Sequence[str], seed: int) -> Json:
    pairs = pairs_of(column.items, seed)
    measures, paired = _MEASURES[column.field.kind](column, pairs, seed)
    return {
        "name": column.field.name,
        "kind": column.field.kind,
        "items": int((np.unique(column.items, return_counts=True)[1] > 1).sum()),
        "workers": len(np.unique(column.workers)),
        "invalid": column.invalid,
        "measures": [_figure(measure, seed) for measure in measures],
        "pairs": _summarise_pairs(column, paired, workers, seed),
    }


def _figure(measure: _Measure, seed: int) -> Json:
    choice = {"choice": measure.choice} if measure.choice is not None else {}
    found = estimate(measure.rows, measure.formula, seed)
    return {"measure": measure.name, "level": measure.level, **choice, **found}


def _summarise_pairs(column: Column, paired: _Paired, workers: Sequence[str], seed: int) -> list[Json]:
    count = len(workers)
    keys = column.workers[paired.pairs.left] * count + column.workers[paired.pairs.right]
    order = np.argsort(keys, kind="stable")
    found, starts, sizes = np.unique(keys[order], return_index=True, return_counts=True)
    shown = np.lexsort((found, -sizes))[:_SHOWN_PAIRS]
    return [
        {
            "workers": [workers[int(worker)] for worker in divmod(found[at], count)],
            "measure": paired.name,
            **estimate(paired.rows[order[starts[at] : starts[at] + sizes[at]]], paired.formula, seed),
        }
        for at in shown
    ]


def _of_nominal(column: Column, pairs: Pairs, seed: int) -> tuple[list[_Measure], _Paired]:
    values = np.array(column.values, np.int64)
    counts, _ = _class_counts(column.items, values)
    answers = counts.sum(axis=1)
    # Fleiss wants the same number of answers to every item: that which most items have.
    usual = np.bincount(answers).argmax() if len(answers) else 0
    measures = [
        _Measure("raw_agreement", "nominal", counts, raw_agreement),
        _Measure("fleiss_kappa", "nominal", counts[answers == usual], fleiss_kappa),
        _Measure("krippendorff_alpha", "nominal", counts, nominal_alpha),
    ]
    return measures, _Paired("cohen_kappa", pairs, _sides(values, pairs), cohen_kappa)


def _of_rating(column: Column, pairs: Pairs, seed: int) -> tuple[list[_Measure], _Paired]:
    values = np.array(column.values, np.int64)
    counts, levels = _class_counts(column.items, values)
    measures = [
        _Measure("krippendorff_alpha", "ordinal", counts, ordinal_alpha),
        _Measure("krippendorff_alpha", "interval", counts, interval_alpha(levels)),
    ]
    return measures, _Paired("quadratic_weighted_kappa", pairs, _sides(values, pairs), quadratic_weighted_kappa)


def _of_choices(column: Column, pairs: Pairs, seed: int) -> tuple[list[_Measure], _Paired]:
    chosen = np.array(column.values, np.int64).reshape(len(column.values), len(column.field.choices))
    present, answers = _sums_by_item(column.items, chosen)
    present, answers = present[answers > 1], answers[answers > 1]
    one, other = chosen[pairs.left], chosen[pairs.right]
    either = (one | other).sum(axis=1)
    # Two who say that nothing applies agree.
    jaccard = np.where(either > 0, (one & other).sum(axis=1) / np.maximum(either, 1), 1)
    measures = [
        _Measure("mean_krippendorff_alpha", "nominal", np.column_stack([answers, present]), _mean_alpha),
        _Measure("jaccard", None, _means_by_item(column.items[pairs.left], jaccard), mean),
        *(
            _Measure("krippendorff_alpha", "nominal", np.column_stack([answers - there, there]), nominal_alpha, choice)
            for choice, there in zip(column.field.choices, present.T, strict=True)
        ),
    ]
    return measures, _Paired("jaccard", pairs, jaccard[:, None], mean)


def _mean_alpha(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of the choices' alphas that are defined.

    Args:
        rows: (kinds, 1 + choices) answers, and those that have each choice.
        weights: (resamples, kinds).
    """
    answers, choices = rows[:, 0], rows[:, 1:].T
    alphas = np.stack([nominal_alpha(np.column_stack([answers - there, there]), weights) for there in choices])
    defined = np.isfinite(alphas)
    total = np.where(defined, alphas, 0).sum(axis=0)
    return np.where(defined.any(axis=0), total / np.maximum(defined.sum(axis=0), 1), np.nan)


def _of_text(column: Column, pairs: Pairs, seed: int) -> tuple[list[_Measure], _Paired]:
    texts: Sequence[str] = column.values
    equal = np.array([texts[one] == texts[other] for one, other in _both(pairs)], np.float64)
    sample = _sampled(pairs, seed)
    similarity = np.array([edit_similarity(texts[one], texts[other]) for one, other in _both(sample)], np.float64)
    measures = [
        _Measure("equal", None, _means_by_item(column.items[pairs.left], equal), mean),
        _Measure("edit_similarity", None, _means_by_item(column.items[sample.left], similarity), mean),
    ]
    return measures, _Paired("edit_similarity", sample, similarity[:, None], mean)


def _sampled(pairs: Pairs, seed: int) -> Pairs:
    if len(pairs) <= _COMPARED_TEXTS:
        return pairs
    kept = np.sort(np.random.default_rng(seed).choice(len(pairs), _COMPARED_TEXTS, replace=False))
    return Pairs(pairs.left[kept], pairs.right[kept])


def _both(pairs: Pairs) -> zip[tuple[int, int]]:
    return zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)


def _of_boxes(column: Column, pairs: Pairs, seed: int) -> tuple[list[_Measure], _Paired]:
    found = match(column.values, column.items, pairs)
    # Twice the matches by the boxes of both is the harmonic mean of precision and recall, either way round.
    matched = np.column_stack([2 * found.labelled, found.counts])
    overlap = np.column_stack([found.overlap, found.placed])
    items = column.items[pairs.left]
    measures = [
        _Measure("f1", None, _sums_by_item(items, matched)[0], ratio),
        _Measure("mean_iou", None, _sums_by_item(items, overlap)[0], ratio),
        _Measure("krippendorff_alpha", "nominal", found.units, nominal_alpha_of),
    ]
    return measures, _Paired("f1", pairs, matched, ratio)


def _class_counts(items: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers of each class by item, (items with two or more answers, classes), and the classes, ascending."""
    classes, numbers = np.unique(values, return_inverse=True)
    _, item = np.unique(items, return_inverse=True)
    width = len(classes)
    counts = np.bincount(item * width + numbers, minlength=(item.max(initial=-1) + 1) * width).reshape(
        -1, max(width, 1)
    )
    return counts[counts.sum(axis=1) > 1], classes


def _sums_by_item(items: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the rows by item, (items, columns), and how many rows each has; the items ascend."""
    _, starts, sizes = np.unique(items, return_index=True, return_counts=True)
    sums = np.add.reduceat(rows, starts, axis=0) if len(starts) else rows
    return sums, sizes


def _means_by_item(items: np.ndarray, values: np.ndarray) -> np.ndarray:
    sums, sizes = _sums_by_item(items, values[:, None])
    return sums / sizes[:, None]


def _sides(values: np.ndarray, pairs: Pairs) -> np.ndarray:
    return np.column_stack([values[pairs.left], values[pairs.right]])


_MEASURES: dict[str, Callable[[Column, Pairs, int], tuple[list[_Measure], _Paired]]] = {
    CHOICE: _of_nominal,
    PREFERENCE: _of_nominal,
    CHOICES: _of_choices,
    RATING: _of_rating,
    TEXT: _of_text,
    BOXES: _of_boxes,
}
