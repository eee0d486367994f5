"""Entry point of `argosy`: one tree of commands, noun then verb."""

from __future__ import annotations

import importlib.util

import typer
from argosy.cli import access, detectors, human, resources, streams, talk, work


def build() -> typer.Typer:
    """The whole tree: commands by hand, commands of this machine where the runner is installed, the rest from the
    contracts.
    """
    app = typer.Typer(
        name="argosy",
        help="An open, self-hosted large-model platform: from raw data to a served, watched application.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    if importlib.util.find_spec("deploy") and importlib.util.find_spec("deploy.local"):
        from deploy.local import cli as runner

        runner.mount(app)
        logs = runner.logs
    else:
        logs = typer.Typer(help="Log lines.")
        app.add_typer(logs, name="logs")
    if "query" not in {command.name for command in logs.registered_commands}:
        logs.command("query")(talk.query_logs)
    nouns = {"logs": logs}
    for commands in (work, human, detectors, streams, talk):
        nouns |= commands.mount(app)
    access.mount(app)
    resources.add(app, nouns)
    return app


def main() -> None:
    """Runs the command line."""
    build()()
