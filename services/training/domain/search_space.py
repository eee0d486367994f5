"""What a search varies: dimensions, each a value of the specification with the values that it may take."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from services.training.domain.spec import invalid
from services.training.domain.spec_paths import Json, Value, read

Point = dict[str, Value]

_GRID_POINTS = 3
# A grid is listed in full; this bounds what a request can make the service list.
MOST_TRIALS = 500


class Kind(StrEnum):
    """How the values of a dimension lie."""

    UNIFORM = "uniform"
    LOG_UNIFORM = "log_uniform"
    INTEGER = "integer"
    CATEGORICAL = "categorical"


@dataclass(frozen=True)
class Dimension:
    """One value that is varied.

    Attributes:
        path: where it is in the specification.
        low, high: ends of a range, both included.
        step: between two integers.
        points: values that a grid takes of a range of reals.
        choices: of a categorical dimension.
    """

    path: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    step: int = 1
    points: int = _GRID_POINTS
    choices: tuple[Value, ...] = ()

    @property
    def size(self) -> int | None:
        """How many values it has; None: more than can be counted."""
        match self.kind:
            case Kind.INTEGER:
                return int(self.high - self.low) // self.step + 1
            case Kind.CATEGORICAL:
                return len(self.choices)
            case Kind.UNIFORM | Kind.LOG_UNIFORM:
                return None

    def at(self, share: float) -> Value:
        """The value below which a share (0 to 1, 1 excluded) of the dimension lies."""
        match self.kind:
            case Kind.UNIFORM:
                return self.low + share * (self.high - self.low)
            case Kind.LOG_UNIFORM:
                return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
            case Kind.INTEGER:
                return int(self.low) + int(share * (self.size or 1)) * self.step
            case Kind.CATEGORICAL:
                return self.choices[int(share * len(self.choices))]

    def position(self, value: Value) -> float:
        """Where a value lies, from 0 (low, first choice) to 1 (high, last choice)."""
        if self.kind is Kind.CATEGORICAL:
            return self.choices.index(value) / max(1, len(self.choices) - 1)
        if self.high == self.low:
            return 0.0
        number = float(value)
        if self.kind is Kind.LOG_UNIFORM:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def contains(self, value: Value) -> bool:
        """Whether a value is one of its own."""
        if self.kind is Kind.CATEGORICAL:
            return value in self.choices
        if isinstance(value, str | bool) or not self.low <= value <= self.high:
            return False
        return self.kind is not Kind.INTEGER or (value - self.low) % self.step == 0

    def grid(self) -> list[Value]:
        """The values that a grid takes, in order."""
        if self.size is not None:
            return [self.at((index + 0.5) / self.size) for index in range(self.size)]
        # Ends as they were written: a logarithm and its power may miss them by a bit.
        inner = [self.at(index / (self.points - 1)) for index in range(1, self.points - 1)]
        return [self.low, *inner, self.high] if self.points > 1 else [self.low]

    @property
    def ends(self) -> list[Value]:
        """The values that stand for all others in a check."""
        match self.kind:
            case Kind.CATEGORICAL:
                return list(self.choices)
            case Kind.INTEGER:
                return [int(self.low), int(self.low) + ((self.size or 1) - 1) * self.step]
            case Kind.UNIFORM | Kind.LOG_UNIFORM:
                return [self.low, self.high]

    def check(self, field: str) -> None:
        """Raises INVALID_FIELD where its own numbers do not fit each other."""
        if self.kind is Kind.CATEGORICAL:
            if len(set(map(repr, self.choices))) < len(self.choices):
                raise invalid(f"{field}.categorical", "has a value twice")
            return
        if self.low >= self.high:
            raise invalid(f"{field}.{self.kind.value}", f"must have low below high, not {self.low:g} and {self.high:g}")
        if self.kind is Kind.LOG_UNIFORM and self.low <= 0:
            raise invalid(f"{field}.log_uniform.low", f"must be above 0, not {self.low:g}")
        if self.size is None and self.points > MOST_TRIALS:
            raise invalid(f"{field}.{self.kind.value}.points", f"must be at most {MOST_TRIALS}")


@dataclass(frozen=True)
class Space:
    """All dimensions of a search; their paths differ."""

    dimensions: tuple[Dimension, ...]

    @property
    def size(self) -> int | None:
        """How many points it has; None: more than can be counted."""
        sizes = [dimension.size for dimension in self.dimensions]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    @property
    def grid_size(self) -> int:
        """How many points its grid has."""
        return math.prod(dimension.size or dimension.points for dimension in self.dimensions)

    def grid(self) -> list[Point]:
        """Every combination, the last dimension fastest."""
        paths = [dimension.path for dimension in self.dimensions]
        combined = itertools.product(*(dimension.grid() for dimension in self.dimensions))
        return [dict(zip(paths, values, strict=True)) for values in combined]

    def random(self, chance: random.Random) -> Point:
        """A point with every dimension drawn by itself."""
        return {dimension.path: dimension.at(chance.random()) for dimension in self.dimensions}

    def stratified(self, seed: int, number: int, strata: int) -> Point:
        """Point `number` of a Latin hypercube (McKay et al., 1979): of `strata` points each dimension has one in every
        stratum.
        """
        point: Point = {}
        for dimension in self.dimensions:
            chance = random.Random(f"{seed}/{dimension.path}")  # noqa: S311 - chance, no secret
            order = chance.sample(range(strata), strata)
            offsets = [chance.random() for _ in range(strata)]
            point[dimension.path] = dimension.at((order[number] + offsets[number]) / strata)
        return point

    def point_of(self, document: Json) -> Point | None:
        """The specification's own values; None where one of them lies outside."""
        own = {dimension.path: read(document, dimension.path, "search.space") for dimension in self.dimensions}
        inside = all(dimension.contains(own[dimension.path]) for dimension in self.dimensions)
        return own if inside else None

    def check(self, document: Json) -> None:
        """Raises INVALID_FIELD for what does not fit the specification that it is about."""
        seen: set[str] = set()
        for index, dimension in enumerate(self.dimensions):
            field = f"search.space[{index}]"
            if dimension.path in seen:
                raise invalid(f"{field}.path", f"names {dimension.path} a second time")
            seen.add(dimension.path)
            dimension.check(field)
            _check_type(dimension, read(document, dimension.path, f"{field}.path"), field)

    def to_json(self) -> list[Json]:
        """For rows and engines; `from_json` reads it back."""
        return [asdict(dimension) for dimension in self.dimensions]

    @classmethod
    def from_json(cls, data: Sequence[Json]) -> Space:
        """What `to_json` wrote."""
        return cls(tuple(_dimension(each) for each in data))


def _dimension(data: Json) -> Dimension:
    values: dict[str, Any] = {**data, "kind": Kind(data["kind"]), "choices": tuple(data["choices"])}
    return Dimension(**values)


def _check_type(dimension: Dimension, current: Value, field: str) -> None:
    """The values must be of the kind of the one that they replace."""
    if isinstance(current, bool | str):
        wanted, word = (bool, "true or false") if isinstance(current, bool) else (str, "text")
        fits = dimension.kind is Kind.CATEGORICAL and all(isinstance(choice, wanted) for choice in dimension.choices)
    elif dimension.kind is Kind.CATEGORICAL:
        numbers = [choice for choice in dimension.choices if isinstance(choice, int | float)]
        fits = len(numbers) == len(dimension.choices) and not any(isinstance(choice, bool) for choice in numbers)
        whole = isinstance(current, float) or all(float(number).is_integer() for number in numbers)
        fits, word = fits and whole, "a number" if isinstance(current, float) else "a whole number"
    else:
        fits, word = isinstance(current, float) or dimension.kind is Kind.INTEGER, "a whole number"
    if not fits:
        raise invalid(f"{field}.{dimension.kind.value}", f"does not fit {dimension.path}, which is {word}")
