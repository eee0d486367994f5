"""Texts as inputs of models: words or parts of words by how often and how rare they are. Which there are, and how rare,
is learned from the rows that a model learns from, and from no others."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.preprocessing import normalize

from libs.compute.context import EngineError
from services.training.domain.search_space import Dimension, Kind, Point
from services.training.engines.algorithms.files import CONFIG, WEIGHTS, config_of, table_of
from services.training.engines.algorithms.ngrams import MOST_CHARACTERS, character_grams, word_grams
from services.training.engines.algorithms.tabular import require_parity
from services.training.engines.automl.columns import Columns, some_rows
from services.training.engines.automl.ensemble import Member
from services.training.engines.automl.families import Family, ask, fit, linear_model
from services.training.engines.automl.result_cache import ResultCache
from services.training.engines.automl.tables import SEARCH_ROWS
from services.training.engines.automl.task import Answers

Array = np.ndarray
Json = dict[str, Any]

ALGORITHM = "automl-texts"
_WORDS, _CHARACTERS = "words", "characters"
_MOST_TERMS = 50_000
# What stands in one text alone says nothing of others; of few texts every word counts.
_FEW_TEXTS = 100
_ASKED_ROWS = 1_024
# Of all texts that terms are counted in: some hundred megabytes, because a character is in up to four terms.
_COUNTED_CHARACTERS = 8_000_000
# Counts and inputs that are kept for the next model.
_KEPT_BYTES = 256 << 20

# Texts of length 1: their coefficients must be large to say anything.
_PENALTY = Dimension("penalty", Kind.LOG_UNIFORM, 1e-3, 10.0)

TEXT_FAMILIES = (
    Family(
        "naive-bayes",
        {"longest": 2, "smoothing": 0.1},
        (Dimension("longest", Kind.INTEGER, 1, 3), Dimension("smoothing", Kind.LOG_UNIFORM, 1e-3, 1.0)),
        lambda parameters, classes, seed: MultinomialNB(alpha=float(parameters["smoothing"])),
    ),
    Family(
        "words-linear",
        {"longest": 2, "penalty": 0.1},
        (Dimension("longest", Kind.INTEGER, 1, 3), _PENALTY),
        linear_model,
    ),
    Family(
        "characters-linear",
        {"longest": 4, "penalty": 0.1},
        (Dimension("longest", Kind.INTEGER, 3, 5), _PENALTY),
        linear_model,
    ),
)


@dataclass(frozen=True)
class Terms:
    """How texts become inputs.

    Attributes:
        unit: `words` or `characters`.
        longest: so many of them in a row.
        rarities: inverse document frequency of each of `terms`.
    """

    unit: str
    longest: int
    terms: list[str]
    rarities: Array

    @property
    def name(self) -> str:
        """Of its file."""
        return f"terms-{self.unit}-{self.longest}"

    def encode(self, texts: Sequence[str]) -> csr_matrix:
        """(n, terms)."""
        place = {term: number for number, term in enumerate(self.terms)}
        return weighted(_counter(self.unit, self.longest, place).transform(texts), self.rarities)


def weighted(counts: Any, rarities: Array) -> csr_matrix:
    """Counts by the logarithm of how often and by how rare, each text of length 1."""
    inputs = csr_matrix(counts, dtype=np.float64)
    inputs.data = 1 + np.log(inputs.data)
    return normalize(inputs.multiply(rarities).tocsr())


def known_terms(counts: Any) -> tuple[Array, Array]:
    """Places of the terms that are kept of these texts, the most frequent ones, and their rarities (Spärck Jones, 1972;
    smoothed as scikit-learn does)."""
    found = np.asarray((counts > 0).sum(axis=0)).reshape(-1)
    least = 1 if counts.shape[0] < _FEW_TEXTS else 2
    places = np.flatnonzero(found >= min(least, found.max()))
    places = np.sort(places[np.argsort(-found[places], kind="stable")[:_MOST_TERMS]])
    return places, np.log((1 + counts.shape[0]) / (1 + found[places])) + 1


class Texts:
    """The rows to learn from.

    Args:
        names: columns of texts; what stands in several is read one after the other.
        columns: their values.
        answers: of the same rows.

    Attributes:
        most_rows: that there is room for: all.
        search_rows: that models are tried on.

    Raises:
        EngineError: PREFLIGHT_FAILED, no text has a word.
    """

    families: tuple[Family, ...] = TEXT_FAMILIES

    def __init__(self, names: Sequence[str], columns: Columns, answers: Answers) -> None:
        self._names = list(names)
        self.columns = {name: columns[name] for name in names}
        self._texts = joined(names, columns)
        self.answers = answers
        self._kept = ResultCache(_KEPT_BYTES)
        self._seconds: dict[tuple[str, int], float] = {}
        self._models: dict[int, Any] = {}
        characters = sum(min(len(text), MOST_CHARACTERS) for text in self._texts)
        self._step = max(1, -(-characters // _COUNTED_CHARACTERS))
        self.most_rows = len(self._texts)
        self.search_rows = min(SEARCH_ROWS, self.most_rows // self._step)
        if not any(word_grams(text, 1) for text in self._texts):
            message = f"No text in {', '.join(map(repr, names))} has a word; is it the right column?"
            raise EngineError("PREFLIGHT_FAILED", message, check="columns", detail=message)

    def sample(self, rows: Array) -> Texts:
        """Some of the rows, for models that will learn from all of them in the end."""
        return Texts(self._names, some_rows(self.columns, rows), self.answers.of(rows))

    def fold(self, family: Family, parameters: Point, number: int, learned: Array, asked: Array) -> tuple[Any, Any]:
        """Inputs of the rows that a model learns from, and of those that it is asked; see `Tables.fold`."""
        unit, longest = _unit(family), int(parameters["longest"])

        def encode() -> tuple[csr_matrix, csr_matrix]:
            counts, _ = self._counted(self._texts, unit, longest)
            places, rarities = known_terms(counts[learned])
            kept = counts[:, places]
            return weighted(kept[learned], rarities), weighted(kept[asked], rarities)

        return self._kept.get((unit, longest, number), encode)

    def encoding_seconds(self, family: Family, parameters: Point) -> float:
        """What it took to count the terms of all rows."""
        return self._seconds.get((_unit(family), int(parameters["longest"])), 0.0)

    def export(self, members: Sequence[Member], seed: int) -> dict[str, bytes]:
        """The files of the mean of the members, each fitted to all rows, once.

        Raises:
            EngineError: INTERNAL, the files answer otherwise than the models.
        """
        classes = len(self.answers.classes)
        encoded = {key: self._terms(*key) for key in sorted({_key(each) for each in members})}
        inputs = {
            key: self._kept.get(("all", *key), partial(terms.encode, self._texts)) for key, terms in encoded.items()
        }
        values = self.answers.values
        for each in members:
            if each.trial not in self._models:
                learned = inputs[_key(each)]
                self._models[each.trial] = fit(each.family, each.parameters, learned, values, classes, seed)
        models = [self._models[each.trial] for each in members]
        tensors: dict[str, Array] = {}
        for number, (each, model) in enumerate(zip(members, models, strict=True)):
            weights, shift = _linear(model)
            tensors |= {f"{number}.weights": weights, f"{number}.shift": shift}
            tensors[f"{number}.rarities"] = encoded[_key(each)].rarities
        config: Json = {
            "algorithm": ALGORITHM,
            "kind": "classification",
            "texts": self._names,
            "classes": self.answers.classes,
            "members": [
                {"unit": unit, "longest": longest, "weight": each.weight}
                for each, (unit, longest) in ((each, _key(each)) for each in members)
            ],
        }
        files = {
            CONFIG: json.dumps(config, ensure_ascii=False).encode(),
            WEIGHTS: save({name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}),
        }
        for terms in encoded.values():
            files[f"{terms.name}.json"] = json.dumps(terms.terms, ensure_ascii=False).encode()

        def right(rows: Array) -> Array:
            """What the models answer to these rows."""
            told = [
                each.weight * ask(model, inputs[_key(each)][rows], classes)
                for each, model in zip(members, models, strict=True)
            ]
            return np.sum(told, axis=0)

        predictor = TextPredictor(files)
        rows = np.arange(len(self._texts))
        require_parity(right, lambda some: predictor.outputs([self._texts[row] for row in some]), rows)
        return files

    def questions(self, files: dict[str, bytes], columns: Columns) -> TextQuestions:
        """Rows that the model behind the files is asked."""
        return TextQuestions(files, self._names, columns)

    def _counted(self, texts: Sequence[str], unit: str, longest: int) -> tuple[Any, Array]:
        """Counts of all terms in the texts, and the terms: what stands in a text is seen in that text alone."""

        def count() -> tuple[csr_matrix, Array]:
            counter, began = _counter(unit, longest, None), time.perf_counter()
            counts = csr_matrix(counter.fit_transform(texts))
            self._seconds[unit, longest] = time.perf_counter() - began
            return counts, counter.get_feature_names_out()

        return self._kept.get((unit, longest), count)

    def _terms(self, unit: str, longest: int) -> Terms:
        """Of all texts; where they are too many, of some of them, evenly spaced."""
        counts, names = self._counted(self._texts[:: self._step], unit, longest)
        places, rarities = known_terms(counts)
        return Terms(unit, longest, names[places].tolist(), rarities)


class TextPredictor:
    """The mean of several models of texts. Inputs are texts, or rows: column to value.

    Raises:
        EngineError: CONTENT_INVALID, a file is missing, damaged or of another algorithm.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self._config = config_of(files, ALGORITHM)
        self._members = [_member(files, number, one) for number, one in enumerate(self._config["members"])]

    def outputs(self, texts: Sequence[str]) -> Array:
        """(n, classes) probabilities."""
        found = [np.zeros((0, len(self._config["classes"])))]
        for start in range(0, len(texts), _ASKED_ROWS):
            part = texts[start : start + _ASKED_ROWS]
            shares = [
                weight * _softmax(np.asarray(terms.encode(part) @ weights + shift))
                for terms, weights, shift, weight in self._members
            ]
            found.append(np.sum(shares, axis=0))
        return np.concatenate(found)

    def predict(self, inputs: list[Any]) -> list[Any]:
        """`{"label": ..., "scores": [...]}` with a score for each class of `labels.json`, for each text."""
        names = self._config["texts"]
        rows = [each if isinstance(each, dict) else {names[0]: each} for each in inputs]
        texts = joined(names, {name: [row.get(name) for row in rows] for name in names})
        classes = self._config["classes"]
        return [{"label": classes[int(told.argmax())], "scores": told.tolist()} for told in self.outputs(texts)]


