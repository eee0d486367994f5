"""What a training needs, guessed before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass

from services.training.domain.spec import Method, Phase, TrainingSpec

# One thread of the reference machine (2 cores, no GPU) did 6,600 tokens a second with 1.3 million parameters:
# at 6 operations a parameter and token (Kaplan et al., 2020, section 2.1) that is 52e9 operations a second.
OPERATIONS_A_THREAD = 52e9
# Starting the workers, reading and encoding, held-out figures, writing the model.
FIXED_SECONDS = 35.0
# Weights, gradients and two moments of AdamW in single precision.
_BYTES_A_PARAMETER = 16
_FLOAT = 4
# Tensors of the width of the hidden state that one layer keeps for its backward pass, feed-forward ones counted apart.
_KEPT_HIDDEN = 12
# A worker process with torch and transformers loaded, before any data.
_PROCESS_BYTES = 600 << 20


@dataclass(frozen=True)
class Estimate:
    """Guesses.

    Attributes:
        seconds: from the start of the workers to the finished model; 0 where there is no measured rate (GPUs).
        memory_bytes: of all workers together.
        parameter_count: of the model.
        tokens: read over all phases, at most.
    """

    seconds: float
    memory_bytes: int
    parameter_count: int
    tokens: int


def estimate(spec: TrainingSpec) -> Estimate:
    """Time and memory of a training. An upper guess: rows that are shorter than the context cost less."""
    architecture = spec.architecture
    parameters = architecture.parameter_count
    tokens = sum(phase.steps * phase.batch_size * _sequences(phase) for phase in spec.phases)
    tokens *= architecture.sequence_length
    operations = sum(_operations(spec, phase) for phase in spec.phases)
    rate = OPERATIONS_A_THREAD * spec.workers * spec.threads_per_worker
    seconds = 0.0 if spec.gpus_per_worker else FIXED_SECONDS + operations / rate
    largest = max(_activation_bytes(spec, phase) for phase in spec.phases)
    frozen = max(_frozen_models(phase) for phase in spec.phases) * parameters * _FLOAT
    memory = spec.workers * (_PROCESS_BYTES + parameters * _BYTES_A_PARAMETER + frozen) + largest
    return Estimate(seconds, memory, parameters, tokens)


def _sequences(phase: Phase) -> int:
    """Sequences that a row becomes."""
    if phase.method is Method.GRPO:
        return phase.rollouts.group_size
    return 2 if phase.compares else 1


def _frozen_models(phase: Phase) -> int:
    """Models beside the one that learns, each taken to be as large: reference, reward model, teacher."""
    return (phase.method is Method.GRPO) + (phase.shares_vocabulary)


def _readings(phase: Phase) -> int:
    """Forward passes over a sequence beside those of the updates."""
    if phase.method is Method.GRPO:
        # It is drawn, and read by the model that drew it.
        return 2 + _frozen_models(phase)
    return 1 if phase.method in (Method.DPO, Method.DISTILL) else 0


def _operations(spec: TrainingSpec, phase: Phase) -> float:
    architecture = spec.architecture
    tokens = phase.steps * phase.batch_size * _sequences(phase) * architecture.sequence_length
    parameters = architecture.parameter_count
    if phase.prompts:
        # Logits are computed at the answer only; the output embedding is not multiplied elsewhere.
        parameters -= architecture.vocabulary_size * architecture.hidden_size
    # A forward pass is a third of an update.
    return (6.0 * phase.updates + 2.0 * _readings(phase)) * parameters * tokens


def _activation_bytes(spec: TrainingSpec, phase: Phase) -> int:
    """Activations of one step over all workers."""
    architecture = spec.architecture
    sequences = phase.batch_size * _sequences(phase)
    layer = _KEPT_HIDDEN * architecture.hidden_size + 3 * architecture.intermediate_size
    places = 0
    if phase.method is Method.PRETRAIN:
        places = architecture.sequence_length
    elif phase.method is Method.GRPO:
        places = phase.rollouts.max_new_tokens
    # Logits, their gradient and the soft-maxed copy.
    logits = 3 * architecture.vocabulary_size * places
    return sequences * _FLOAT * (architecture.sequence_length * architecture.layers * layer + logits)
