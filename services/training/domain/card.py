"""The model card of a version, in Markdown (Mitchell et al., 2019: who made it, from what, how good, what for)."""

from __future__ import annotations

from collections.abc import Mapping

from services.training.domain.adapter import Adapter
from services.training.domain.spec import Method, Phase, TrainingSpec
from services.training.domain.trainings import TrainingRun

# The field of training.proto.
_LIMIT = 65_536
_SHOWN_ANSWERS = 30


def model_card(
    run: TrainingRun,
    name: str,
    manifest_digest: str,
    parameter_count: int,
    context_length: int,
    results: Mapping[str, float],
    framework: Mapping[str, str],
    architecture: str = "llama",
) -> str:
    """The card.

    Args:
        run: that made the version.
        name: of the version.
        parameter_count: of its files.
        context_length: tokens.
        results: figures of the run by name.
        framework: versions by name.
        architecture: family, as in config.json.
    """
    sections = [
        f"# {name.split('/')[3]}, version {name.rsplit('/', 1)[1]}",
        _summary(run, architecture, parameter_count, context_length, manifest_digest),
        _data(run, results),
        _method(run.spec, framework),
        _losses(run.spec, results),
        _effect(results),
        _use(run.spec),
        _LIMITS,
    ]
    return "\n\n".join(section for section in sections if section)[:_LIMIT]


_LIMITS = """## Limits

- It knows nothing beyond its data and answers nothing but what it was tuned on; other questions get made-up answers.
- The figures above are losses on held-out rows. How well it does its task is what its evaluations and gates say.
- Whatever is in the data, errors and prejudice included, may be in its answers."""


def _summary(
    run: TrainingRun, architecture: str, parameter_count: int, context_length: int, manifest_digest: str
) -> str:
    start = f"fine-tuned from `{run.base_model_version}`" if run.base_model_version else "trained from nothing"
    adapter = run.spec.adapter
    what = f"decoder of the architecture `{architecture}`"
    if adapter is not None and not adapter.merge:
        what = f"LoRA adapter of rank {adapter.rank} for a {what}"
    return (
        f"A {what} with {parameter_count:,} parameters and a context of {context_length} tokens, "
        f"{start} by `{run.name}`.\n\nManifest: `{manifest_digest}`"
    )


def _data(run: TrainingRun, results: Mapping[str, float]) -> str:
    lines = ["## Data", "", f"- learned from `{run.dataset_version}` (manifest `{run.dataset_digest}`)"]
    if run.validation_version:
        lines.append(f"- held-out losses on `{run.validation_version}` (manifest `{run.validation_digest}`)")
    if "leaked_share" in results:
        share = f"{results['leaked_share']:.2%}"
        lines.append(f"- {share} of the held-out rows are in what it learned from, exactly or nearly")
    return "\n".join(lines)


def _method(spec: TrainingSpec, framework: Mapping[str, str]) -> str:
    lines = ["## Method", "", "| phase | steps | batch | learning rate | reads |", "|---|---|---|---|---|"]
    for name, phase in zip(spec.phase_names, spec.phases, strict=True):
        lines.append(
            f"| {name} | {phase.steps} | {phase.batch_size} | {phase.learning_rate:g} | {', '.join(phase.columns)} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(framework.items()))
    if spec.adapter is not None:
        lines += ["", _adapter(spec.adapter)]
    lines += ["", f"{spec.workers} workers, seed {spec.seed}; {versions}."]
    return "\n".join(lines)


def _adapter(adapter: Adapter) -> str:
    targets = ", ".join(f"`{name}`" for name in adapter.target_modules) or "all linear layers"
    end = "added to the weights of the base in the end" if adapter.merge else "kept beside the base"
    base = f", the base at {adapter.quantize_base_bits} bits meanwhile" if adapter.quantize_base_bits else ""
    return f"LoRA of rank {adapter.rank}, alpha {adapter.alpha:g}, beside {targets}{base}; {end}."


def _losses(spec: TrainingSpec, results: Mapping[str, float]) -> str:
    lines = [
        "## Losses",
        "",
        "Mean cross-entropy in nats of each predicted token.",
        "",
        "| phase | first | last | held-out before | held-out after |",
        "|---|---|---|---|---|",
    ]
    for name in spec.phase_names:
        keys = ("first_loss", "last_loss", "heldout_loss_before", "heldout_loss_after")
        lines.append(f"| {name} | " + " | ".join(_figure(results.get(f"{name}.{key}")) for key in keys) + " |")
    return "\n".join(lines)


def _effect(results: Mapping[str, float]) -> str:
    if "probe.steps" not in results:
        return ""
    return (
        "## What the pre-training did for the task\n\n"
        f"After the same {results['probe.steps']:.0f} fine-tuning steps on the same rows, the held-out loss is "
        f"{results['probe.loss_pretrained']:.3f} with the pre-training and {results['probe.loss_fresh']:.3f} with "
        f"fresh weights; exact match {results['probe.exact_match_pretrained']:.3f} and "
        f"{results['probe.exact_match_fresh']:.3f}. This is the head start after those steps, not the difference at "
        "the end, and the fresh model got no steps in place of the pre-training."
    )


def _use(spec: TrainingSpec) -> str:
    tuned = [phase for phase in spec.phases if phase.method is Method.SFT]
    if not tuned:
        return "## Intended use\n\nA base for fine-tuning. It continues text and follows no instructions."
    return f"## Intended use\n\n{_task(tuned[-1])}"


def _task(phase: Phase) -> str:
    lines = ["To answer prompts of exactly this form, with nothing after it:", "", "```", phase.prompt_template, "```"]
    if phase.answers:
        shown = ", ".join(f"`{answer}`" for answer in phase.answers[:_SHOWN_ANSWERS])
        more = len(phase.answers) - _SHOWN_ANSWERS
        lines += ["", f"with one of: {shown}{f' and {more} more' if more > 0 else ''}."]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
