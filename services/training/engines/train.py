"""The engine of `training.run`: dataset versions in, a model in the Hugging Face layout out."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer
from transformers import LlamaConfig

from libs.compute.context import EngineContext, EngineError
from services.training.domain.spec import Phase, TrainingSpec
from services.training.engines.chat_template import ChatTemplate, own_template, template_of
from services.training.engines.data import Source, encode_phase, nothing_to_learn, read_columns
from services.training.engines.frozen import (
    Teacher,
    model_files,
    read_frozen,
    require_vocabulary,
    vocabulary_source,
)
from services.training.engines.launch import run_here, run_on_ray
from services.training.engines.layout import commit_model, config_files
from services.training.engines.leakage import leaked_share
from services.training.engines.methods.method import Answers, Arrays, Columns
from services.training.engines.model import architecture_of, llama_config
from services.training.engines.prepared import Preparation, frozen_paths
from services.training.engines.scorer import is_scorer, scorer_config
from services.training.engines.tokenizer import tokenizer_files, train_tokenizer
from services.training.engines.turns import encode_conversations, plain_texts

Json = dict[str, Any]

_FRAMEWORK = ("torch", "transformers", "tokenizers", "safetensors", "ray")


def run(ctx: EngineContext) -> Json:
    """Trains a model.

    Args:
        ctx: its `spec` has `spec` (`TrainingSpec.to_json`), `train` and optionally `validation` and `base`, each
            `{"grant": ..., "manifest_digest": ...}`, and the same by name of each model version that a phase asks in
            `frozen`; in a mesh also `comparison` (see `leaked_share`).

    Returns:
        `manifest_digest` and `files` of the model, `parameter_count`, `context_length`, `architecture`, `rows`,
        `results` by name, `tokens`, `cpu_seconds`, `framework` versions.

    Raises:
        EngineError: CONTENT_INVALID, PREFLIGHT_FAILED, TRAINING_DIVERGED.
        EngineInterrupted: The workers died too often, or dataset stayed away.
        EngineCancelled: The task was cancelled.
    """
    spec = TrainingSpec.from_json(ctx.spec["spec"])
    plan = _prepared_before(ctx) or _prepare(ctx, spec)
    ctx.stop_if_cancelled()
    ctx.progress(0.0, f"starting {spec.workers} worker{'s' if spec.workers > 1 else ''}")
    outcome = (run_on_ray if _needs_group(spec) else run_here)(ctx, spec, plan)
    ctx.progress(1.0, "writing the model", tokens=outcome["tokens"], cpu_seconds=outcome["cpu_seconds"])
    return _finish(ctx, spec, plan, outcome)


def _needs_group(spec: TrainingSpec) -> bool:
    """Whether workers have to be started.

    One worker on the CPU works here, which saves the start of a group (about 17 s on two cores). Where there is no Ray,
    one worker takes the place of several: it does the same steps.
    """
    ray = sys.modules.get("ray")
    inside = ray is not None and bool(ray.is_initialized())
    return inside and (spec.workers > 1 or spec.gpus_per_worker > 0)


def _prepared_before(ctx: EngineContext) -> Json | None:
    """The plan of an earlier attempt, so that nothing is read and encoded twice."""
    if ctx.resume is None:
        return None
    ctx.log(f"resuming from {ctx.resume.get('phase', 'the start')} step {ctx.resume.get('step', 0)}")
    plan: Json = ctx.resume["plan"]
    return plan


def _prepare(ctx: EngineContext, spec: TrainingSpec) -> Json:
    """Reads and encodes the data and stores it for the workers.

    Returns:
        The plan: `prepared` (digest of the manifest), `config` of the model, `rows`, and `leaked_share` if held-out
        rows were compared.
    """
    ctx.progress(0.0, "reading the dataset version")
    train = read_columns(_source(ctx, "train"), spec)
    heldout = read_columns(_source(ctx, "validation"), spec) if ctx.spec.get("validation") else None
    if heldout is None or "comparison" not in ctx.spec:
        plan = _encode(ctx, spec, train, heldout)
    else:
        plan = asyncio.run(_encode_and_compare(ctx, spec, train, heldout))
    ctx.checkpoint({"plan": plan})
    return plan


async def _encode_and_compare(ctx: EngineContext, spec: TrainingSpec, train: Columns, heldout: Columns) -> Json:
    """Both at once: dataset compares the versions while their rows are encoded here."""
    plan, share = await asyncio.gather(
        asyncio.to_thread(_encode, ctx, spec, train, heldout), leaked_share(ctx, spec, heldout)
    )
    return plan if share is None else {**plan, "leaked_share": share}


def _encode(ctx: EngineContext, spec: TrainingSpec, train: Columns, heldout: Columns | None) -> Json:
    preparation = Preparation(ctx.blobs_write)
    tokenizer, config = _start_point(ctx, spec, train, preparation)
    spec = replace(spec, architecture=replace(spec.architecture, sequence_length=config.max_position_embeddings))
    template = _chat_template(ctx, spec)
    for number, name in enumerate(spec.phase_names):
        ctx.stop_if_cancelled()
        ctx.progress(0.0, f"encoding rows for {name}")
        _encode_phase(ctx, spec, number, tokenizer, template, train, heldout, preparation)
    rows = len(next(iter(train.values())))
    plan: Json = {"prepared": preparation.commit(), "config": config.to_diff_dict(), "rows": rows}
    return plan | ({"chat_template": template.source} if template is not None else {})


def _chat_template(ctx: EngineContext, spec: TrainingSpec) -> ChatTemplate | None:
    """What renders conversations: the template of the base model, or the own one; None where there are none."""
    if not any(phase.messages_column for phase in spec.phases):
        return None
    if not ctx.spec.get("base"):
        return own_template()
    source = _source(ctx, "base")
    return template_of(source.store, source.manifest_digest)


def _source(ctx: EngineContext, part: str) -> Source:
    given = ctx.spec[part]
    return Source(ctx.blobs_read(given["grant"]), given["manifest_digest"])


def _start_point(
    ctx: EngineContext, spec: TrainingSpec, train: Columns, preparation: Preparation
) -> tuple[Tokenizer, LlamaConfig]:
    """Tokenizer and configuration: new ones, or those of the base model, whose weights then go along."""
    if ctx.spec.get("base"):
        files = model_files(ctx, ctx.spec["base"], "The base model")
        config = LlamaConfig(**json.loads(files["config.json"]))
        if is_scorer(config):
            message = "The base model is a reward model: it scores answers and cannot learn to write any."
            raise EngineError("CONTENT_INVALID", message, detail="base_model_version")
        preparation.add_file("tokenizer.json", files["tokenizer.json"])
        preparation.add_file("base.safetensors", files["model.safetensors"])
        return Tokenizer.from_str(files["tokenizer.json"].decode()), config
    tokenizer = _new_tokenizer(ctx, spec, train)
    preparation.add_file("tokenizer.json", tokenizer.to_str().encode())
    return tokenizer, llama_config(spec.architecture, tokenizer.get_vocab_size())


def _new_tokenizer(ctx: EngineContext, spec: TrainingSpec, train: Columns) -> Tokenizer:
    """One that is learned from the first phase's texts, unless a phase asks a model whose tokens must be the same."""
    source = vocabulary_source(ctx, spec)
    if source is not None:
        ctx.log(f"tokenizer: that of {source.version}")
        return source.tokenizer
    ctx.progress(0.0, "learning the tokenizer")
    texts = _texts(spec.phases[0], train)
    tokenizer = train_tokenizer((text for text in texts if text), spec.architecture.vocabulary_size)
    ctx.log(f"tokenizer: {tokenizer.get_vocab_size()} tokens from {len(texts)} rows")
    return tokenizer


