"""What a request of MLflow's client gives: the fields of a JSON body or of a query."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from libs.common.errors import ArgosyError
from services.gateway.http.mlflow.errors import ParameterError

Json = dict[str, Any]

# What stands for numbers that JSON does not have (protobuf's JSON mapping).
_NO_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_INT64 = 1 << 63
_WHOLE = re.compile(r"-?[0-9]{1,19}")


class Given:
    """Fields by name, read with their types; those that nobody asks for are passed over, as MLflow does.

    Args:
        values: of the body, or of the query.
        where: names the place in errors: `metrics[3].`; empty at the top.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self._values = values
        self._where = where

    @classmethod
    def of_body(cls, body: Any) -> Given:
        """Raises BODY_INVALID unless the body is an object."""
        if not isinstance(body, dict):
            raise ArgosyError("BODY_INVALID", "The body must be a JSON object.")
        return cls(body)

    def text(self, name: str, *, most: int = 8_000, needed: bool = False) -> str:
        """A text; empty if it is not given. Raises ParameterError, as all methods do."""
        value = self._values.get(name)
        if value is None or value == "":
            if needed:
                raise ParameterError(self._where + name, "it is needed")
            return ""
        if not isinstance(value, str):
            raise ParameterError(self._where + name, "must be a text")
        if len(value) > most:
            raise ParameterError(self._where + name, f"has {len(value):,} characters; {most:,} at most")
        return value

    def run_id(self) -> str:
        """`run_id`, or `run_uuid` of old clients."""
        return self.text("run_id", most=256) or self.text("run_uuid", most=256) or self.text("run_id", needed=True)

    def whole(self, name: str, usual: int) -> int:
        """A whole number."""
        value = self._values.get(name)
        if value is None:
            return usual
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not -_INT64 <= value < _INT64:
            raise ParameterError(self._where + name, "must be a whole number")
        return value

    def number(self, name: str) -> float:
        """A number, which must be there."""
        value = self._values.get(name)
        if isinstance(value, str):
            value = _NO_NUMBERS.get(value, value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise ParameterError(self._where + name, "must be a number")

    def texts(self, name: str, most: int) -> list[str]:
        """A list of texts."""
        value = self._values.get(name)
        if value is None:
            return []
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise ParameterError(self._where + name, "must be a list of texts")
        if len(found) > most:
            raise ParameterError(self._where + name, f"has {len(found):,} entries; {most:,} at most")
        return found

    def objects(self, name: str, most: int) -> list[Given]:
        """A list of objects."""
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise ParameterError(self._where + name, "must be a list of objects")
        if len(value) > most:
            raise ParameterError(self._where + name, f"has {len(value):,} entries; {most:,} at most")
        return [Given(one, f"{self._where}{name}[{number}].") for number, one in enumerate(value)]

    def one(self, name: str) -> Given:
        """An object."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise ParameterError(self._where + name, "must be an object")
        return Given(value, f"{self._where}{name}.")

    def pairs(self, name: str, most: int, longest: int) -> dict[str, str]:
        """A list of `{key, value}`; of a key given twice the last one counts."""
        return {
            one.text("key", most=250, needed=True): one.text("value", most=longest) for one in self.objects(name, most)
        }


def number_json(value: float) -> float | str:
    """A number as protobuf's JSON has it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
