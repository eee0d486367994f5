"""The model card of a version that an algorithm of the catalogue made, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping

from services.training.domain.trainings import TRAINED_BY, TrainingRun

# The field of training.proto.
_LIMIT = 65_536
_BASELINE = "baseline."


def algorithm_card(
    run: TrainingRun,
    name: str,
    manifest_digest: str,
    parameter_count: int,
    results: Mapping[str, float],
    framework: Mapping[str, str],
) -> str:
    """The card.

    Args:
        run: that made the version.
        name: of the version.
        results: figures of the run by name; those of the trivial baseline begin with `baseline.`.
        framework: versions by name.
    """
    sections = [
        f"# {name.split('/')[3]}, version {name.rsplit('/', 1)[1]}",
        f"`{run.algorithm_version}` with {parameter_count:,} parameters, trained by `{run.name}`.\n\n"
        f"Manifest: `{manifest_digest}`",
        _data(run, results),
        _method(run, framework),
        _figures(results),
        _LIMITS,
    ]
    return "\n\n".join(sections)[:_LIMIT]


_LIMITS = """## Limits

- The figures are of held-out rows of the same kind. Inputs of another kind get an answer too, and it means nothing.
- Whatever is in the data, errors and prejudice included, may be in its answers."""


def _data(run: TrainingRun, results: Mapping[str, float]) -> str:
    if not run.dataset_version:
        return "## Data\n\nNone: it learned from what it did itself."
    lines = ["## Data", "", f"- learned from `{run.dataset_version}` (manifest `{run.dataset_digest}`)"]
    if run.validation_version:
        lines.append(f"- figures on `{run.validation_version}` (manifest `{run.validation_digest}`)")
    elif not any(parent.relation == TRAINED_BY for parent in run.lineage):
        lines.append("- figures on a fifth of its rows, chosen by the seed and left out of the training")
    else:
        lines.append("- a fifth of its rows, chosen by the seed, was set aside for figures")
    if "leaked_share" in results:
        lines.append(f"- {results['leaked_share']:.2%} of the held-out rows are in what it learned from, exactly")
    return "\n".join(lines)


def _method(run: TrainingRun, framework: Mapping[str, str]) -> str:
    lines = ["## Method", "", "| parameter | value |", "|---|---|"]
    lines += [f"| {name} | {_shown(value)} |" for name, value in run.parameters.items()]
    code = next((parent for parent in run.lineage if parent.relation == TRAINED_BY), None)
    if code is not None:
        lines += ["", f"Own code: `{code.name}` (manifest `{code.digest}`), run in a sandbox."]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(framework.items()))
    return "\n".join([*lines, "", f"Seed {run.spec.seed}; {versions}."])


def _shown(value: object) -> str:
    return "`" + json.dumps(value, ensure_ascii=False).replace("|", "\\u007c").replace("`", "\\u0060")[:200] + "`"


def _figures(results: Mapping[str, float]) -> str:
    lines = ["## Figures", "", "| figure | model | trivial baseline |", "|---|---|---|"]
    for name in sorted(name for name in results if not name.startswith(_BASELINE)):
        baseline = results.get(f"{_BASELINE}{name}")
        lines.append(f"| {name} | {results[name]:.4g} | {'–' if baseline is None else f'{baseline:.4g}'} |")
    return "\n".join(lines)
