"""What a caller writes to begin a fine-tuning job, checked field by field. Raises ParameterError."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from services.gateway.domain.fine_tuning import MOST_BATCH, Hyperparameters
from services.gateway.http.json_message import kind_of
from services.gateway.http.openai.errors import ParameterError

SUPERVISED, DPO = "supervised", "dpo"
_METHODS = (SUPERVISED, DPO, "reinforcement")
_FIELDS = (
    "model",
    "training_file",
    "validation_file",
    "hyperparameters",
    "method",
    "suffix",
    "seed",
    "metadata",
    "integrations",
)
# By method.
HYPERPARAMETERS = {
    SUPERVISED: ("n_epochs", "batch_size", "learning_rate_multiplier"),
    DPO: ("n_epochs", "batch_size", "learning_rate_multiplier", "beta"),
}
# https://platform.openai.com/docs/api-reference/fine-tuning/create
_MOST_SUFFIX = 64
_MOST_EPOCHS = 50
_MOST_MULTIPLIER = 1e4
_MOST_BETA = 2.0
_MOST_PAIRS, _MOST_KEY, _MOST_VALUE = 16, 64, 512
_MOST_NAME = 512
_MOST_SEED = (1 << 31) - 1
# It becomes a part of a name whose parts are separated by colons.
_SUFFIX = re.compile(r"[A-Za-z0-9._-]*\Z")


@dataclass(frozen=True)
class JobRequest:
    """A checked request.

    Attributes:
        model: what to begin with, as the caller named it.
        method: `supervised` or `dpo`.
        seed: None: chosen here.
    """

    model: str
    training_file: str
    validation_file: str
    suffix: str
    seed: int | None
    metadata: dict[str, str]
    method: str
    hyperparameters: Hyperparameters


def parse_job(data: Any) -> JobRequest:
    """A request to POST /v1/fine_tuning/jobs. Raises ParameterError."""
    body = _object(None, data, _FIELDS)
    if body.get("integrations"):
        raise ParameterError("integrations", "integrations: none are supported.", "unsupported_parameter")
    for name in ("model", "training_file"):
        if not body.get(name):
            raise ParameterError(name, f"{name}: it is needed.", "missing_required_parameter")
    method, hyperparameters = _chosen(body)
    return JobRequest(
        model=_text("model", body["model"]),
        training_file=_text("training_file", body["training_file"]),
        validation_file=_text("validation_file", body.get("validation_file") or ""),
        suffix=_suffix(body.get("suffix") or ""),
        seed=None if body.get("seed") is None else _whole("seed", body["seed"], 0, _MOST_SEED),
        metadata=_metadata(body.get("metadata") or {}),
        method=method,
        hyperparameters=hyperparameters,
    )


def _chosen(body: dict[str, Any]) -> tuple[str, Hyperparameters]:
    """The method, and its hyper-parameters inside `method` or at their old place."""
    method = body.get("method")
    if method is None:
        return SUPERVISED, _hyperparameters("hyperparameters", body.get("hyperparameters"), SUPERVISED)
    method = _object("method", method, ("type", *_METHODS))
    kind = method.get("type")
    if kind not in _METHODS:
        raise ParameterError("method.type", f"method.type: must be one of {', '.join(_METHODS)}.", "invalid_value")
    if kind not in HYPERPARAMETERS:
        message = f"method.type: {kind} is not supported; {' and '.join(HYPERPARAMETERS)} are."
        raise ParameterError("method.type", message, "unsupported_method")
    other = next((name for name in _METHODS if name != kind and method.get(name) is not None), None)
    if other is not None:
        raise ParameterError(f"method.{other}", f"method.{other}: the type is {kind}.")
    if body.get("hyperparameters") is not None:
        raise ParameterError("hyperparameters", "hyperparameters: they belong into method when method is given.")
    inner = _object(f"method.{kind}", method.get(kind) or {}, ("hyperparameters",))
    return kind, _hyperparameters(f"method.{kind}.hyperparameters", inner.get("hyperparameters"), kind)


def _hyperparameters(param: str, data: Any, method: str) -> Hyperparameters:
    given = _object(param, data or {}, HYPERPARAMETERS[method])

    def chosen(name: str) -> Any:
        value = given.get(name)
        return None if value == "auto" else value

    epochs, batch = chosen("n_epochs"), chosen("batch_size")
    return Hyperparameters(
        n_epochs=None if epochs is None else _whole(f"{param}.n_epochs", epochs, 1, _MOST_EPOCHS),
        batch_size=None if batch is None else _whole(f"{param}.batch_size", batch, 1, MOST_BATCH),
        learning_rate_multiplier=_positive(
            f"{param}.learning_rate_multiplier", chosen("learning_rate_multiplier"), _MOST_MULTIPLIER
        ),
        beta=_positive(f"{param}.beta", chosen("beta"), _MOST_BETA),
    )


def _object(param: str | None, value: Any, known: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ParameterError(param, f"{param or 'The body'}: must be an object, not {kind_of(value)}.", "invalid_type")
    for name in value:
        if name not in known:
            shown = f"{param}.{name[:64]}" if param else name[:64]
            raise ParameterError(shown, f"Unknown parameter: {shown!r}.", "unknown_parameter")
    return value


def _text(param: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ParameterError(param, f"{param}: must be a string, not {kind_of(value)}.", "invalid_type")
    if len(value) > _MOST_NAME:
        raise ParameterError(param, f"{param}: is longer than {_MOST_NAME} characters.")
    return value


def _suffix(value: Any) -> str:
    text = _text("suffix", value)
    if len(text) > _MOST_SUFFIX or not _SUFFIX.match(text):
        message = f"suffix: at most {_MOST_SUFFIX} letters, digits, dots, dashes and underscores."
        raise ParameterError("suffix", message, "invalid_value")
    return text


def _whole(param: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ParameterError(param, f"{param}: must be a whole number, not {kind_of(value)}.", "invalid_type")
    if not least <= value <= most:
        raise ParameterError(param, f"{param}: must lie between {least} and {most}.", "invalid_value")
    return value


def _positive(param: str, value: Any, most: float) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ParameterError(param, f"{param}: must be a number or auto, not {kind_of(value)}.", "invalid_type")
    if not 0 < value <= most:
        message = f"{param}: must be more than 0 and at most {most:g}."
        raise ParameterError(param, message, "invalid_value")
    return float(value)


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ParameterError("metadata", f"metadata: must be an object, not {kind_of(value)}.", "invalid_type")
    if len(value) > _MOST_PAIRS:
        raise ParameterError("metadata", f"metadata: has more than {_MOST_PAIRS} pairs.")
    for key, text in value.items():
        if not isinstance(text, str) or len(key) > _MOST_KEY or len(text) > _MOST_VALUE:
            message = f"metadata.{key[:64]}: keys have at most {_MOST_KEY} characters, values are texts of at most "
            raise ParameterError(f"metadata.{key[:64]}", f"{message}{_MOST_VALUE}.")
    return value
