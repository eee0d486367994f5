"""The engine of `training.run`: dataset versions in, a model in the Hugging Face layout out."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from libs.compute.context import EngineContext, EngineError
from services.training.domain.bases import CONFIG
from services.training.domain.spec import Phase, TrainingSpec
from services.training.engines.adapters import check_targets, require_quantisation
from services.training.engines.algorithms.run import run as run_algorithm
from services.training.engines.base import (
    ADAPTER_FOLDER,
    BaseText,
    bring,
    check_scorable,
    empty_model,
    read_adapter,
    read_config,
    read_text,
)
from services.training.engines.chat_template import ChatTemplate, own_template, template_of
from services.training.engines.data import Source, encode_phase, nothing_to_learn, read_columns
from services.training.engines.frozen import Teacher, frozen_version, require_vocabulary, vocabulary_source
from services.training.engines.launch import run_here, run_on_ray
from services.training.engines.layout import based_files, commit_model, config_files
from services.training.engines.leakage import leaked_share
from services.training.engines.methods.method import Answers, Arrays, Columns
from services.training.engines.model import llama_config, sequence_length
from services.training.engines.prepared import BASE, Preparation, bring_part, config_of, frozen_part, text_of
from services.training.engines.scorer import is_scorer, scorer_config
from services.training.engines.script import run as run_script
from services.training.engines.tokenizer import chat_template, tokenizer_files, train_tokenizer
from services.training.engines.turns import encode_conversations, plain_texts

Json = dict[str, Any]

_FRAMEWORK = ("torch", "transformers", "tokenizers", "safetensors", "peft", "ray")


def run(ctx: EngineContext) -> Json:
    """Trains a model.

    Args:
        ctx: for an algorithm of the catalogue see `algorithms.run`, for own code `script.run`. Otherwise its `spec` has
            `spec` (`TrainingSpec.to_json`), `train` and optionally `validation`, `base` (with its `name`) and
            `base_adapter` (an adapter on `base` to go on with), each `{"grant": ..., "manifest_digest": ...}`, and the
            same by name of each model version that a phase asks in `frozen`; in a mesh also `comparison` (see
            `leaked_share`); for a trial of a search `plan` instead of all these.

    Returns:
        `manifest_digest` and `files` of the model, `parameter_count`, `context_length`, `architecture`, `rows`,
        `results` by name, `tokens`, `cpu_seconds`, `framework` versions.

    Raises:
        EngineError: CONTENT_INVALID, INVALID_FIELD, PREFLIGHT_FAILED, TRAINING_DIVERGED.
        EngineInterrupted: The workers died too often, or dataset stayed away.
        EngineCancelled: The task was cancelled.
    """
    if "algorithm" in ctx.spec:
        return (run_script if "script" in ctx.spec["algorithm"] else run_algorithm)(ctx)
    spec = TrainingSpec.from_json(ctx.spec["spec"])
    if spec.adapter is not None and spec.adapter.quantize_base_bits:
        require_quantisation(_gpus())
    plan = _prepared_before(ctx)
    if plan is None:
        plan = prepare(ctx, spec)
        ctx.checkpoint({"plan": plan})
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


def _gpus() -> float:
    """GPUs that workers could get: those of Ray where there is one, else those of this machine."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return float(ray.cluster_resources().get("GPU", 0.0))
    return float(torch.cuda.device_count())


def _prepared_before(ctx: EngineContext) -> Json | None:
    """The plan of an earlier attempt, or of the search that this is a trial of: nothing is read and encoded twice."""
    if ctx.resume is None:
        return ctx.spec.get("plan")
    ctx.log(f"resuming from {ctx.resume.get('phase', 'the start')} step {ctx.resume.get('step', 0)}")
    plan: Json = ctx.resume["plan"]
    return plan


def prepare(ctx: EngineContext, spec: TrainingSpec) -> Json:
    """Reads and encodes the data and stores it for the workers.

    Returns:
        The plan: `prepared` (digest of the manifest), `config` of the model, `base` (name of the complete version that
        it starts from; empty: none), `rows`, and `leaked_share` if held-out rows were compared.
    """
    ctx.progress(0.0, "reading the dataset version")
    train = read_columns(_source(ctx, "train"), spec)
    heldout = read_columns(_source(ctx, "validation"), spec) if ctx.spec.get("validation") else None
    if heldout is None or "comparison" not in ctx.spec:
        return _encode(ctx, spec, train, heldout)
    return asyncio.run(_encode_and_compare(ctx, spec, train, heldout))


