"""The work of a training in the three things that take a processor's time: arithmetic, memory traffic, and calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.training.domain.adapter import Adapter
from services.training.domain.spec import PLACEHOLDER, Architecture, Method, Phase, TrainingSpec

if TYPE_CHECKING:
    from services.training.domain.preflight import DataFacts

# A byte-level BPE of a few thousand tokens: characters of English prose a token. Measured 3.5 on docstrings.
CHARACTERS_A_TOKEN = 3.5
_FLOAT = 4
# Tokens that are kept free for an answer where the answers are not listed; see engines/encode.py.
_ANSWER_ROOM = 17.0
# Of a forward pass of one layer of transformers' Llama on the CPU: tensors of the width of the hidden state and of the
# feed-forward state that are read or written, and operations that are called.
_HIDDEN_MOVES, _WIDE_MOVES, _LAYER_CALLS, _STEP_CALLS = 40, 8, 70, 250
# Logits are made, copied, soft-maxed and compared.
_LOGIT_MOVES = 12
# A sweep that reads several tensors and allocates its result takes so many times as long as the plain one that is
# measured: fitted to the ten recipes of tests/bench/estimates.py.
_SWEEPS = 10.0
# A backward pass does twice the products of the forward pass, moves as much again and more, and calls as often.
_BACKWARD_OPERATIONS, _BACKWARD_MOVES, _BACKWARD_CALLS = 2.0, 1.5, 1.5
# AdamW reads gradients and reads and writes weights and both moments, in one sweep; clipping takes two.
_OPTIMISER_MOVES, _OPTIMISER_CALLS = 10, 16
# Matrices and vectors of a layer.
_LAYER_TENSORS = 9
_HELDOUT_BATCH = 32
# An adapter adds two small products to each of its targets, with dropout and a scale; all of them together are of the
# width of five hidden states and two feed-forward states.
_ADAPTER_CALLS, _TARGETS, _ADAPTER_MOVES = 6, 7, 16
# Of all that is known of a machine, what the newest measurement says.
_NEWEST_SHARE = 0.25


@dataclass(frozen=True)
class Rates:
    """How fast one worker computes.

    Attributes:
        operations: of matrix products, a second.
        bandwidth: bytes of memory traffic a second.
        call_seconds: of an operation on almost nothing.
    """

    # One thread of the reference machine.
    operations: float = 90e9
    bandwidth: float = 150e9
    call_seconds: float = 1.2e-6

    def followed_by(self, newer: Rates) -> Rates:
        """What to expect after one more measurement: the geometric mean, in which it counts for a quarter. The same
        machine is half as fast again from one minute to the next where others have a part of it.
        """

        def mean(old: float, new: float) -> float:
            return old ** (1 - _NEWEST_SHARE) * new**_NEWEST_SHARE

        return Rates(
            mean(self.operations, newer.operations),
            mean(self.bandwidth, newer.bandwidth),
            mean(self.call_seconds, newer.call_seconds),
        )


@dataclass(frozen=True)
class RowFacts:
    """What is known of the rows of a phase.

    Attributes:
        tokens: mean of a sequence as it is computed: prompt and answer, cut to the context.
        longest: of a long sequence: nine of ten are shorter.
        answer: of these, mean of the answer.
        characters: mean of all columns that the phase reads.
    """

    tokens: float
    longest: float
    answer: float
    characters: float


@dataclass(frozen=True)
class Work:
    """The data of a training.

    Attributes:
        rows, heldout: rows to learn from, and rows that are held out.
        phases: of each phase.
    """

    rows: int
    heldout: int
    phases: tuple[RowFacts, ...]


@dataclass(frozen=True)
class Load:
    """Arithmetic operations, bytes moved, and calls."""

    operations: float = 0.0
    moved: float = 0.0
    calls: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(self.operations + other.operations, self.moved + other.moved, self.calls + other.calls)

    def __mul__(self, times: float) -> Load:
        return Load(self.operations * times, self.moved * times, self.calls * times)

    def seconds(self, rates: Rates) -> float:
        """How long a worker takes that does nothing at once."""
        swept = _SWEEPS * self.moved / rates.bandwidth
        return self.operations / rates.operations + swept + self.calls * rates.call_seconds


def work_of(spec: TrainingSpec, data: Sequence[DataFacts]) -> Work:
    """What a look at some rows says; without rows to look at every sequence fills the context.

    Args:
        data: the version to learn from first, then the held-out one if there is one.
    """
    sample = data[0].sample if data else ()
    rows = [facts.row_count for facts in data]
    phases = tuple(_row_facts(spec, phase, sample) for phase in spec.phases)
    return Work(rows[0] if rows else 0, rows[1] if len(rows) > 1 else 0, phases)


def full(spec: TrainingSpec) -> Work:
    """Rows that fill the context, half of it with the answer: an upper guess."""
    return Work(0, 0, (_fill(spec),) * len(spec.phases))


def mean_tokens(lengths: Sequence[float]) -> float:
    """Mean tokens of sequences, from the tokens of each of a sample."""
    return sum(lengths) / len(lengths)


def _fill(spec: TrainingSpec) -> RowFacts:
    length = float(spec.architecture.sequence_length)
    return RowFacts(length, length, length / 2, length * CHARACTERS_A_TOKEN)


def _row_facts(spec: TrainingSpec, phase: Phase, sample: Sequence[dict[str, str]]) -> RowFacts:
    length, rows = float(spec.architecture.sequence_length), [row for row in sample if row.get(phase.columns[0])]
    if not rows:
        return _fill(spec)
    characters = sum(len(row.get(column, "")) for row in rows for column in phase.columns) / len(rows)
    if phase.method is Method.PRETRAIN:
        return RowFacts(length, length, 0.0, characters)
    if phase.messages_column:
        lengths = sorted(min(length, _tokens(row[phase.messages_column])) for row in rows)
        tokens = mean_tokens(lengths)
        return RowFacts(tokens, _long(lengths), tokens / 2, characters)
    examples = [found for row in rows for found in _examples(phase, row, length)]
    if not examples:
        return _fill(spec)
    lengths = sorted(prompt + answer for prompt, answer in examples)
    return RowFacts(mean_tokens(lengths), _long(lengths), mean_tokens([each for _, each in examples]), characters)


def _examples(phase: Phase, row: dict[str, str], length: float) -> list[tuple[float, float]]:
    """Tokens of prompt and answer of each sequence of a row.

    Prompts are cut so that a short answer fits, and a row with an answer that does not is left out, as the engine does.
    """
    around = len(phase.prompt_template.replace(PLACEHOLDER, ""))
    whole = 1 + (len(row[phase.text_column]) + around) / CHARACTERS_A_TOKEN
    if phase.method is Method.GRPO:
        drawn = float(phase.rollouts.max_new_tokens)
        return [(min(whole, length - drawn), drawn)]
    columns = (phase.chosen_column, phase.rejected_column) if phase.compares else (phase.answer_column,)
    # The end of an answer is a token too.
    answers = [1 + _tokens(row.get(column, "")) for column in columns]
    room = 1 + max(map(_tokens, phase.answers)) if phase.answers else _ANSWER_ROOM
    prompt = min(whole, length - room)
    return [(prompt, answer) for answer in answers] if prompt + max(answers) <= length else []


def _tokens(text: str) -> float:
    return len(text) / CHARACTERS_A_TOKEN


def _long(lengths: Sequence[float]) -> float:
    """What nine of ten sorted lengths do not exceed."""
    return lengths[min(len(lengths) - 1, len(lengths) * 9 // 10)]


def sequences(phase: Phase) -> int:
    """Sequences that a row becomes."""
    if phase.method is Method.GRPO:
        return phase.rollouts.group_size
    return 2 if phase.compares else 1


def step_load(spec: TrainingSpec, phase: Phase, rows: RowFacts, body: int, trained: int) -> Load:
    """One step of one worker.

    Args:
        body: parameters of the layers, that every token meets.
        trained: parameters that learn.
    """
    shape = spec.architecture
    count = phase.batch_size * sequences(phase) / spec.workers
    places = _places(phase, count, rows)
    once = _adapted(spec, forward(shape, body, count, rows.tokens, places), count * rows.tokens)
    update = _update(spec, once) + _optimiser(shape, trained, spec.adapter)
    if spec.distribution.activation_checkpointing:
        update = update + once
    load = update * phase.updates
    if phase.method is Method.GRPO:
        # Drawn token by token, then read by the model that drew them and by the reference.
        load = (
            load
            + _drawn(phase, shape, body, count, rows, phase.rollouts.group_size)
            + once * (2.0 if not phase.frozen_version else 3.0)
        )
    elif phase.method in (Method.DPO, Method.DISTILL) and not phase.copies_answers:
        load = load + once
    return load


def measure_load(spec: TrainingSpec, phase: Phase, rows: RowFacts, body: int, held: float) -> Load:
    """One look at held-out rows, in batches of 32.

    Args:
        held: rows, or packed sequences.
    """
    if held <= 0:
        return Load()
    shape, batches = spec.architecture, max(1.0, held / _HELDOUT_BATCH)
    count = held / batches
    if phase.method is Method.GRPO:
        return _drawn(phase, shape, body, count, rows, 1) * batches
    count *= sequences(phase)
    once = forward(shape, body, count, rows.tokens, _places(phase, count, rows))
    once = _adapted(spec, once, count * rows.tokens)
    asks_another = phase.method in (Method.DPO, Method.DISTILL) and not phase.copies_answers
    return once * (batches * (2 if asks_another else 1))


def forward(shape: Architecture, body: int, count: float, length: float, places: float) -> Load:
    """One forward pass.

    Args:
        count: sequences.
        length: tokens of each.
        places: at which logits are computed.
    """
    tokens = count * length
    attention = 4.0 * shape.hidden_size * shape.layers * length
    operations = tokens * (2.0 * body + attention) + 2.0 * shape.hidden_size * shape.vocabulary_size * places
    wide = _HIDDEN_MOVES * shape.hidden_size + _WIDE_MOVES * shape.intermediate_size
    moved = _FLOAT * (tokens * shape.layers * wide + places * shape.vocabulary_size * _LOGIT_MOVES)
    return Load(operations, moved, shape.layers * _LAYER_CALLS + _STEP_CALLS)


def _places(phase: Phase, count: float, rows: RowFacts) -> float:
    if phase.method is Method.REWARD:
        return 0.0
    return count * (rows.tokens if phase.method is Method.PRETRAIN else rows.answer)


def _update(spec: TrainingSpec, once: Load) -> Load:
    """Forward and backward. Frozen weights under an adapter have no gradient of their own, which is half of the way
    back."""
    back = _BACKWARD_OPERATIONS if spec.adapter is None else _BACKWARD_OPERATIONS / 2
    return Load(once.operations * (1 + back), once.moved * (1 + _BACKWARD_MOVES), once.calls * (1 + _BACKWARD_CALLS))


def _adapted(spec: TrainingSpec, once: Load, tokens: float) -> Load:
    """A forward pass with what the adapter adds, if there is one."""
    if spec.adapter is None:
        return once
    shape, targets = spec.architecture, len(spec.adapter.target_modules) or _TARGETS
    wide = 5 * shape.hidden_size + 2 * shape.intermediate_size
    moved = _FLOAT * tokens * shape.layers * wide * _ADAPTER_MOVES * targets / _TARGETS
    return once + Load(0.0, moved, float(shape.layers * targets * _ADAPTER_CALLS))


def _optimiser(shape: Architecture, trained: int, adapter: Adapter | None) -> Load:
    tensors = shape.layers * (_LAYER_TENSORS if adapter is None else 2 * (len(adapter.target_modules) or _TARGETS))
    return Load(0.0, float(_FLOAT * trained * _OPTIMISER_MOVES), float(tensors * _OPTIMISER_CALLS))


def _drawn(phase: Phase, shape: Architecture, body: int, count: float, rows: RowFacts, copies: int) -> Load:
    """Answers, token by token, after their prompts were read once.

    Args:
        count: answers.
        copies: to each prompt.
    """
    prompt = max(1.0, rows.tokens - rows.answer)
    read = forward(shape, body, count / copies, prompt, 0.0)
    one = forward(shape, body, count, 1.0, count)
    return read + one * phase.rollouts.max_new_tokens
