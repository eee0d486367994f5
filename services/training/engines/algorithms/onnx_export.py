"""Models of scikit-learn as ONNX graphs: `inputs` (n, width) to `outputs` (n, classes) probabilities or (n, 1) numbers.

Written by hand, because the general converter fails on trees with the onnx that is installed, and these are a few
nodes. A model is a `Part` of a graph, so that one graph can hold several and their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

Array = np.ndarray

_OPSETS = (("", 18), ("ai.onnx.ml", 3))
_IR_VERSION = 9


@dataclass(frozen=True)
class Part:
    """A model inside a graph: from `inputs` to `output`, which holds probabilities or a column of numbers.

    Attributes:
        outputs: columns of `output`.
    """

    nodes: list[Any]
    constants: dict[str, Array]
    output: str
    outputs: int


def linear_graph(coefficients: Array, intercepts: Array, *, softmax: bool) -> bytes:
    """A linear model; see `linear_part`."""
    return _graph(linear_part("", coefficients, intercepts, softmax=softmax), coefficients.shape[-1])


def trees_graph(model: Any, width: int, *, softmax: bool) -> bytes:
    """Gradient-boosted trees of scikit-learn; see `trees_part`."""
    return _graph(trees_part("", model, softmax=softmax), width)


def mean_graph(parts: Sequence[Part], weights: Sequence[float], width: int) -> bytes:
    """The weighted mean of several models.

    Args:
        weights: of the parts, together 1.
    """
    nodes, constants = [node for part in parts for node in part.nodes], dict[str, Array]()
    for number, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        constants |= {**part.constants, f"weight{number}": np.array(weight, np.float32)}
        nodes.append(helper.make_node("Mul", [part.output, f"weight{number}"], [f"share{number}"]))
    nodes.append(helper.make_node("Sum", [f"share{number}" for number in range(len(parts))], ["mean"]))
    return _graph(Part(nodes, constants, "mean", parts[0].outputs), width)


def linear_part(name: str, coefficients: Array, intercepts: Array, *, softmax: bool) -> Part:
    """A linear model.

    Args:
        name: begins the names of its tensors.
        coefficients: (outputs, width); one row of two classes is the second one's, against zero for the first.
        intercepts: (outputs,).
    """
    return perceptron_part(name, [np.atleast_2d(coefficients).T], [np.atleast_1d(intercepts)], softmax=softmax)


def perceptron_part(name: str, weights: Sequence[Array], shifts: Sequence[Array], *, softmax: bool) -> Part:
    """Layers with a rectifier between each two.

    Args:
        weights: (inputs, outputs) of each layer; the last one of two classes has one output, as in `linear_part`.
        shifts: (outputs,) of each layer.
    """
    nodes, constants, output = list[Any](), dict[str, Array](), "inputs"
    for number, (weight, shift) in enumerate(zip(weights, shifts, strict=True)):
        last = number == len(weights) - 1
        if last and softmax and weight.shape[1] == 1:
            weight = np.concatenate([np.zeros_like(weight), weight], axis=1)
            shift = np.concatenate([[0.0], shift])
        names = [f"{name}weights{number}", f"{name}shift{number}"]
        constants |= dict(zip(names, (weight.astype(np.float32), shift.astype(np.float32)), strict=True))
        made = f"{name}raw" if last else f"{name}layer{number}"
        nodes.append(helper.make_node("Gemm", [output, *names], [made]))
        output = made
        if not last:
            output = f"{name}rectified{number}"
            nodes.append(helper.make_node("Relu", [made], [output]))
    return _answering(name, nodes, constants, weights[-1].shape[1], softmax)


def trees_part(name: str, model: Any, *, softmax: bool) -> Part:
    """Gradient-boosted trees of scikit-learn.

    Args:
        model: a fitted `HistGradientBoosting...`.
    """
    rounds: list[list[Any]] = model._predictors
    base = np.asarray(model._baseline_prediction, np.float64).reshape(-1)
    # Trees of two classes are the second one's, against zero for the first.
    first = 1 if softmax and len(base) == 1 else 0
    bases = np.concatenate([np.zeros(first), base])
    parts = [_tree(tree, number, place + first) for number, (place, tree) in enumerate(_placed(rounds))]
    node = _trees_node(parts, [f"{name}raw"], n_targets=len(bases), base_values=bases.astype(np.float32).tolist())
    return _answering(name, [node], {}, len(base), softmax)


def forest_part(name: str, model: Any) -> Part:
    """The mean of trees that each answer by themselves.

    Args:
        model: a fitted forest of scikit-learn, random or extremely random.
    """
    trees = [estimator.tree_ for estimator in model.estimators_]
    outputs = trees[0].value.shape[2]
    parts = [_forest_tree(tree, number, len(trees)) for number, tree in enumerate(trees)]
    node = _trees_node(parts, [f"{name}told"], n_targets=outputs)
    return Part([node], {}, f"{name}told", outputs)


def neighbours_part(name: str, rows: Array, answers: Array, count: int, softening: float) -> Part:
    """The answers of the nearest rows, each by the inverse of its distance.

    Args:
        rows: (m, width) that were learned.
        answers: (m, outputs) of each: one of the class, or a number.
        count: of neighbours.
        softening: is added to distances, so that an equal row does not silence the others.
    """
    constants = {
        f"{name}rows": rows.T.astype(np.float32),
        f"{name}squares": np.square(rows.astype(np.float64)).sum(axis=1)[None, :].astype(np.float32),
        f"{name}answers": answers.astype(np.float32),
        f"{name}minus_two": np.array(-2, np.float32),
        f"{name}softening": np.array(softening, np.float32),
        f"{name}count": np.array([count], np.int64),
        f"{name}one": np.array([1], np.int64),
        f"{name}two": np.array([2], np.int64),
    }

    def node(kind: str, inputs: Sequence[str], *made: str, **attributes: Any) -> Any:
        given = [each if each == "inputs" else f"{name}{each}" for each in inputs]
        return helper.make_node(kind, given, [f"{name}{each}" for each in made], **attributes)

    nodes = [
        node("MatMul", ["inputs", "rows"], "products"),
        node("Mul", ["products", "minus_two"], "crossed"),
        node("ReduceSumSquare", ["inputs", "one"], "own"),
        node("Add", ["own", "squares"], "sums"),
        node("Add", ["sums", "crossed"], "rough"),
        # Rounding may leave a little less than nothing between equal rows.
        node("Relu", ["rough"], "distances2"),
        node("TopK", ["distances2", "count"], "nearest2", "places", largest=0),
        node("Sqrt", ["nearest2"], "nearest"),
        node("Add", ["nearest", "softening"], "softened"),
        node("Reciprocal", ["softened"], "weights"),
        node("ReduceSum", ["weights", "one"], "total"),
        node("Gather", ["answers", "places"], "found"),
        node("Unsqueeze", ["weights", "two"], "factors"),
        node("Mul", ["found", "factors"], "weighted"),
        node("ReduceSum", ["weighted", "one"], "summed", keepdims=0),
        node("Div", ["summed", "total"], "told"),
    ]
    return Part(nodes, constants, f"{name}told", answers.shape[1])


def _placed(rounds: list[list[Any]]) -> list[tuple[int, Any]]:
    return [(place, tree) for trees in rounds for place, tree in enumerate(trees)]


def _tree(tree: Any, number: int, target: int) -> dict[str, list[Any]]:
    nodes = tree.nodes
    leaves = np.flatnonzero(nodes["is_leaf"]).tolist()
    thresholds = np.where(nodes["is_leaf"], 0.0, _single(nodes["num_threshold"]))
    return {
        "nodes_treeids": [number] * len(nodes),
        "nodes_nodeids": list(range(len(nodes))),
        "nodes_featureids": nodes["feature_idx"].tolist(),
        "nodes_modes": ["LEAF" if leaf else "BRANCH_LEQ" for leaf in nodes["is_leaf"]],
        "nodes_values": thresholds.tolist(),
        "nodes_truenodeids": nodes["left"].tolist(),
        "nodes_falsenodeids": nodes["right"].tolist(),
        "target_treeids": [number] * len(leaves),
        "target_nodeids": leaves,
        "target_ids": [target] * len(leaves),
        "target_weights": nodes["value"][leaves].tolist(),
    }


def _forest_tree(tree: Any, number: int, trees: int) -> dict[str, list[Any]]:
    leaves = tree.children_left < 0
    values = tree.value[:, 0, :]
    # scikit-learn keeps shares of the classes, and kept counts of rows once.
    values = values / values.sum(axis=1, keepdims=True) if values.shape[1] > 1 else values
    # A class that a leaf does not have needs no line; a leaf of a number has one even where that is 0.
    at, targets = np.nonzero((leaves[:, None] & (values != 0)) if values.shape[1] > 1 else leaves[:, None])
    return {
        "nodes_treeids": [number] * tree.node_count,
        "nodes_nodeids": list(range(tree.node_count)),
        "nodes_featureids": np.where(leaves, 0, tree.feature).tolist(),
        "nodes_modes": np.where(leaves, "LEAF", "BRANCH_LEQ").tolist(),
        "nodes_values": np.where(leaves, 0.0, _single(tree.threshold)).tolist(),
        "nodes_truenodeids": np.where(leaves, 0, tree.children_left).tolist(),
        "nodes_falsenodeids": np.where(leaves, 0, tree.children_right).tolist(),
        "target_treeids": [number] * len(at),
        "target_nodeids": at.tolist(),
        "target_ids": targets.tolist(),
        "target_weights": (values[at, targets] / trees).tolist(),
    }


def _single(thresholds: Array) -> Array:
    """Thresholds in single precision, rounded down: an input in single precision is then on the same side as before."""
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)


def _trees_node(parts: Sequence[dict[str, list[Any]]], made: list[str], **others: Any) -> Any:
    attributes: dict[str, Any] = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    return helper.make_node(
        "TreeEnsembleRegressor",
        ["inputs"],
        made,
        domain="ai.onnx.ml",
        aggregate_function="SUM",
        post_transform="NONE",
        **others,
        **attributes,
    )


def _answering(name: str, nodes: list[Any], constants: dict[str, Array], outputs: int, softmax: bool) -> Part:
    """What was computed as `raw` becomes probabilities, where it is of classes."""
    if not softmax:
        return Part(nodes, constants, f"{name}raw", outputs)
    made = f"{name}probabilities"
    return Part([*nodes, helper.make_node("Softmax", [f"{name}raw"], [made])], constants, made, max(2, outputs))


def _graph(part: Part, width: int) -> bytes:
    nodes = [*part.nodes, helper.make_node("Identity", [part.output], ["outputs"])]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, [None, part.outputs])],
        [numpy_helper.from_array(value, name) for name, value in part.constants.items()],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="argosy")
    checker.check_model(model)
    return model.SerializeToString()
