"""A trained model as files, and back."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from libs.compute.context import EngineError
from services.training.engines.algorithms.interface import Json

CONFIG, WEIGHTS = "config.json", "model.safetensors"

M = TypeVar("M", bound=nn.Module)


def files_of(algorithm: str, config: Json, model: nn.Module, **tables: Any) -> dict[str, bytes]:
    """`config.json`, `model.safetensors`, and a file of JSON for each of `tables` (`labels` is `labels.json`)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    files = {CONFIG: _json({"algorithm": algorithm, **config}), WEIGHTS: save(tensors)}
    return files | {f"{name}.json": _json(table) for name, table in tables.items()}


def table_of(files: dict[str, bytes], path: str) -> Any:
    """What a file of JSON holds.

    Raises:
        EngineError: CONTENT_INVALID, it is not there or is not JSON.
    """
    try:
        return json.loads(files[path])
    except KeyError as error:
        raise EngineError("CONTENT_INVALID", f"The model has no file {path}.", detail=path) from error
    except ValueError as error:
        raise EngineError("CONTENT_INVALID", f"{path} of the model is not JSON.", detail=path) from error


def config_of(files: dict[str, bytes], algorithm: str) -> Json:
    """The content of `config.json`.

    Raises:
        EngineError: CONTENT_INVALID, it is damaged or that of another algorithm.
    """
    config = table_of(files, CONFIG)
    if not isinstance(config, dict) or config.get("algorithm") != algorithm:
        raise EngineError("CONTENT_INVALID", f"{CONFIG} is not that of a model of {algorithm}.", detail=CONFIG)
    return config


def with_weights(model: M, files: dict[str, bytes]) -> M:
    """The model with the weights of `model.safetensors`, for predictions.

    Raises:
        EngineError: CONTENT_INVALID, the file is missing, damaged, or of another shape.
    """
    if WEIGHTS not in files:
        raise EngineError("CONTENT_INVALID", f"The model has no file {WEIGHTS}.", detail=WEIGHTS)
    try:
        model.load_state_dict(load(files[WEIGHTS]), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise EngineError(
            "CONTENT_INVALID", f"{WEIGHTS} does not fit {CONFIG}, or is damaged.", detail=WEIGHTS
        ) from error
    return model.eval()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
