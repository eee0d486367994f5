"""Model versions that a run asks and does not change: teachers and reward models."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from libs.compute.context import EngineContext, EngineError
from libs.compute.scratch import scratch_folder
from services.training.domain.spec import Method, Phase, TrainingSpec
from services.training.engines.base import BaseText, bring, read_config, read_text
from services.training.engines.encode import Array, encode_prompts
from services.training.engines.model import load_base
from services.training.engines.sampling import generate, most_likely
from services.training.engines.scorer import is_scorer, read_scorer
from services.training.engines.tokenizer import BEGIN, END, PAD, SpecialTokens

_BATCH = 32


@dataclass(frozen=True)
class Frozen:
    """Such a version in a folder, its files in order.

    Attributes:
        version: resource name.
        text: how it reads and writes.
    """

    version: str
    folder: Path
    config: PreTrainedConfig
    text: BaseText


@contextmanager
def frozen_version(ctx: EngineContext, phase: Phase) -> Generator[Frozen]:
    """The version that a phase asks, in a folder as long as it is looked at.

    Raises:
        EngineError: CONTENT_INVALID, its files are not in order or it is not what the phase needs.
    """
    version = phase.frozen_version
    given = ctx.spec["frozen"][version]
    with scratch_folder("argosy-frozen-") as folder:
        folder = bring(ctx.blobs_read(given["grant"]), given["manifest_digest"], folder)
        config = read_config(folder)
        if is_scorer(config) != (phase.method is Method.GRPO):
            wanted = (
                "no reward model" if phase.method is Method.GRPO else "a reward model and no teacher: it writes no text"
            )
            raise EngineError("CONTENT_INVALID", f"Model version {version} is {wanted}.", detail=version)
        yield Frozen(version, folder, config, read_text(folder, config))


def frozen_model(folder: Path) -> nn.Module:
    """The model of such a folder: a decoder or a scorer."""
    model = load_base(folder, torch.float32)
    return read_scorer(model) if is_scorer(model.config) else model


def vocabulary_source(ctx: EngineContext, spec: TrainingSpec) -> tuple[str, BaseText] | None:
    """The first version whose vocabulary the model must have, and how it reads: a model from nothing takes that.

    Raises:
        EngineError: CONTENT_INVALID, its tokenizer is not of the kind that new models have.
    """
    phase = next((phase for phase in spec.phases if phase.shares_vocabulary), None)
    if phase is None:
        return None
    with frozen_version(ctx, phase) as frozen:
        text = frozen.text
    first = [text.tokenizer.id_to_token(token) for token in range(3)]
    if text.special != SpecialTokens() or first != [PAD, BEGIN, END]:
        message = (
            f"Model version {frozen.version} has special tokens of its own, which a new model has not. "
            "Start from a base_model_version with the same vocabulary."
        )
        raise EngineError("CONTENT_INVALID", message, detail=frozen.version)
    return frozen.version, text


def require_vocabulary(frozen: Frozen, text: BaseText, config: PreTrainedConfig) -> None:
    """Raises CONTENT_INVALID where a token means something else to the two models."""
    theirs, ours = frozen.text.tokenizer.get_vocab(), text.tokenizer.get_vocab()
    if theirs != ours:
        message = (
            f"Model version {frozen.version} has another vocabulary than the model: {len(theirs):,} tokens, of which "
            f"{len(theirs.items() & ours.items()):,} are those of the model's {len(ours):,}."
        )
        raise EngineError("CONTENT_INVALID", message, detail=frozen.version)
    if not is_scorer(frozen.config) and frozen.config.vocab_size != config.vocab_size:
        message = (
            f"Model version {frozen.version} has logits for {frozen.config.vocab_size:,} tokens, the model for "
            f"{config.vocab_size:,}."
        )
        raise EngineError("CONTENT_INVALID", message, detail=frozen.version)


class Teacher:
    """Answers prompts as the version does, token by token the most likely one.

    Args:
        ctx: told how far it is, and asked whether to go on.
        phase: template and longest answer.
    """

    def __init__(self, ctx: EngineContext, frozen: Frozen, phase: Phase) -> None:
        model = frozen_model(frozen.folder)
        assert isinstance(model, PreTrainedModel)
        self._ctx = ctx
        self._model = model
        self._text = frozen.text
        self._phase = phase

    def answers(self, texts: Sequence[str]) -> list[str]:
        """The answers; one that did not end by itself is empty, as its end is not known."""
        tokenizer, special = self._text.tokenizer, self._text.special
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
            asked = [texts[number] for number in chosen]
            ids = encode_prompts(tokenizer, special, asked, self._phase.prompt_template, limit)
            prompts: list[Array] = [np.asarray(each) for each in ids]
            answers = generate(self._model, prompts, 1, longest, special.end, most_likely)
            for number, answer in zip(chosen, answers, strict=True):
                if answer[-1] == special.end:
                    found[number] = tokenizer.decode(answer[:-1])
        return found
