"""Model versions that a run asks and does not change: teachers and reward models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.torch import load as load_safetensors
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from libs.compute.context import EngineContext, EngineError
from services.training.domain.spec import Method, Phase, TrainingSpec
from services.training.engines.encode import Array, encode_prompts
from services.training.engines.model import load_weights
from services.training.engines.sampling import generate, most_likely
from services.training.engines.scorer import Scorer, is_scorer
from services.training.engines.tokenizer import END_ID

FILES = ("config.json", "model.safetensors", "tokenizer.json")
_BATCH = 32


@dataclass(frozen=True)
class Frozen:
    """The files of such a version.

    Attributes:
        version: resource name.
        files: content by path.
    """

    version: str
    files: dict[str, bytes]

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""
        return Tokenizer.from_str(self.files["tokenizer.json"].decode())


def read_frozen(ctx: EngineContext, phase: Phase) -> Frozen:
    """The files of the version that a phase asks.

    Raises:
        EngineError: CONTENT_INVALID, it lacks a file or is not what the phase needs.
    """
    version = phase.frozen_version
    given = ctx.spec["frozen"][version]
    files = model_files(ctx, given, f"Model version {version}")
    scores = is_scorer(LlamaConfig(**json.loads(files["config.json"])))
    if scores != (phase.method is Method.GRPO):
        wanted = (
            "no reward model" if phase.method is Method.GRPO else "a reward model and no teacher: it writes no text"
        )
        raise EngineError("CONTENT_INVALID", f"Model version {version} is {wanted}.", detail=version)
    return Frozen(version, files)


def model_files(ctx: EngineContext, given: dict[str, Any], what: str) -> dict[str, bytes]:
    """Configuration, weights and tokenizer of a model version, by path.

    Args:
        given: `grant` and `manifest_digest`.
        what: the version in words, for errors.

    Raises:
        EngineError: CONTENT_INVALID, a file is missing.
    """
    store = ctx.blobs_read(given["grant"])
    entries = store.load_manifest_sync(given["manifest_digest"])["blobs"]
    files = {entry["path"]: store.read_sync(entry["sha256"]) for entry in entries if entry["path"] in FILES}
    missing = [path for path in FILES if path not in files]
    if missing:
        raise EngineError("CONTENT_INVALID", f"{what} has no {', '.join(missing)}.", detail=missing[0])
    return files


def frozen_model(config: bytes, weights: bytes) -> nn.Module:
    """The model of such files: a decoder or a scorer."""
    made = LlamaConfig(**json.loads(config))
    decoder = LlamaForCausalLM(made)
    tensors = load_safetensors(weights)
    model = Scorer(decoder.model, made.hidden_size) if "score.weight" in tensors else decoder
    load_weights(model, tensors)
    return model


def vocabulary_source(ctx: EngineContext, spec: TrainingSpec) -> Frozen | None:
    """The first version whose vocabulary the model must have; a model from nothing takes its tokenizer."""
    phase = next((phase for phase in spec.phases if phase.shares_vocabulary), None)
    return None if phase is None else read_frozen(ctx, phase)


def require_vocabulary(frozen: Frozen, tokenizer: Tokenizer) -> None:
    """Raises CONTENT_INVALID where a token means something else to the two models."""
    theirs, ours = frozen.tokenizer.get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        message = (
            f"Model version {frozen.version} has another vocabulary than the model: {len(theirs):,} tokens, of which "
            f"{len(theirs.items() & ours.items()):,} are those of the model's {len(ours):,}."
        )
        raise EngineError("CONTENT_INVALID", message, detail=frozen.version)


class Teacher:
    """Answers prompts as the version does, token by token the most likely one.

    Args:
        ctx: told how far it is, and asked whether to go on.
        phase: template and longest answer.
    """

    def __init__(self, ctx: EngineContext, frozen: Frozen, phase: Phase) -> None:
        model = frozen_model(frozen.files["config.json"], frozen.files["model.safetensors"])
        assert isinstance(model, LlamaForCausalLM)
        self._ctx = ctx
        self._model = model.eval()
        self._tokenizer = frozen.tokenizer
        self._phase = phase

    def answers(self, texts: Sequence[str]) -> list[str]:
        """The answers; one that did not end by itself is empty, as its end is not known."""
        longest = self._phase.distillation.max_new_tokens
        limit = self._model.config.max_position_embeddings - longest
        if limit < 2:
            message = f"Answers of {longest} tokens leave no room for a prompt to the teacher."
            raise EngineError("CONTENT_INVALID", message, detail="max_new_tokens")
        found = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for start in range(0, len(order), _BATCH):
            self._ctx.stop_if_cancelled()
            self._ctx.progress(0.0, f"the teacher answers: {start:,} of {len(texts):,} rows")
            chosen = order[start : start + _BATCH]
            ids = encode_prompts(
                self._tokenizer, [texts[number] for number in chosen], self._phase.prompt_template, limit
            )
            prompts: list[Array] = [np.asarray(each) for each in ids]
            for number, answer in zip(chosen, generate(self._model, prompts, 1, longest, most_likely), strict=True):
                if answer[-1] == END_ID:
                    found[number] = self._tokenizer.decode(answer[:-1])
        return found
