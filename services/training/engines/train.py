"""The engine of `training.run`: dataset versions in, a model in the Hugging Face layout out."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from typing import Any

import torch
from transformers import PreTrainedConfig

from libs.compute.context import EngineContext
from libs.compute.scratch import scratch_folder
from services.training.domain.bases import CONFIG
from services.training.domain.spec import TrainingSpec
from services.training.engines.adapters import require_quantisation
from services.training.engines.algorithms.run import run as run_algorithm
from services.training.engines.launch import cluster, require_workers, run_here, run_on_ray
from services.training.engines.layout import based_files, commit_model, config_files
from services.training.engines.prepare import partly_prepared, prepare
from services.training.engines.prepared import BASE, bring_part, config_of, text_of
from services.training.engines.scorer import scorer_config
from services.training.engines.script import run as run_script
from services.training.engines.tokenizer import chat_template, tokenizer_files

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
        `results` by name, `tokens`, `cpu_seconds`, `framework` versions; `usage`: `seconds` of the run, `memory_bytes`
        and `rates` of its workers.

    Raises:
        EngineError: CONTENT_INVALID, INVALID_FIELD, PREFLIGHT_FAILED, TRAINING_DIVERGED.
        EngineInterrupted: The workers died too often, or dataset stayed away.
        EngineCancelled: The task was cancelled.
    """
    if "algorithm" in ctx.spec:
        return (run_script if "script" in ctx.spec["algorithm"] else run_algorithm)(ctx)
    began = time.monotonic()
    spec = TrainingSpec.from_json(ctx.spec["spec"])
    if spec.adapter is not None and spec.adapter.quantize_base_bits:
        require_quantisation(_gpus())
    # A later attempt waits: a node that was lost may come back.
    if _needs_group(spec) and ctx.attempt == 1:
        require_workers(spec, cluster())
    plan = _prepared_before(ctx)
    if plan is None:
        plan = prepare(ctx, spec, partly_prepared(ctx))
        ctx.checkpoint({"plan": plan})
    ctx.stop_if_cancelled()
    ctx.progress(0.0, f"starting {spec.workers} worker{'s' if spec.workers > 1 else ''}")
    outcome = (run_on_ray if _needs_group(spec) else run_here)(ctx, spec, plan)
    ctx.progress(1.0, "writing the model", tokens=outcome["tokens"], cpu_seconds=outcome["cpu_seconds"])
    made = _finish(ctx, spec, plan, outcome)
    # What earlier attempts took steps for was paid too; what they repeated was not planned.
    earlier = (ctx.resume or {}).get("progress", {}).get("train_seconds", 0.0)
    seconds = time.monotonic() - began + earlier
    return {**made, "usage": {name: outcome[name] for name in ("memory_bytes", "rates")} | {"seconds": seconds}}


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
        return cluster().get("GPU", 0.0)
    return float(torch.cuda.device_count())


def _prepared_before(ctx: EngineContext) -> Json | None:
    """The plan of an earlier attempt, or of the search that this is a trial of: nothing is read and encoded twice."""
    if ctx.resume is None or "plan" not in ctx.resume:
        return ctx.spec.get("plan")
    ctx.log(f"resuming from {ctx.resume.get('phase', 'the start')} step {ctx.resume.get('step', 0)}")
    plan: Json = ctx.resume["plan"]
    return plan


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
    with scratch_folder("argosy-base-") as folder:
        base = bring_part(store, plan["prepared"], BASE, folder, weights=False)
        text = text_of(store, plan["prepared"], base, config)
        if base is not None:
            complete = spec.adapter is None or spec.adapter.merge
            template = conversations if prompt is None else chat_template(prompt, text.opening)
            files = based_files(base, template, complete)
            return {**files, CONFIG: made.to_json_string().encode()} if spec.scores else files
    template = conversations or chat_template(prompt or "{text}")
    return config_files(made) | tokenizer_files(text.tokenizer, config.max_position_embeddings, template)