async def _encode_and_compare(ctx: EngineContext, spec: TrainingSpec, train: Columns, heldout: Columns) -> Json:
    """Both at once: dataset compares the versions while their rows are encoded here."""
    plan, share = await asyncio.gather(
        asyncio.to_thread(_encode, ctx, spec, train, heldout), leaked_share(ctx, spec, heldout)
    )
    return plan if share is None else {**plan, "leaked_share": share}


def _encode(ctx: EngineContext, spec: TrainingSpec, train: Columns, heldout: Columns | None) -> Json:
    preparation = Preparation(ctx.blobs_write)
    text, config = _start_point(ctx, spec, train, preparation)
    spec = replace(spec, architecture=replace(spec.architecture, sequence_length=sequence_length(spec, config)))
    template, own = _conversations(ctx, spec, text)
    for number, name in enumerate(spec.phase_names):
        ctx.stop_if_cancelled()
        ctx.progress(0.0, f"encoding rows for {name}")
        _encode_phase(ctx, spec, number, text, config, template, train, heldout, preparation)
    rows = len(next(iter(train.values())))
    base = ctx.spec.get("base", {}).get("name", "")
    plan: Json = {"prepared": preparation.commit(), "config": config.to_diff_dict(), "base": base, "rows": rows}
    return plan | ({"chat_template": template.source} if template is not None and own else {})


def _conversations(ctx: EngineContext, spec: TrainingSpec, text: BaseText) -> tuple[ChatTemplate | None, bool]:
    """What renders conversations, None where there are none; and whether it is the own one and not the base's."""
    if not any(phase.messages_column for phase in spec.phases):
        return None, False
    if not ctx.spec.get("base"):
        return own_template(), True
    source = _source(ctx, "base")
    template = template_of(source.store, source.manifest_digest)
    return (template, False) if template is not None else (own_template(text.opening, text.ending), True)


def _source(ctx: EngineContext, part: str) -> Source:
    given = ctx.spec[part]
    return Source(ctx.blobs_read(given["grant"]), given["manifest_digest"])


def _start_point(
    ctx: EngineContext, spec: TrainingSpec, train: Columns, preparation: Preparation
) -> tuple[BaseText, PreTrainedConfig]:
    """Tokenizer and configuration: new ones, or those of the base model, whose files then go along."""
    if ctx.spec.get("base"):
        ctx.progress(0.0, "looking at the base model")
        with tempfile.TemporaryDirectory(prefix="argosy-base-") as folder:
            return _base(ctx, spec, Path(folder), preparation)
    text = _new_text(ctx, spec, train)
    preparation.add_file("tokenizer.json", text.tokenizer.to_str().encode())
    return text, llama_config(spec.architecture, text.tokenizer.get_vocab_size())


def _new_text(ctx: EngineContext, spec: TrainingSpec, train: Columns) -> BaseText:
    """A tokenizer that is learned from the first phase's texts, unless a phase asks a model whose tokens must be the
    same."""
    source = vocabulary_source(ctx, spec)
    if source is not None:
        ctx.log(f"tokenizer: that of {source[0]}")
        return source[1]
    ctx.progress(0.0, "learning the tokenizer")
    texts = _texts(spec.phases[0], train)
    tokenizer = train_tokenizer((text for text in texts if text), spec.architecture.vocabulary_size)
    ctx.log(f"tokenizer: {tokenizer.get_vocab_size()} tokens from {len(texts)} rows")
    return BaseText(tokenizer)


def _texts(phase: Phase, columns: Columns) -> list[str]:
    """What the tokenizer learns from."""
    texts = columns[phase.columns[0]]
    return plain_texts(own_template(), texts, phase.messages_column) if phase.messages_column else texts


