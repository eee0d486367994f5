"""Models of scikit-learn as ONNX graphs: `inputs` (n, width) to `outputs` (n, classes) probabilities or (n, 1) numbers.

Written by hand, because the general converter fails on trees with the onnx that is installed, and these are two nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

Array = np.ndarray

_OPSETS = (("", 18), ("ai.onnx.ml", 3))
_IR_VERSION = 9


def linear_graph(coefficients: Array, intercepts: Array, *, softmax: bool) -> bytes:
    """A linear model.

    Args:
        coefficients: (outputs, width); one row of two classes is the second one's, against zero for the first.
        intercepts: (outputs,).
    """
    weights, shift = np.atleast_2d(coefficients).T, np.atleast_1d(intercepts)
    if softmax and weights.shape[1] == 1:
        weights = np.concatenate([np.zeros_like(weights), weights], axis=1)
        shift = np.concatenate([[0.0], shift])
    constants = {"weights": weights.astype(np.float32), "shift": shift.astype(np.float32)}
    node = helper.make_node("Gemm", ["inputs", *constants], ["raw"])
    return _graph(node, constants, weights.shape[0], weights.shape[1], softmax)


def trees_graph(model: Any, width: int, *, softmax: bool) -> bytes:
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
    attributes: dict[str, Any] = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["inputs"],
        ["raw"],
        domain="ai.onnx.ml",
        n_targets=len(bases),
        aggregate_function="SUM",
        post_transform="NONE",
        base_values=bases.astype(np.float32).tolist(),
        **attributes,
    )
    return _graph(node, {}, width, len(bases), softmax)


def _placed(rounds: list[list[Any]]) -> list[tuple[int, Any]]:
    return [(place, tree) for trees in rounds for place, tree in enumerate(trees)]


def _tree(tree: Any, number: int, target: int) -> dict[str, list[Any]]:
    nodes = tree.nodes
    leaves = np.flatnonzero(nodes["is_leaf"]).tolist()
    thresholds = np.where(nodes["is_leaf"], 0.0, nodes["num_threshold"])
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


def _graph(node: Any, constants: dict[str, Array], width: int, outputs: int, softmax: bool) -> bytes:
    nodes = [node, helper.make_node("Softmax" if softmax else "Identity", ["raw"], ["outputs"])]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, [None, outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="argosy")
    checker.check_model(model)
    return model.SerializeToString()
