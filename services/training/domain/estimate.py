"""What a training needs, guessed before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass

from services.training.domain.adapter import Adapter
from services.training.domain.run_load import (
    CHARACTERS_A_TOKEN,
    Load,
    Rates,
    RowFacts,
    Work,
    full,
    measure_load,
    sequences,
    step_load,
    work_of,
)
from services.training.domain.spec import Architecture, Method, Phase, TrainingSpec

__all__ = ["Estimate", "Rates", "adapter_parameters", "estimate", "work_of"]

# Reading, the first calls, writing the model.
_FIXED_SECONDS = 0.5
# Starting a group of workers, its collective operations and its end: 17 s on two cores.
_GROUP_SECONDS = 17.0
# Held-out rows that are asked at most, and how often: before and after.
_HELDOUT_ROWS = {Method.PRETRAIN: 128, Method.GRPO: 128}
_MOST_HELDOUT_ROWS, _MEASURES = 512, 2
# The effect of a pre-training is measured by two models over so many steps at most; see engines/probe.py.
_PROBE_STEPS, _PROBE_SHARE, _PROBE_MODELS = 40, 0.1, 2
# Learning a tokenizer, and encoding, characters a second.
_TOKENIZER_RATE, _ENCODE_RATE = 1.5e6, 2.0e6
# A checkpoint has weights and two moments: made into bytes, hashed, and written to the disk.
_CHECKPOINT_BYTES, _WRITE_RATE = 12, 150e6

# Weights, gradients and two moments of AdamW in single precision. A checkpoint makes bytes of all but the gradients.
_BYTES_A_PARAMETER = 16
_FLOAT = 4
# A frozen weight beside an adapter has neither gradient nor moments. Quantised: its bits, and a scale of eight bits
# for each block of 64 (Dettmers et al., 2023, section 3).
_FROZEN_BYTES = {0: 4.0, 8: 8 / 8 + 1 / 64, 4: 4 / 8 + 1 / 64}
# Tensors of the width of the hidden state that one layer keeps for its backward pass, feed-forward ones counted apart,
# with what the heap loses between them. An adapter keeps its share of the outputs of its targets.
_KEPT_HIDDEN, _KEPT_WIDE = 19, 4
_KEPT_BY_ADAPTER = 1.5
# Logits, their gradient and the soft-maxed copy of a step; logits and the copy of a batch of held-out rows.
_KEPT_LOGITS, _HELDOUT_LOGITS, _HELDOUT_BATCH = 3, 2, 32
# A worker process with torch and transformers loaded, before any data: 585 MiB, and what a longer run adds to its heap.
_PROCESS_BYTES = 600 << 20


@dataclass(frozen=True)
class Estimate:
    """Guesses.

    Attributes:
        seconds: from the start of the engine to the finished model; 0 where there is no measured rate (GPUs).
        memory_bytes: of all workers together, at most.
        parameter_count: of the model.
        trained_parameter_count: those that learn.
        tokens: read over all phases.
    """

    seconds: float
    memory_bytes: int
    parameter_count: int
    trained_parameter_count: int
    tokens: int


def estimate(
    spec: TrainingSpec, base_parameters: int = 0, work: Work | None = None, rates: Rates | None = None
) -> Estimate:
    """Time and memory of a training.

    Args:
        base_parameters: of the base model version; 0: there is none.
        work: the rows; None: they fill the context, and nothing is held out.
        rates: of a worker; None: those of the reference machine.
    """
    shape, given = spec.architecture, work or full(spec)
    parameters = base_parameters or shape.parameter_count
    trained = parameters if spec.adapter is None else adapter_parameters(shape, spec.adapter)
    tokens = sum(
        phase.steps * phase.batch_size * sequences(phase) * rows.tokens
        for phase, rows in zip(spec.phases, given.phases, strict=True)
    )
    seconds = 0.0
    if not spec.gpus_per_worker:
        seconds = _seconds(spec, given, rates or Rates(), parameters, trained)
    return Estimate(seconds, _memory(spec, given, parameters, trained), parameters, trained, round(tokens))


def _seconds(spec: TrainingSpec, work: Work, rates: Rates, parameters: int, trained: int) -> float:
    shape = spec.architecture
    body = max(1, parameters - shape.vocabulary_size * shape.hidden_size)
    load, characters = Load(), 0.0
    for number, (phase, rows) in enumerate(zip(spec.phases, work.phases, strict=True)):
        step = step_load(spec, phase, rows, body, trained)
        held = (
            min(_heldout(spec, phase, rows, work), _HELDOUT_ROWS.get(phase.method, _MOST_HELDOUT_ROWS)) / spec.workers
        )
        probed = 0.0
        if _is_probed(spec, number) and work.heldout:
            probed = _PROBE_MODELS * min(phase.steps, max(10.0, min(_PROBE_STEPS, phase.steps * _PROBE_SHARE)))
        load += step * (phase.steps + probed)
        times = _MEASURES + (_PROBE_MODELS if probed else 0)
        load += measure_load(spec, phase, rows, body, held) * times
        characters += min(work.rows, phase.steps * phase.batch_size) * rows.characters / _ENCODE_RATE
    if not spec.adapter and parameters == shape.parameter_count and work.phases:
        characters += work.rows * work.phases[0].characters / _TOKENIZER_RATE
    written = trained * _CHECKPOINT_BYTES * (spec.steps // spec.checkpoint_period)
    written += (trained * len(spec.phases) + parameters) * _FLOAT
    group = _GROUP_SECONDS if spec.workers > 1 else 0.0
    return _FIXED_SECONDS + group + load.seconds(rates) + characters + written / _WRITE_RATE


def _heldout(spec: TrainingSpec, phase: Phase, rows: RowFacts, work: Work) -> float:
    """Held-out sequences that there are: texts are packed, everything else is a row."""
    if phase.method is not Method.PRETRAIN:
        return float(work.heldout)
    return work.heldout * rows.characters / CHARACTERS_A_TOKEN / spec.architecture.sequence_length


def _is_probed(spec: TrainingSpec, number: int) -> bool:
    phases = spec.phases
    follows = number > 0 and phases[number - 1].method is Method.PRETRAIN
    return spec.probe and spec.adapter is None and follows and phases[number].method is Method.SFT


def adapter_parameters(architecture: Architecture, adapter: Adapter) -> int:
    """Parameters of a LoRA: rank times the inputs and outputs of each target."""
    hidden, wide = architecture.hidden_size, architecture.intermediate_size
    key_value = architecture.key_value_heads * (hidden // architecture.heads)
    shapes = {
        "q_proj": hidden + hidden,
        "k_proj": hidden + key_value,
        "v_proj": hidden + key_value,
        "o_proj": hidden + hidden,
        "gate_proj": hidden + wide,
        "up_proj": hidden + wide,
        "down_proj": hidden + wide,
    }
    # A target with another name is some other cut of the same matrices: the largest is a guess from above.
    widths = [shapes.get(name, hidden + 2 * wide) for name in adapter.target_modules] or list(shapes.values())
    return architecture.layers * adapter.rank * sum(widths)


def _memory(spec: TrainingSpec, work: Work, parameters: int, trained: int) -> int:
    pairs = list(zip(spec.phases, work.phases, strict=True))
    largest = max(_activations(spec, phase, rows) for phase, rows in pairs)
    looked_at = max(_heldout_bytes(spec, phase, rows, work) for phase, rows in pairs)
    frozen = 0.0 if spec.adapter is None else parameters * _FROZEN_BYTES[spec.adapter.quantize_base_bits]
    frozen += max(_frozen_models(phase) for phase in spec.phases) * parameters * _FLOAT
    each = _PROCESS_BYTES + round(frozen)
    state = spec.workers * trained * _BYTES_A_PARAMETER
    if spec.distribution.shards:
        # Divided; but every worker begins with the whole model.
        state = trained * _BYTES_A_PARAMETER + spec.workers * parameters * _FLOAT
    # The leading worker keeps the memory that it copies checkpoints to.
    written = trained * _CHECKPOINT_BYTES if spec.steps > spec.checkpoint_period else 0
    return spec.workers * each + state + round(largest + spec.workers * looked_at + written)


def _frozen_models(phase: Phase) -> int:
    """Models beside the one that learns, each taken to be as large: reference, reward model, teacher."""
    return (phase.method is Method.GRPO) + phase.shares_vocabulary


def _activations(spec: TrainingSpec, phase: Phase, rows: RowFacts) -> float:
    """Bytes of activations of one step over all workers."""
    shape, count = spec.architecture, phase.batch_size * sequences(phase)
    layer = _KEPT_HIDDEN * shape.hidden_size + _KEPT_WIDE * shape.intermediate_size
    if spec.adapter is not None:
        layer += _KEPT_BY_ADAPTER * (5 * shape.hidden_size + 2 * shape.intermediate_size)
    logits = _KEPT_LOGITS * shape.vocabulary_size * _places(phase, rows)
    kept = shape.layers * layer
    if spec.distribution.activation_checkpointing:
        # The input of each layer, and the inside of the one that is computed again.
        kept = shape.layers * shape.hidden_size + layer
    return count * _FLOAT * (rows.longest * kept + logits)


def _heldout_bytes(spec: TrainingSpec, phase: Phase, rows: RowFacts, work: Work) -> float:
    """Bytes of the logits of a batch of held-out rows, beside what the heap keeps of the steps."""
    count = min(_HELDOUT_BATCH, _heldout(spec, phase, rows, work)) * (2 if phase.compares else 1)
    return _FLOAT * _HELDOUT_LOGITS * count * _places(phase, rows) * spec.architecture.vocabulary_size


def _places(phase: Phase, rows: RowFacts) -> float:
    """Places of a sequence at which logits are computed."""
    if phase.method is Method.REWARD:
        return 0.0
    return rows.tokens if phase.method is Method.PRETRAIN else rows.answer
