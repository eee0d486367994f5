"""`python -m deploy.demo`: runs the main job on the mesh of this machine, and starts it if need be."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from argosy.cli.live import TaskFailed, VerdictLate
from argosy.client import ApiError

from deploy.demo.access import NoAdministrator
from deploy.demo.job import STAGES, Job
from deploy.demo.scale import FULL, SHORT
from deploy.demo.screen import Screen
from deploy.local.layout import Home, RunnerError


def main() -> None:
    """Command line of `make demo`."""
    parser = argparse.ArgumentParser(prog="deploy.demo", description=__doc__)
    parser.add_argument("--home", type=Path, help="data folder; else ARGOSY_HOME, else ~/.local/share/argosy")
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where corpus and summary go")
    parser.add_argument("--short", action="store_true", help="2,000 rows, four packages, few steps")
    arguments = parser.parse_args()
    screen = Screen(STAGES)
    job = Job(Home.of(arguments.home), arguments.folder, SHORT if arguments.short else FULL, screen)
    failure = ""
    try:
        job.run()
    except (ApiError, TaskFailed, VerdictLate, RunnerError, NoAdministrator, AssertionError) as error:
        failure = f"{type(error).__name__}: {error}"
    job.summary["failure"] = failure
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "summary.json"
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(job.summary, indent=2, ensure_ascii=False) + "\n")
    draft.replace(path)
    if failure:
        screen.console.print(f"[red]the main job stopped:[/red] {failure.replace('[', chr(92) + '[')}")
        screen.console.print("`make status` shows the processes, `make logs` what they said; `make demo` tries again")
        sys.exit(1)
    _conclude(screen, job.summary, path, job.url)


def _conclude(screen: Screen, summary: dict[str, Any], path: Path, url: str) -> None:
    score, majority = summary["evaluation"]["score"], summary["evaluation"]["baselines"].get("majority", {})
    training = summary["training"]
    screen.table(
        "The main job",
        [
            ("rows imported, kept, held out", _rows(summary)),
            ("leakage across the split", f"{summary['split']['leakage']:,} near-duplicates, removed"),
            ("loss, first and last", f"{_number(training['first_loss'])}, {_number(training['last_loss'])}"),
            ("tokens a second", _number(training["tokens_per_second"])),
            ("exact match", f"{score['value']:.3f} ({score['lower']:.3f} to {score['upper']:.3f})"),
            ("majority class", _number(majority.get("value"))),
            ("gate", summary["evaluation"]["gate"]["rule"]),
            ("deployment", f"{summary['deployment']['name']}: {summary['deployment']['state'].lower()}"),
            ("refused", f"{summary['deployment']['refusal']['reason']} for the first try"),
            ("answer", f"{summary['answers']['answer']!r}, expected {summary['answers']['expected']!r}"),
            ("time to first token", f"{summary['answers']['time_to_first_token_seconds'] * 1000:.0f} ms"),
            ("spans in the answer's trace", summary["traces"]["answer"]["spans"]),
            ("seconds in all", summary["seconds"]["all"]),
            ("summary", path),
            ("API and its description", f"{url}/docs"),
            ("processes", "make status, make logs; make down stops them"),
        ],
    )


def _rows(summary: dict[str, Any]) -> str:
    return f"{summary['imported']['rows']:,}, {summary['cleaned']['kept']:,}, {summary['split']['test_rows']:,}"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,.3f}" if value < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
