"""The model card of a version, in Markdown (Mitchell et al., 2019: who made it, from what, how good, what for)."""

from __future__ import annotations

from collections.abc import Mapping

from services.training.domain.adapter import Adapter
from services.training.domain.methods import Method, RewardRule, RuleKind
from services.training.domain.spec import Phase, TrainingSpec
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
        _asked(run.spec),
        _losses(run.spec, results),
        _heldout(run.spec, results),
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
    what = f"{'reward model' if run.spec.scores else 'decoder'} of the architecture `{architecture}`"
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


def _asked(spec: TrainingSpec) -> str:
    """What each phase was held to beside its data."""
    lines: list[str] = []
    for name, phase in zip(spec.phase_names, spec.phases, strict=True):
        rollouts, given = phase.rollouts, phase.distillation
        if phase.method is Method.DPO:
            lines.append(f"- {name}: beta {phase.beta:g}, reference: the model as the phase began")
        elif phase.method is Method.GRPO:
            rules = [_rule(rule) for rule in rollouts.rules]
            rules += [f"score of `{rollouts.reward_version}`"] if rollouts.reward_version else []
            drawn = f"{rollouts.group_size} answers to a prompt, temperature {rollouts.temperature:g}"
            lines.append(f"- {name}: {drawn}, beta {phase.beta:g}; rewards: {'; '.join(rules)}")
        elif phase.copies_answers:
            lines.append(f"- {name}: the answers of `{given.teacher_version}`")
        elif phase.method is Method.DISTILL:
            weights = f"alpha {given.alpha:g}, temperature {given.temperature:g}"
            lines.append(f"- {name}: the probabilities of `{given.teacher_version}`, {weights}")
    return "\n".join(lines)


def _rule(rule: RewardRule) -> str:
    what = {
        RuleKind.EXACT_MATCH: "the right answer",
        RuleKind.PATTERN: f"an answer with `{rule.pattern}`",
        RuleKind.MAX_TOKENS: f"an end within {rule.max_tokens} tokens",
    }
    return f"{rule.weight:g} for {what[rule.kind]}"


def _heldout(spec: TrainingSpec, results: Mapping[str, float]) -> str:
    """The other figures on held-out rows."""
    lines: list[str] = []
    for name in spec.phase_names:
        before, after = f"{name}.heldout_", "_after"
        keys = [key for key in results if key.startswith(before) and key.endswith(after)]
        figures = {key[len(before) : -len(after)] for key in keys} - {"loss"}
        for figure in sorted(figures):
            values = [_figure(results.get(f"{before}{figure}_{when}")) for when in ("before", "after")]
            lines.append(f"| {name} | {figure.replace('_', ' ')} | {' | '.join(values)} |")
    if not lines:
        return ""
    head = ["## Held-out figures", "", "| phase | figure | before | after |", "|---|---|---|---|"]
    return "\n".join(head + lines)


def _losses(spec: TrainingSpec, results: Mapping[str, float]) -> str:
    lines = [
        "## Losses",
        "",
        "Mean cross-entropy in nats of each predicted token; of each preference for `dpo` and `reward`. That of `grpo` "
        "has no scale of its own.",
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
    tuned = [phase for phase in spec.phases if phase.prompts]
    if spec.scores:
        return (
            f"## Intended use\n\nTo score answers to prompts: more is better. It writes no text.\n\n{_task(tuned[-1])}"
        )
    if not tuned:
        return "## Intended use\n\nA base for fine-tuning. It continues text and follows no instructions."
    return f"## Intended use\n\n{_task(tuned[-1])}"


def _task(phase: Phase) -> str:
    use = "The prompt" if phase.method is Method.REWARD else "To answer prompts of exactly this form"
    after = "followed by the answer and the end token" if phase.method is Method.REWARD else "with nothing after it"
    lines = [f"{use}, {after}:", "", "```", phase.prompt_template, "```"]
    if phase.answers:
        shown = ", ".join(f"`{answer}`" for answer in phase.answers[:_SHOWN_ANSWERS])
        more = len(phase.answers) - _SHOWN_ANSWERS
        lines += ["", f"with one of: {shown}{f' and {more} more' if more > 0 else ''}."]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