def _texts(phase: Phase, columns: Columns) -> list[str]:
    """What the tokenizer learns from."""
    texts = columns[phase.columns[0]]
    return plain_texts(own_template(), texts, phase.messages_column) if phase.messages_column else texts


def _encode_phase(
    ctx: EngineContext,
    spec: TrainingSpec,
    number: int,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    train: Columns,
    heldout: Columns | None,
    preparation: Preparation,
) -> None:
    name, phase = spec.phase_names[number], spec.phases[number]
    teacher = _frozen(ctx, number, phase, tokenizer, preparation) if phase.frozen_version else None

    def encode(columns: Columns, *, heldout: bool = False) -> Arrays | None:
        if template is not None and phase.messages_column:
            texts = columns[phase.messages_column]
            return encode_conversations(ctx, tokenizer, template, texts, spec, number, heldout=heldout)
        return encode_phase(tokenizer, columns, spec, number, heldout=heldout, teacher=teacher)

    arrays = encode(train)
    if arrays is None and phase.messages_column:
        detail = "no conversation fits with an answer that counts"
        raise EngineError("CONTENT_INVALID", f"Nothing to learn from in phase {name}: {detail}.", detail=detail)
    if arrays is None:
        detail = nothing_to_learn(phase)
        raise EngineError("CONTENT_INVALID", f"Nothing to learn from in phase {name}: {detail}.", detail=detail)
    preparation.add_arrays(number, "train", arrays)
    held = encode(heldout, heldout=True) if heldout is not None else None
    if held is not None:
        preparation.add_arrays(number, "heldout", held)
    elif heldout is not None:
        ctx.log(f"{name}: the validation version has no row for this phase", "WARNING")


def _frozen(
    ctx: EngineContext, number: int, phase: Phase, tokenizer: Tokenizer, preparation: Preparation
) -> Answers | None:
    """Puts the version that a phase asks beside its rows; one whose answers are copied answers them here."""
    frozen = read_frozen(ctx, phase)
    if phase.copies_answers:
        return Teacher(ctx, frozen, phase).answers
    require_vocabulary(frozen, tokenizer)
    for path, file in zip(frozen_paths(number), ("config.json", "model.safetensors"), strict=True):
        preparation.add_file(path, frozen.files[file])
    return None


def _finish(ctx: EngineContext, spec: TrainingSpec, plan: Json, outcome: Json) -> Json:
    """Commits the model beside its weights."""
    store, config = ctx.blobs_write, LlamaConfig(**plan["config"])
    prepared = {entry["path"]: entry["sha256"] for entry in store.load_manifest_sync(plan["prepared"])["blobs"]}
    tokenizer = Tokenizer.from_str(store.read_sync(prepared["tokenizer.json"]).decode())
    tuned = [phase for phase in spec.phases if phase.prompts][-1:]
    files = config_files(scorer_config(config) if spec.scores else config) | tokenizer_files(
        tokenizer,
        config.max_position_embeddings,
        tuned[0].prompt_template if tuned else None,
        plan["chat_template"] if tuned and tuned[0].messages_column else None,
    )
    digest, entries = commit_model(store, outcome["weights"], files)
    leaked = {"leaked_share": plan["leaked_share"]} if "leaked_share" in plan else {}
    return {
        "manifest_digest": digest,
        "files": entries,
        "parameter_count": architecture_of(config).parameter_count + (config.hidden_size if spec.scores else 0),
        "context_length": config.max_position_embeddings,
        "architecture": config.model_type,
        "rows": plan["rows"],
        "results": outcome["results"] | leaked,
        "tokens": outcome["tokens"],
        "cpu_seconds": outcome["cpu_seconds"],
        "framework": {name: importlib.metadata.version(name) for name in _FRAMEWORK},
    }