def _base(
    ctx: EngineContext, spec: TrainingSpec, folder: Path, preparation: Preparation
) -> tuple[BaseText, PreTrainedConfig]:
    """Reads and checks the base, and the adapter to go on with if there is one; all before a worker is started."""
    source = _source(ctx, "base")
    bring(source.store, source.manifest_digest, folder)
    config = read_config(folder)
    if is_scorer(config):
        message = "The base model is a reward model: it scores answers and cannot learn to write any."
        raise EngineError("CONTENT_INVALID", message, detail="base_model_version")
    if spec.scores:
        check_scorable(config)
    text = read_text(folder, config)
    adapter = spec.adapter
    if ctx.spec.get("base_adapter"):
        earlier = _source(ctx, "base_adapter")
        adapter = read_adapter(bring(earlier.store, earlier.manifest_digest, folder / ADAPTER_FOLDER))
    if adapter is not None:
        check_targets(empty_model(config), adapter)
    preparation.add_folder(BASE, folder)
    return text, config


def _encode_phase(
    ctx: EngineContext,
    spec: TrainingSpec,
    number: int,
    text: BaseText,
    config: PreTrainedConfig,
    template: ChatTemplate | None,
    train: Columns,
    heldout: Columns | None,
    preparation: Preparation,
) -> None:
    name, phase = spec.phase_names[number], spec.phases[number]
    teacher = _frozen(ctx, number, phase, text, config, preparation) if phase.frozen_version else None

    def encode(columns: Columns, *, heldout: bool = False) -> Arrays | None:
        if template is not None and phase.messages_column:
            texts = columns[phase.messages_column]
            return encode_conversations(ctx, text.tokenizer, template, texts, spec, number, heldout=heldout)
        return encode_phase(text, columns, spec, number, heldout=heldout, teacher=teacher)

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
    ctx: EngineContext,
    number: int,
    phase: Phase,
    text: BaseText,
    config: PreTrainedConfig,
    preparation: Preparation,
) -> Answers | None:
    """Puts the version that a phase asks beside its rows; one whose answers are copied answers them here."""
    with frozen_version(ctx, phase) as frozen:
        if phase.copies_answers:
            return Teacher(ctx, frozen, phase).answers
        require_vocabulary(frozen, text, config)
        preparation.add_folder(frozen_part(number), frozen.folder)
    return None


def _finish(ctx: EngineContext, spec: TrainingSpec, plan: Json, outcome: Json) -> Json:
    """Commits the model beside its weights."""
    store, config = ctx.blobs_write, config_of(plan)
    files = _text_files(ctx, spec, plan, config)
    digest, entries = commit_model(store, outcome["weights"], files)
    leaked = {"leaked_share": plan["leaked_share"]} if "leaked_share" in plan else {}
    return {
        "manifest_digest": digest,
        "files": entries,
        "parameter_count": outcome["parameter_count"],
        "context_length": config.max_position_embeddings,
        "architecture": config.model_type,
        "rows": plan["rows"],
        "results": outcome["results"] | leaked,
        "tokens": outcome["tokens"],
        "cpu_seconds": outcome["cpu_seconds"],
        "framework": {name: importlib.metadata.version(name) for name in _FRAMEWORK},
    }


def _text_files(ctx: EngineContext, spec: TrainingSpec, plan: Json, config: PreTrainedConfig) -> dict[str, bytes]:
    """Everything but the weights: from a base what it came with, with the template that was tuned if one was."""
    store, made = ctx.blobs_write, scorer_config(config) if spec.scores else config
    tuned = [phase for phase in spec.phases if phase.prompts][-1:]
    # Of conversations; those of a base whose own template rendered them keep it.
    conversations = plan.get("chat_template") if tuned and tuned[0].messages_column else None
    prompt = tuned[0].prompt_template if tuned and not tuned[0].messages_column else None
    with tempfile.TemporaryDirectory(prefix="argosy-base-") as folder:
        base = bring_part(store, plan["prepared"], BASE, Path(folder), weights=False)
        text = text_of(store, plan["prepared"], base, config)
        if base is not None:
            complete = spec.adapter is None or spec.adapter.merge
            template = conversations if prompt is None else chat_template(prompt, text.opening)
            files = based_files(base, template, complete)
            return {**files, CONFIG: made.to_json_string().encode()} if spec.scores else files
    template = conversations or chat_template(prompt or "{text}")
    return config_files(made) | tokenizer_files(text.tokenizer, config.max_position_embeddings, template)
