"""How much of everything: the main job as the README promises it, and a short one for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# The model reads a docstring and writes the name of its package behind this.
PROMPT = "{text}\n\n### Package\n"


@dataclass(frozen=True)
class Scale:
    """Sizes of a main job.

    Attributes:
        rows: of the corpus.
        packages: how many of the largest packages the model has to tell apart.
        only: packages that the corpus takes the same number of rows of; empty: all, as they are.
        asked: column that the model gets to tell the package from.
        test_fraction: share of source files that are held out.
        architecture: of the model, as in argosy.training.v1.Architecture.
        pretrain: fields of the pre-training phase.
        tune: fields of the fine-tuning phase.
        first_try: fine-tuning steps of the model that is not good enough, which the refusal is shown with.
        max_rows: asked in an evaluation.
        margin: by which the lower bound of the score must beat the majority class.
    """

    rows: int = 60_000
    packages: int = 20
    only: tuple[str, ...] = ()
    asked: str = "text"
    test_fraction: float = 0.05
    # 1.3 million parameters: what two cores teach to tell packages apart in two minutes.
    architecture: dict[str, int] = field(
        default_factory=lambda: {
            "vocabulary_size": 4096,
            "hidden_size": 128,
            "intermediate_size": 344,
            "layers": 4,
            "heads": 4,
            "key_value_heads": 4,
            "sequence_length": 128,
        }
    )
    pretrain: dict[str, Any] = field(
        default_factory=lambda: {"steps": 50, "batch_size": 32, "learning_rate": 2e-3, "warmup_fraction": 0.1}
    )
    tune: dict[str, Any] = field(
        default_factory=lambda: {"steps": 700, "batch_size": 16, "learning_rate": 1.5e-3, "warmup_fraction": 0.05}
    )
    first_try: int = 8
    max_rows: int = 1000
    margin: float = 0.05


FULL = Scale()
# Proves the way, not the score: four packages, few steps, a gate that asks only for better than the majority class.
SHORT = Scale(
    rows=2000,
    packages=4,
    only=("python", "torch", "transformers", "sympy"),
    # A thousand docstrings teach nothing that holds for others; the names of their modules do.
    asked="module",
    test_fraction=0.25,
    # vLLM's attention on CPUs takes heads of 32 numbers and more.
    architecture=FULL.architecture
    | {
        "vocabulary_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 172,
        "layers": 2,
        "heads": 2,
        "key_value_heads": 2,
    },
    pretrain={**FULL.pretrain, "steps": 10},
    tune={**FULL.tune, "steps": 150, "batch_size": 32, "learning_rate": 2e-3},
    first_try=4,
    max_rows=300,
    margin=0.0,
)
