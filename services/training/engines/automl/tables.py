"""Tables as inputs of models: features are learned from the rows that a model learns from, and from no others."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from services.training.domain.search_space import Point
from services.training.engines.algorithms.features import Features
from services.training.engines.algorithms.onnx_export import mean_graph
from services.training.engines.algorithms.tabular import TabularPredictor, require_parity
from services.training.engines.automl.columns import Column, Columns, fit_features, some_rows
from services.training.engines.automl.ensemble import Member
from services.training.engines.automl.families import TABLE_FAMILIES, Family, ask, fit
from services.training.engines.automl.result_cache import ResultCache
from services.training.engines.automl.task import Answers

Array = np.ndarray
Json = dict[str, Any]

# Models are tried on so many rows at most; the best ones then learn from all that there is room and time for.
SEARCH_ROWS = 20_000
# Inputs of all rows together: four bytes each, twice while they are put together.
_MOST_INPUTS = 100_000_000
# Neighbours are looked for among all rows: the file of the model holds their inputs, and for 512 rows that are asked at
# once a handful of matrices with the distance of each of them, 40 MB a matrix.
_MOST_NEIGHBOURS = 20_000
_MOST_NEIGHBOUR_INPUTS = 5_000_000
# Encoded parts that are kept for the next model.
_KEPT_BYTES = 256 << 20


class Tables:
    """The rows to learn from.

    Args:
        used: columns, with what they are.
        columns: their values, and perhaps others.
        answers: of the same rows.

    Attributes:
        families: those that can be tried on so many rows.
        most_rows: that there is room for.
        search_rows: that models are tried on.
    """

    def __init__(self, used: Sequence[Column], columns: Columns, answers: Answers) -> None:
        self._used = used
        self.columns = {column.name: columns[column.name] for column in used}
        self.answers = answers
        self._folds = ResultCache(_KEPT_BYTES)
        self._seconds = 0.0
        self._models: dict[int, Any] = {}
        rows, inputs = len(answers.values), sum(column.inputs for column in used)
        few = rows <= _MOST_NEIGHBOURS and rows * inputs <= _MOST_NEIGHBOUR_INPUTS
        self.families: tuple[Family, ...] = tuple(
            family for family in TABLE_FAMILIES if few or family.name != "neighbours"
        )
        self.most_rows = _MOST_INPUTS // inputs
        self.search_rows = min(SEARCH_ROWS, self.most_rows)

    def sample(self, rows: Array) -> Tables:
        """Some of the rows, for models that will learn from more of them in the end."""
        taken = Tables(self._used, some_rows(self.columns, rows), self.answers.of(rows))
        taken.families = self.families
        return taken

    def fold(self, family: Family, parameters: Point, number: int, learned: Array, asked: Array) -> tuple[Array, Array]:
        """Inputs of the rows that a model learns from, and of those that it is asked.

        Args:
            number: of the part that is asked; its inputs are the same for all models.
            learned, asked: places of the rows.
        """

        def encode() -> tuple[Array, Array]:
            began = time.perf_counter()
            taken, left = some_rows(self.columns, learned), some_rows(self.columns, asked)
            features = fit_features(self._used, taken)
            inputs = features.encode(taken), features.encode(left)
            self._seconds = time.perf_counter() - began
            return inputs

        return self._folds.get(number, encode)

    def encoding_seconds(self, family: Family, parameters: Point) -> float:
        """What it took to encode all rows, the same for all models."""
        return self._seconds

    @cached_property
    def _whole(self) -> tuple[Features, Array]:
        features = fit_features(self._used, self.columns)
        return features, features.encode(self.columns)

    def export(self, members: Sequence[Member], seed: int) -> dict[str, bytes]:
        """The files of the mean of the members, each fitted to all rows, once: those of a model of `tabular`.

        Raises:
            EngineError: INTERNAL, the files answer otherwise than the models.
        """
        features, inputs = self._whole
        values, classes = self.answers.values, len(self.answers.classes)
        for each in members:
            if each.trial not in self._models:
                self._models[each.trial] = fit(each.family, each.parameters, inputs, values, classes, seed)
        models = [self._models[each.trial] for each in members]
        parts = [
            each.family.part(f"m{number}.", model, bool(classes))
            for number, (each, model) in enumerate(zip(members, models, strict=True))
            if each.family.part is not None
        ]
        weights = [each.weight for each in members]
        config: Json = {"features": features.to_json()}
        if classes:
            config |= {"kind": "classification", "classes": self.answers.classes}
        else:
            config |= {"kind": "regression", "mean": self.answers.mean, "scale": self.answers.scale}
        files = {
            "config.json": json.dumps(config, ensure_ascii=False).encode(),
            "model.onnx": mean_graph(parts, weights, inputs.shape[1]),
        }

        def right(rows: Array) -> Array:
            """What the models answer to these rows."""
            told = [weight * ask(model, rows, classes) for weight, model in zip(weights, models, strict=True)]
            return np.sum(told, axis=0)

        require_parity(right, TabularPredictor(files).outputs, inputs)
        return files

    def questions(self, files: dict[str, bytes], columns: Columns) -> TableQuestions:
        """Rows that the model behind the files is asked."""
        return TableQuestions(files, columns)


class TableQuestions:
    """Rows that a model is asked. A column can be shuffled among its inputs, without encoding anything again."""

    def __init__(self, files: dict[str, bytes], columns: Columns) -> None:
        self._predictor = TabularPredictor(files)
        features = Features.from_json(json.loads(files["config.json"])["features"])
        self.names = features.names
        self._inputs = features.encode(columns)
        ends = np.cumsum([0, *(feature.encode([]).shape[1] for feature in features.columns)])
        self._places = {name: slice(*ends[number : number + 2]) for number, name in enumerate(self.names)}

    def answers(self, rows: Array | None = None, shuffled: str = "", order: Array | None = None) -> Array:
        """(n, classes) or (n,).

        Args:
            rows: places; None: all.
            shuffled: a column whose values stand in another order among these rows.
        """
        inputs = self._inputs if rows is None else self._inputs[rows].copy()
        if shuffled:
            inputs[:, self._places[shuffled]] = inputs[order, self._places[shuffled]]
        return self._predictor.outputs(inputs)
