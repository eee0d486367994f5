"""Classes and numbers from tables: gradient-boosted trees or a linear model, kept as ONNX.

Rows become inputs in `features.py`, in training as in prediction, so the file holds the model alone. Figures are those
of that file, read back, and the file is compared with what scikit-learn would have answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge

from libs.compute.context import EngineError
from services.training.engines.algorithms.declared import declare
from services.training.engines.algorithms.features import Features, feature_names, read_columns
from services.training.engines.algorithms.figures import class_numbers, classes_of, classification, regression
from services.training.engines.algorithms.interface import Json, Table, Trained, Watch
from services.training.engines.algorithms.onnx_export import linear_graph, trees_graph

Array = np.ndarray

# Largest difference between the file and scikit-learn: of probabilities, or of standard deviations of the target.
_PARITY = 1e-4
_PARITY_ROWS = 10_000
_ROUNDS = 20
# Asked at once: a model that looks for neighbours holds the distances of all of them.
_ASKED_ROWS = 512
# A penalty of 0 has no inverse; this is as good as none.
_NO_PENALTY = 1e-9


def train_classification(train: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    """Learns the class of a row. See `Algorithm.train`."""
    target: str = parameters["label_column"]
    features, inputs, values = _read(train, target, parameters)
    classes = classes_of(values)
    known = class_numbers(classes, values)
    model = _fit(_classifier(parameters, seed), inputs, known, parameters, watch)
    config = {"kind": "classification", "features": features.to_json(), "classes": classes}
    files = {**_files(model, inputs.shape[1], config), "labels.json": json.dumps(classes).encode()}
    predictor = TabularPredictor(files)
    require_parity(model.predict_proba, predictor.outputs, inputs)
    results = {}
    if heldout is not None:
        columns = read_columns(heldout, [*features.names, target])
        right = class_numbers(classes, columns[target])
        results = classification(predictor.outputs(features.encode(columns)), right, known)
    return Trained(files, results, _parameter_count(model))


def train_regression(train: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    """Learns a number of a row. See `Algorithm.train`."""
    target: str = parameters["target_column"]
    features, inputs, values = _read(train, target, parameters)
    numbers = np.array(values, np.float64)
    mean, scale = float(numbers.mean()), float(numbers.std()) or 1.0
    model = _fit(_regressor(parameters, seed), inputs, (numbers - mean) / scale, parameters, watch)
    config = {"kind": "regression", "features": features.to_json(), "mean": mean, "scale": scale}
    files = _files(model, inputs.shape[1], config)
    predictor = TabularPredictor(files)
    require_parity(model.predict, predictor.outputs, inputs)
    results = {}
    if heldout is not None:
        columns = read_columns(heldout, [*features.names, target])
        told = predictor.outputs(features.encode(columns)) * scale + mean
        results = regression(told, np.array(columns[target], np.float64), mean)
    return Trained(files, results, _parameter_count(model))


class TabularPredictor:
    """A model of tables. Inputs are rows: column to value; a missing one is a gap."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._config: Json = json.loads(files["config.json"])
        self._features = Features.from_json(self._config["features"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(files["model.onnx"], options, providers=["CPUExecutionProvider"])

    def outputs(self, inputs: Array) -> Array:
        """(n, classes) probabilities, or (n,) standardised numbers, for encoded rows."""
        parts = [inputs[start : start + _ASKED_ROWS] for start in range(0, len(inputs), _ASKED_ROWS)] or [inputs]
        answers = np.concatenate([np.asarray(self._session.run(["outputs"], {"inputs": part})[0]) for part in parts])
        return answers if self._config["kind"] == "classification" else answers.reshape(-1)

    def predict(self, inputs: list[Any]) -> list[Any]:
        """`{"label": ..., "scores": [...]}` with a score for each class of `labels.json`, or a number, for each row."""
        columns = {name: [row.get(name) for row in inputs] for name in self._features.names}
        answers = self.outputs(self._features.encode(columns))
        if self._config["kind"] == "regression":
            return (answers * self._config["scale"] + self._config["mean"]).tolist()
        classes = self._config["classes"]
        return [{"label": classes[int(scores.argmax())], "scores": scores.tolist()} for scores in answers]


def _read(train: Table, target: str, parameters: Json) -> tuple[Features, Array, list[Any]]:
    names = parameters["feature_columns"] or feature_names(train, target)
    columns = read_columns(train, [*names, target])
    features = Features.fit({name: columns[name] for name in names}, parameters["max_categories"])
    inputs = features.encode(columns)
    if not inputs.shape[1]:
        raise EngineError("CONTENT_INVALID", "No feature column has a value.", detail=", ".join(names))
    return features, inputs, columns[target]


def _classifier(parameters: Json, seed: int) -> Any:
    if parameters["model"] == "linear":
        return LogisticRegression(C=1 / max(parameters["l2"], _NO_PENALTY), max_iter=1000)
    return HistGradientBoostingClassifier(**_boosting(parameters, seed))


def _regressor(parameters: Json, seed: int) -> Any:
    if parameters["model"] == "linear":
        return Ridge(alpha=max(parameters["l2"], _NO_PENALTY))
    return HistGradientBoostingRegressor(**_boosting(parameters, seed))


def _boosting(parameters: Json, seed: int) -> Json:
    return {
        "learning_rate": float(parameters["learning_rate"]),
        "max_leaf_nodes": parameters["max_leaves"],
        "l2_regularization": float(parameters["l2"]),
        "early_stopping": False,
        "warm_start": True,
        "random_state": seed % 2**32,
    }


def _fit(model: Any, inputs: Array, targets: Array, parameters: Json, watch: Watch) -> Any:
    """Fits at once, or trees in rounds, between which the run can be watched and stopped."""
    if parameters["model"] == "linear":
        watch.progress(0.1, "fitting")
        return model.fit(inputs, targets)
    iterations: int = parameters["iterations"]
    rounds = min(_ROUNDS, iterations)
    for number in range(1, rounds + 1):
        watch.stop_if_cancelled()
        done = iterations * number // rounds
        model.set_params(max_iter=done)
        model.fit(inputs, targets)
        watch.metrics(done, {"score": float(model.score(inputs, targets))})
        watch.progress(0.9 * number / rounds, f"tree {done} of {iterations}")
    return model


def _files(model: Any, width: int, config: Json) -> dict[str, bytes]:
    softmax = config["kind"] == "classification"
    if hasattr(model, "coef_"):
        graph = linear_graph(model.coef_, model.intercept_, softmax=softmax)
    else:
        graph = trees_graph(model, width, softmax=softmax)
    return {"config.json": json.dumps(config, ensure_ascii=False).encode(), "model.onnx": graph}


def require_parity(wanted: Callable[[Array], Array], given: Callable[[Array], Array], inputs: Array) -> None:
    """Refuses files that answer otherwise than what was trained, on up to 10,000 rows.

    Raises:
        EngineError: INTERNAL.
    """
    rows = inputs[:_PARITY_ROWS]
    difference = float(np.abs(wanted(rows) - given(rows)).max())
    if difference > _PARITY:
        raise EngineError(
            "INTERNAL", f"The exported model answers otherwise than the trained one, by {difference:.2g}."
        )


def _parameter_count(model: Any) -> int:
    """Coefficients, or nodes of all trees."""
    if hasattr(model, "coef_"):
        return int(np.size(model.coef_) + np.size(model.intercept_))
    trees: Sequence[Sequence[Any]] = model._predictors
    return sum(len(tree.nodes) for trees_of_round in trees for tree in trees_of_round)


CLASSIFICATION = declare("tabular-classification", train_classification, TabularPredictor)
REGRESSION = declare("tabular-regression", train_regression, TabularPredictor)
