"""Families of models of tables: what can be set about each, and how it becomes part of an ONNX graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor

from services.training.domain.search_space import Dimension, Kind, Point
from services.training.engines.algorithms.onnx_export import (
    Part,
    forest_part,
    linear_part,
    mean_graph,
    neighbours_part,
    perceptron_part,
    trees_part,
)

Array = np.ndarray

_TREES = 100
_EPOCHS = 100
# Rows that neighbours are looked for at once: all distances of them are in memory.
_ASKED_ROWS = 512
# Added to the distance of a neighbour; standardised rows are some units apart.
_SOFTENING = 0.1
# Leaves of a tree of a forest: of a hundred trees they are some ten megabytes of ONNX.
_MOST_LEAVES = 1_024


@dataclass(frozen=True)
class Family:
    """Models that are alike but for some parameters.

    Attributes:
        defaults: tried first; inside `space`.
        space: what may be set; the path of a dimension is the name of a parameter.
        make: (parameters, classes or 0, seed) -> a model of scikit-learn that is not fitted.
        part: (name, fitted model, whether it is of classes) -> its part of a graph; None: it is kept otherwise.
    """

    name: str
    defaults: Point
    space: tuple[Dimension, ...]
    make: Callable[[Point, int, int], Any]
    part: Callable[[str, Any, bool], Part] | None = None


class Neighbours:
    """The answers of the nearest rows, weighted by nearness (Cover and Hart, 1967; Dudani, 1976). It answers by its
    ONNX graph from the beginning, so that what is scored is what is kept: which of two rows equally far away is nearer
    depends on the last bit of a sum.
    """

    def __init__(self, count: int, classes: int) -> None:
        self._count = count
        self._outputs = classes

    def fit(self, inputs: Array, answers: Array) -> Neighbours:
        """Keeps the rows."""
        self.classes_ = np.arange(self._outputs)
        self.answers = np.eye(self._outputs)[answers] if self._outputs else answers[:, None]
        self.rows = inputs
        part = self.part("")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        graph = mean_graph([part], [1.0], inputs.shape[1])
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return self

    def part(self, name: str) -> Part:
        """Its part of a graph."""
        return neighbours_part(name, self.rows, self.answers, min(self._count, len(self.rows)), _SOFTENING)

    def predict_proba(self, inputs: Array) -> Array:
        """(n, classes)."""
        parts = [inputs[start : start + _ASKED_ROWS] for start in range(0, len(inputs), _ASKED_ROWS)]
        told = [np.asarray(self._session.run(["outputs"], {"inputs": part})[0]) for part in parts]
        return np.concatenate([np.zeros((0, self.answers.shape[1]), np.float32), *told])

    def predict(self, inputs: Array) -> Array:
        """(n,) numbers."""
        return self.predict_proba(inputs)[:, 0]


def fit(family: Family, parameters: Point, inputs: Any, answers: Array, classes: int, seed: int) -> Any:
    """A fitted model of a family."""
    with warnings.catch_warnings():
        # The number of passes is what is paid for; whether more would change something is what the score says.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return family.make(parameters, classes, seed % 2**32).fit(inputs, answers)


def ask(model: Any, inputs: Any, classes: int) -> Array:
    """(n, classes) probabilities, 0 for a class that the model did not see; or (n,) numbers."""
    if not classes:
        return np.asarray(model.predict(inputs), np.float64)
    told = np.zeros((inputs.shape[0], classes))
    told[:, np.asarray(model.classes_, np.int64)] = model.predict_proba(inputs)
    return told


def size_of(model: Any) -> int:
    """Bytes of its numbers in single precision, without what describes its shape."""
    if isinstance(model, Neighbours):
        return 4 * (model.rows.size + model.answers.size)
    if hasattr(model, "_predictors"):
        return 4 * sum(len(tree.nodes) for trees in model._predictors for tree in trees)
    if hasattr(model, "estimators_"):
        return 4 * sum(tree.tree_.node_count + tree.tree_.value.size for tree in model.estimators_)
    if hasattr(model, "coefs_"):
        return 4 * sum(weights.size for weights in (*model.coefs_, *model.intercepts_))
    if hasattr(model, "feature_log_prob_"):
        return 4 * int(model.feature_log_prob_.size)
    return 4 * int(np.size(model.coef_) + np.size(model.intercept_))


def linear_model(parameters: Point, classes: int, seed: int) -> Any:
    """Logistic regression or ridge regression; `penalty` is that of the squared size of its coefficients."""
    penalty = float(parameters["penalty"])
    return LogisticRegression(C=1 / penalty, max_iter=_EPOCHS) if classes else Ridge(alpha=penalty)


def _boosting(parameters: Point, classes: int, seed: int) -> Any:
    given: dict[str, Any] = {
        "learning_rate": parameters["learning_rate"],
        "max_iter": parameters["iterations"],
        "max_leaf_nodes": parameters["leaves"],
        "l2_regularization": parameters["penalty"],
        "min_samples_leaf": parameters["leaf_rows"],
        "early_stopping": False,
        "random_state": seed,
    }
    return HistGradientBoostingClassifier(**given) if classes else HistGradientBoostingRegressor(**given)


def _forest(classifier: Any, regressor: Any) -> Callable[[Point, int, int], Any]:
    def make(parameters: Point, classes: int, seed: int) -> Any:
        return (classifier if classes else regressor)(
            n_estimators=_TREES,
            max_features=parameters["share"],
            min_samples_leaf=parameters["leaf_rows"],
            max_leaf_nodes=_MOST_LEAVES,
            random_state=seed,
        )

    return make


def _perceptron(parameters: Point, classes: int, seed: int) -> Any:
    given: dict[str, Any] = {
        "hidden_layer_sizes": (parameters["width"],),
        "alpha": parameters["penalty"],
        "learning_rate_init": parameters["learning_rate"],
        "max_iter": _EPOCHS,
        "random_state": seed,
    }
    return MLPClassifier(**given) if classes else MLPRegressor(**given)


_PENALTY = Dimension("penalty", Kind.LOG_UNIFORM, 1e-3, 1e3)
_LEAF_ROWS = Dimension("leaf_rows", Kind.INTEGER, 1, 20)
_SHARE = Dimension("share", Kind.UNIFORM, 0.1, 1.0)

# Cheap ones first: they say soonest what can be reached.
TABLE_FAMILIES = (
    Family(
        "linear",
        {"penalty": 1.0},
        (_PENALTY,),
        linear_model,
        lambda name, model, classes: linear_part(name, model.coef_, model.intercept_, softmax=classes),
    ),
    Family(
        "boosting",
        {"learning_rate": 0.1, "iterations": 100, "leaves": 31, "penalty": 1.0, "leaf_rows": 20},
        (
            Dimension("learning_rate", Kind.LOG_UNIFORM, 0.02, 0.3),
            Dimension("iterations", Kind.INTEGER, 20, 300, step=10),
            Dimension("leaves", Kind.INTEGER, 3, 63),
            _PENALTY,
            Dimension("leaf_rows", Kind.INTEGER, 2, 50),
        ),
        _boosting,
        lambda name, model, classes: trees_part(name, model, softmax=classes),
    ),
    Family(
        "random-forest",
        # Breiman's rules: the root of the columns, here about a third of some tens, and leaves of one row.
        {"share": 0.3, "leaf_rows": 1},
        (_SHARE, _LEAF_ROWS),
        _forest(RandomForestClassifier, RandomForestRegressor),
        lambda name, model, classes: forest_part(name, model),
    ),
    Family(
        "extra-trees",
        {"share": 0.3, "leaf_rows": 1},
        (_SHARE, _LEAF_ROWS),
        _forest(ExtraTreesClassifier, ExtraTreesRegressor),
        lambda name, model, classes: forest_part(name, model),
    ),
    Family(
        "neighbours",
        {"neighbours": 10},
        (Dimension("neighbours", Kind.INTEGER, 1, 50),),
        lambda parameters, classes, seed: Neighbours(int(parameters["neighbours"]), classes),
        lambda name, model, classes: model.part(name),
    ),
    Family(
        "perceptron",
        {"width": 64, "penalty": 1e-2, "learning_rate": 3e-3},
        (
            Dimension("width", Kind.INTEGER, 16, 128, step=16),
            Dimension("penalty", Kind.LOG_UNIFORM, 1e-4, 10.0),
            Dimension("learning_rate", Kind.LOG_UNIFORM, 5e-4, 2e-2),
        ),
        _perceptron,
        lambda name, model, classes: perceptron_part(name, model.coefs_, model.intercepts_, softmax=classes),
    ),
)
