"""The algorithm catalogue: entries, their versions, and which parameters a training may set."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Any

from libs.common.domain import DomainError, Parent, Resource
from services.training.domain import schemas
from services.training.domain.programs import Program
from services.training.domain.spec import invalid

Json = dict[str, Any]

# The organization whose algorithms are built in.
SYSTEM = "orgs/system"
# Value of argosy.common.v1.Role.
_ROLE_ADMIN = 4


class Visibility(enum.IntEnum):
    """Who sees an algorithm; numbers as in algorithm.proto."""

    OWN = 1
    ORGANIZATION = 2


class Role(enum.StrEnum):
    """What a column is to an algorithm."""

    LABEL = "label"
    NUMBER = "number"
    # A class or a number: the data say which.
    TARGET = "target"
    TEXT = "text"
    FILE = "file"
    FEATURES = "features"
    # Anything else that is read, such as boxes or a list of words.
    OTHER = "other"

    @property
    def is_answer(self) -> bool:
        """Whether it is what is learned, so that a row without it teaches nothing."""
        return self in (Role.LABEL, Role.NUMBER, Role.TARGET)


@dataclass(frozen=True)
class Needs:
    """What a run needs, `memory_bytes` before any data."""

    cpus: int = 1
    memory_bytes: int = 1 << 30
    gpus: int = 0


@dataclass(frozen=True)
class Entry:
    """A version of an algorithm, as a run uses it.

    Attributes:
        name: resource name of the version.
        task: `classification`, ...
        reads: what it learns from: `table`, `text`, `image`, ...; empty: no data.
        framework: `pytorch`, `scikit-learn`.
        code: where its engine declares it, `module:NAME`.
        columns: parameter that names a column (or columns, for FEATURES), and what that column is.
        parameters: schema of what a training may set.
        fixed: values that no training may set; they need not be in `parameters`.
        base: the version whose code it runs; empty: itself.
        program: its own code; None: that of an engine.
        pauses: whether its runs have checkpoints, behind which they can stop.
        display_name, description: of the algorithm.
    """

    name: str
    task: str
    reads: str
    framework: str
    code: str
    columns: dict[str, Role]
    parameters: Json
    fixed: Json = field(default_factory=dict[str, Any])
    base: str = ""
    needs: Needs = field(default_factory=Needs)
    program: Program | None = None
    pauses: bool = False
    display_name: str = ""
    description: str = ""

    @property
    def id(self) -> str:
        """Id of the algorithm whose version it is."""
        return self.name.split("/")[3]


@dataclass(kw_only=True)
class Algorithm(Resource):
    """An own entry of the catalogue.

    Attributes:
        visibility: value of `Visibility`.
        version_count: versions so far; they are numbered from 1.
        draft: own code that people work on.
    """

    display_name: str = ""
    description: str = ""
    visibility: int = Visibility.OWN
    version_count: int = 0
    draft: Program = field(default_factory=Program)

    @property
    def latest_version(self) -> str:
        """Name of the newest version; empty: none yet."""
        return f"{self.name}/versions/{self.version_count}" if self.version_count else ""

    def next_version(self) -> str:
        """The name of the version that comes now."""
        self.version_count += 1
        return self.latest_version

    def require_visible_to(self, subject: str, role: int) -> None:
        """Raises NOT_FOUND for whoever may not see it."""
        sees_all = role >= _ROLE_ADMIN or subject.startswith("services/")
        if self.visibility != Visibility.ORGANIZATION and subject != self.creator and not sees_all:
            raise DomainError("NOT_FOUND", f"{self.name} does not exist.", name=self.name)


@dataclass(kw_only=True)
class AlgorithmVersion(Resource):
    """A built-in version with fixed or bounded parameters, or own code. Immutable.

    Attributes:
        base_version: name of the built-in version; empty: own code.
        parameters: schema of what a training may set.
        fixed: values of others.
        program: its own code; None: that of its base.
    """

    base_version: str = ""
    parameters: Json = field(default_factory=dict[str, Any])
    fixed: Json = field(default_factory=dict[str, Any])
    program: Program | None = None

    def require_sound(self, base: Entry) -> None:
        """Raises INVALID_FIELD with the path of the first thing that its base does not have or would refuse."""
        where = "algorithm_version"
        schemas.check_schema(self.parameters, f"{where}.parameters")
        opened: Json = self.parameters.get("properties", {})
        for name in opened:
            if name in self.fixed:
                raise invalid(f"{where}.fixed.{name}", "is a parameter that trainings may set too")
        defaults = schemas.fill(self.parameters, {})
        faults = schemas.violations(base.parameters, self.fixed, f"{where}.fixed")
        faults += schemas.violations(base.parameters, defaults, f"{where}.parameters.properties")
        for path, problem in faults:
            raise invalid(path, problem)

    def entry(self, base: Entry) -> Entry:
        """The version as a run uses it."""
        return replace(base, name=self.name, base=base.name, parameters=self.parameters, fixed=self.fixed)

    def script(self, program: Program) -> Entry:
        """A version with code of its own as a run uses it."""
        return Entry(
            self.name,
            task=program.task,
            reads="" if program.without_data else "table",
            framework="python",
            code=program.entry,
            columns={},
            parameters=self.parameters,
            needs=Needs(memory_bytes=program.limits.max_memory_bytes),
            program=program,
        )

    def derive(self, base: Entry) -> None:
        """Names its base as its parent."""
        self.base_version = base.name
        self.lineage = [Parent(base.name, relation="based_on")]


def require_data(entry: Entry, dataset_version: str, validation_version: str) -> None:
    """Raises INVALID_FIELD for a training without the data that its algorithm reads, or with data that it does not."""
    if entry.reads and not dataset_version:
        raise invalid("training.dataset_version", "must be set")
    for field_name, given in (("dataset_version", dataset_version), ("validation_version", validation_version)):
        if given and not entry.reads:
            raise invalid(f"training.{field_name}", f"must be empty: {entry.id} reads no data")


def resolve(entry: Entry, base: Entry, given: Json, where: str) -> tuple[Json, list[tuple[str, str]]]:
    """All parameters of a run, and what is wrong with those that were given.

    Args:
        base: the built-in version of the entry; the entry itself where it is one. Its bounds hold for own versions too.
        given: by the training.
        where: their field, for the paths of what is wrong.

    Returns:
        The parameters, which mean something only where nothing is wrong; and paths with problems.
    """
    faults = schemas.violations(entry.parameters, given, where)
    chosen = entry.fixed | schemas.fill(entry.parameters, given)
    if not faults:
        faults = schemas.violations(base.parameters, chosen, where)
    return schemas.fill(base.parameters, chosen), faults
