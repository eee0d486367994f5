"""What would be wrong or expensive about a training, found before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.training.domain.estimate import Estimate
from services.training.domain.spec import PLACEHOLDER, Method, Phase, TrainingSpec

# A byte-level BPE of a few thousand tokens: characters of English prose a token. Measured 3.5 on docstrings.
_CHARACTERS_A_TOKEN = 3.5
_MANY_EPOCHS = 20
_LONG_SECONDS = 3600.0
# A preview of rows ends long values so.
_CUT = "…"
# Types of columns that can be read as text; `json` is not text but its own notation.
_TEXT_TYPES = frozenset({"string", "int53", "int64", "double", "bool"})


@dataclass(frozen=True)
class DataFacts:
    """What is known of a dataset version from its first rows; `handlers/row_samples.py` looks at more of them.

    Attributes:
        what: `dataset_version` or `validation_version`, for messages.
        name: resource name.
        row_count: rows.
        columns: name to type.
        sample: some rows, column to text.
    """

    what: str
    name: str
    row_count: int
    columns: dict[str, str]
    sample: Sequence[dict[str, str]]


@dataclass(frozen=True)
class Finding:
    """One thing that was found: which check, whether it stops a run, what it is."""

    check: str
    blocking: bool
    message: str


def preflight(spec: TrainingSpec, data: Sequence[DataFacts], guess: Estimate, memory_bytes: int) -> list[Finding]:
    """Everything that was found, blocking first.

    Args:
        data: the version to learn from first, then the held-out one if there is one.
        guess: time and memory of the spec.
        memory_bytes: of the machine; 0: unknown.
    """
    findings = [finding for facts in data for finding in _schema(spec, facts)]
    for name, phase in zip(spec.phase_names, spec.phases, strict=True):
        findings += _template(spec, name, phase, data[0])
        findings += _tokens(name, phase, data[0])
    findings += _memory(guess, memory_bytes)
    if guess.seconds > _LONG_SECONDS:
        findings.append(Finding("time", False, f"It will take about {guess.seconds / 3600:.1f} hours."))
    if spec.gpus_per_worker:
        findings.append(Finding("time", False, "There is no measured rate for GPUs, so the time is not estimated."))
    return sorted(findings, key=lambda finding: not finding.blocking)


def _schema(spec: TrainingSpec, facts: DataFacts) -> list[Finding]:
    findings: list[Finding] = []
    if not facts.row_count:
        findings.append(Finding("schema", True, f"{facts.what} {facts.name} has no rows."))
    have = ", ".join(sorted(facts.columns)) or "none"
    for name, phase in zip(spec.phase_names, spec.phases, strict=True):
        for column in phase.columns:
            kind = facts.columns.get(column)
            if kind is None:
                message = f"Phase {name} reads column {column!r}, which {facts.what} has not; it has {have}."
                findings.append(Finding("schema", True, message))
            elif kind not in _TEXT_TYPES and not (phase.messages_column and kind == "json"):
                message = f"Phase {name} reads column {column!r} of {facts.what}, which holds {kind}, not text."
                findings.append(Finding("schema", True, message))
    return findings


def _template(spec: TrainingSpec, name: str, phase: Phase, facts: DataFacts) -> list[Finding]:
    if not phase.prompts or phase.messages_column:
        return []
    if not set(phase.columns) <= facts.columns.keys():
        # That was told already.
        return []
    around = len(phase.prompt_template.replace(PLACEHOLDER, ""))
    room = spec.architecture.sequence_length * _CHARACTERS_A_TOKEN
    if around > room / 2:
        message = (
            f"The prompt template of {name} alone fills more than half of the context: shorten it, or raise "
            "spec.architecture.sequence_length."
        )
        return [Finding("template", around > room, message)]
    missing = _unanswered(name, phase, facts)
    return [missing] if missing else []


def _unanswered(name: str, phase: Phase, facts: DataFacts) -> Finding | None:
    """When no row that was looked at has the answers that the phase learns from; it stops a run if these are all."""
    columns = [column for column in phase.columns if column != phase.text_column]
    if not facts.sample or not columns or any(_complete(phase, columns, row) for row in facts.sample):
        return None
    where = " and ".join(repr(column) for column in columns)
    answers = "two different answers" if phase.compares else "an answer"
    if phase.has_answers and phase.answers:
        answers += f" among the {len(phase.answers)} listed ones"
    whole = len(facts.sample) >= facts.row_count
    among = f"{facts.row_count} rows" if whole else f"first {len(facts.sample)} rows"
    return Finding("template", whole, f"None of the {among} of {facts.what} has {answers} for {name} in {where}.")


def _complete(phase: Phase, columns: Sequence[str], row: Mapping[str, str]) -> bool:
    """Whether a row has the answers; of a value that was cut nobody knows what it is."""
    answers = [row.get(column, "") for column in columns]
    if not all(answers):
        return False
    if any(answer.endswith(_CUT) for answer in answers):
        return True
    if phase.compares:
        return answers[0] != answers[1]
    return not phase.answers or answers[0] in phase.answers


def _tokens(name: str, phase: Phase, facts: DataFacts) -> list[Finding]:
    # Answers that are drawn anew are not learned by heart.
    if phase.method in (Method.PRETRAIN, Method.GRPO) or not facts.row_count:
        return []
    epochs = phase.steps * phase.batch_size / facts.row_count
    if epochs <= _MANY_EPOCHS:
        return []
    return [Finding("tokens", False, f"{name} reads every row about {epochs:.0f} times; it may learn them by heart.")]


def _memory(guess: Estimate, memory_bytes: int) -> list[Finding]:
    if not memory_bytes or guess.memory_bytes <= memory_bytes * 0.8:
        return []
    have, need = memory_bytes / 2**30, guess.memory_bytes / 2**30
    message = f"It needs about {need:.1f} GiB of memory; this machine has {have:.1f}."
    return [Finding("memory", guess.memory_bytes > memory_bytes, message)]