class TextQuestions:
    """Rows that a model is asked; see `TableQuestions`."""

    def __init__(self, files: dict[str, bytes], names: Sequence[str], columns: Columns) -> None:
        self._predictor = TextPredictor(files)
        self.names = names
        self._columns = columns

    def answers(self, rows: Array | None = None, shuffled: str = "", order: Array | None = None) -> Array:
        """(n, classes)."""
        places = range(len(self._columns[self.names[0]])) if rows is None else rows.tolist()
        columns = {name: [self._columns[name][place] for place in places] for name in self.names}
        if shuffled and order is not None:
            columns[shuffled] = [columns[shuffled][place] for place in order]
        return self._predictor.outputs(joined(self.names, columns))


def _member(files: dict[str, bytes], number: int, one: Json) -> tuple[Terms, Array, Array, float]:
    """Terms, weights, shift and share of a model of the mean."""
    empty = Terms(one["unit"], one["longest"], [], np.zeros(0))
    terms = table_of(files, f"{empty.name}.json")
    try:
        tensors = load(files[WEIGHTS])
        weights, shift, rarities = (tensors[f"{number}.{part}"] for part in ("weights", "shift", "rarities"))
    except (KeyError, SafetensorError) as error:
        message = f"{WEIGHTS} does not fit {CONFIG}, or is damaged."
        raise EngineError("CONTENT_INVALID", message, detail=WEIGHTS) from error
    return replace(empty, terms=terms, rarities=rarities), weights, shift, one["weight"]


def joined(names: Sequence[str], columns: Columns) -> list[str]:
    """The texts of a row as one."""
    rows = zip(*(columns[name] for name in names), strict=True)
    return ["\n".join("" if value is None else str(value) for value in row) for row in rows]


def _counter(unit: str, longest: int, place: dict[str, int] | None) -> CountVectorizer:
    grams = word_grams if unit == _WORDS else character_grams
    return CountVectorizer(analyzer=lambda text: grams(text, longest), vocabulary=place, dtype=np.int32)


def _unit(family: Family) -> str:
    return _CHARACTERS if family.name == "characters-linear" else _WORDS


def _key(member: Member) -> tuple[str, int]:
    return _unit(member.family), int(member.parameters["longest"])


def _linear(model: Any) -> tuple[Array, Array]:
    """(terms, classes) and (classes,): the logits of any of the models are linear in its inputs."""
    if isinstance(model, MultinomialNB):
        return model.feature_log_prob_.T, model.class_log_prior_
    weights, shift = model.coef_.T, model.intercept_
    # One column of two classes is the second one's, against zero for the first.
    if weights.shape[1] == 1:
        return np.concatenate([np.zeros_like(weights), weights], axis=1), np.concatenate([[0.0], shift])
    return weights, shift


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
