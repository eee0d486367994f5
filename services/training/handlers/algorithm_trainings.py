"""What trainings of algorithms need beside those of language models: checks of parameters, a choice, the pre-flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from libs.common.auth.principal import Principal
from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError, Parent
from libs.common.errors import ArgosyError
from libs.common.rpc.call import Call
from services.training.domain.algorithm_preflight import preflight_algorithm
from services.training.domain.algorithms import SYSTEM, Entry, require_data, resolve
from services.training.domain.built_in import ENTRIES
from services.training.domain.choice import Choice, choose, require_no_data
from services.training.domain.estimate import Estimate
from services.training.domain.preflight import DataFacts, Finding
from services.training.domain.spec import invalid
from services.training.domain.trainings import TRAINED_BY, Training, TrainingRun
from services.training.store.algorithms import Algorithms, entry_of

if TYPE_CHECKING:
    from services.training.app import App

Json = dict[str, Any]

_WHERE = "training.parameters"
# More than the model of any built-in algorithm has, with its checkpoint.
_MODEL_BYTES = 64 << 20


@dataclass(frozen=True)
class Plan:
    """What a run of a training would do.

    Attributes:
        algorithm_version: that it runs; empty where none could be chosen.
        given: parameters as they stand on the training, with those that were chosen.
        parameters: all of them.
        guess: what it needs; None: it is not known.
        code_digest: of own code; empty: it is the platform's.
    """

    findings: list[Finding]
    algorithm_version: str = ""
    given: Json | None = None
    parameters: Json | None = None
    guess: Estimate | None = None
    code_digest: str = ""

    def write_out(self, training: Training, run: TrainingRun) -> None:
        """Keeps what was chosen on the training, and everything on the run."""
        training.algorithm_version, training.parameters = self.algorithm_version, self.given or {}
        run.algorithm_version, run.parameters = self.algorithm_version, self.parameters or {}
        if self.code_digest:
            run.lineage.append(Parent(self.algorithm_version, self.code_digest, TRAINED_BY))


async def require_algorithm(training: Training, call: Call[App]) -> None:
    """Refuses an algorithm that is not there for the caller, and parameters that its schema does not allow.

    Raises:
        ArgosyError: INVALID_FIELD with the path of each wrong parameter.
        DomainError: NOT_FOUND; INVALID_FIELD for a task that no algorithm has.
    """
    tasks = sorted({entry.task for entry in ENTRIES})
    if training.task and training.task not in tasks:
        raise invalid("training.task", f"must be one of {', '.join(tasks)}")
    if not training.algorithm_version:
        able = [entry for entry in ENTRIES if entry.task == training.task]
        if able and not training.dataset_version:
            require_no_data(training.task, able)
        elif able and not any(entry.reads for entry in able):
            require_data(able[0], training.dataset_version, training.validation_version)
        return
    entry, base = await _entry(training, call.uow, call.principal)
    require_data(base, training.dataset_version, training.validation_version)
    _, faults = resolve(entry, base, training.parameters, _WHERE)
    if faults:
        path, problem = faults[0]
        raise ArgosyError("INVALID_FIELD", f"{path}: {problem}", metadata={"field": path}, violations=faults)


async def plan(training: Training, data: Sequence[DataFacts], call: Call[App]) -> Plan:
    """What a run would do, and everything that is wrong with it.

    Args:
        data: the version to learn from first, then the held-out one if there is one; empty: it reads none.
    """
    findings: list[Finding] = []
    entry = base = None
    given = training.parameters
    if training.algorithm_version:
        entry, base = await _read_entry(training, call)
    if training.task and (data or entry is None):
        choice = _choice(training, data[0] if data else None)
        if isinstance(choice, Finding):
            findings += [choice] if entry is None else []
        elif entry is None or entry.name == choice.entry.name:
            findings.append(Finding("choice", False, choice.reason))
            entry = base = choice.entry
            given = choice.parameters | given
    if entry is None or base is None:
        return Plan(findings)
    parameters, faults = resolve(entry, base, given, _WHERE)
    findings += [Finding("schema", True, f"{path}: {problem}") for path, problem in faults]
    if faults:
        return Plan(findings)
    found, memory = preflight_algorithm(entry, parameters, data, call.deps.memory_bytes)
    digest = entry.program.digest if entry.program is not None else ""
    storage = _MODEL_BYTES if entry.program is None else entry.program.limits.max_disk_bytes
    guess = Estimate(0.0, memory, 0, 0, 0, storage)
    return Plan([*found, *findings], entry.name, given, parameters, guess, digest)


def _choice(training: Training, facts: DataFacts | None) -> Choice | Finding:
    try:
        return choose(training.task, facts, ENTRIES, training.parameters)
    except DomainError as error:
        return Finding("choice", True, error.message)


async def _read_entry(training: Training, call: Call[App]) -> tuple[Entry, Entry]:
    """The version in a transaction of its own: around the pre-flight there is no other."""
    subject = call.principal.subject
    uow = call.deps.database.unit_of_work(call.org, subject, deadline=call.deadline, read_only=True)
    try:
        return await _entry(training, uow, call.principal)
    finally:
        await uow.rollback()


async def _entry(training: Training, uow: UnitOfWork, principal: Principal) -> tuple[Entry, Entry]:
    """The version that a training names, if the principal may see it, and the built-in one behind it."""
    name = training.algorithm_version
    if not name.startswith(f"{SYSTEM}/"):
        await Algorithms(uow).visible(name.rsplit("/", 2)[0], principal.subject, principal.role)
    return await entry_of(uow, name)
