"""What a training needs, guessed before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass

from services.training.domain.adapter import Adapter
from services.training.domain.spec import Architecture, Method, Phase, TrainingSpec

# One thread of the reference machine (2 cores, no GPU) did 6,600 tokens a second with 1.3 million parameters:
# at 6 operations a parameter and token (Kaplan et al., 2020, section 2.1) that is 52e9 operations a second.
OPERATIONS_A_THREAD = 52e9
# Starting the workers, reading and encoding, held-out figures, writing the model.
FIXED_SECONDS = 35.0
# Weights, gradients and two moments of AdamW in single precision.
_BYTES_A_PARAMETER = 16
_FLOAT = 4
# A frozen weight beside an adapter has neither gradient nor moments. Quantised: its bits, and a scale of eight bits
# for each block of 64 (Dettmers et al., 2023, section 3).
_FROZEN_BYTES = {0: 4.0, 8: 8 / 8 + 1 / 64, 4: 4 / 8 + 1 / 64}
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
        trained_parameter_count: those that learn.
        tokens: read over all phases, at most.
    """

    seconds: float
    memory_bytes: int
    parameter_count: int
    trained_parameter_count: int
    tokens: int


def estimate(spec: TrainingSpec, base_parameters: int = 0) -> Estimate:
    """Time and memory of a training. An upper guess: rows that are shorter than the context cost less.

    Args:
        base_parameters: of the base model version; 0: there is none.
    """
    architecture = spec.architecture
    parameters = base_parameters or architecture.parameter_count
    trained = parameters if spec.adapter is None else adapter_parameters(architecture, spec.adapter)
    tokens = sum(phase.steps * phase.batch_size * _sequences(phase) for phase in spec.phases)
    tokens *= architecture.sequence_length
    operations = sum(_operations(spec, phase, parameters) for phase in spec.phases)
    rate = OPERATIONS_A_THREAD * spec.workers * spec.threads_per_worker
    seconds = 0.0 if spec.gpus_per_worker else FIXED_SECONDS + operations / rate
    largest = max(_activation_bytes(spec, phase) for phase in spec.phases)
    frozen = 0.0 if spec.adapter is None else parameters * _FROZEN_BYTES[spec.adapter.quantize_base_bits]
    frozen += max(_frozen_models(phase) for phase in spec.phases) * parameters * _FLOAT
    state = spec.workers * trained * _BYTES_A_PARAMETER
    if spec.distribution.shards:
        # Divided; but every worker begins with the whole model.
        state = trained * _BYTES_A_PARAMETER + spec.workers * parameters * _FLOAT
    memory = spec.workers * (_PROCESS_BYTES + round(frozen)) + state + largest
    return Estimate(seconds, memory, parameters, trained, tokens)


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


def _operations(spec: TrainingSpec, phase: Phase, parameters: int) -> float:
    architecture = spec.architecture
    tokens = phase.steps * phase.batch_size * _sequences(phase) * architecture.sequence_length
    if phase.prompts:
        # Logits are computed at the answer only; the output embedding is not multiplied elsewhere.
        parameters -= architecture.vocabulary_size * architecture.hidden_size
    # Frozen weights have no gradient of their own, which is a third of the work; a forward pass is another third.
    update = 6.0 if spec.adapter is None else 4.0
    if spec.distribution.activation_checkpointing:
        update += 2.0
    return (update * phase.updates + 2.0 * _readings(phase)) * parameters * tokens


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
    kept = architecture.layers * layer
    if spec.distribution.activation_checkpointing:
        # The input of each layer, and the inside of the one that is computed again.
        kept = architecture.layers * architecture.hidden_size + layer
    return sequences * _FLOAT * (architecture.sequence_length * kept + logits)
