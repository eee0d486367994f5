"""Entry point of `argosy`: one tree of commands, noun then verb."""

from __future__ import annotations

import importlib.util

import typer

app = typer.Typer(
    name="argosy",
    help="An open, self-hosted large-model platform: from raw data to a served, watched application.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def build() -> typer.Typer:
    """The whole tree. The commands that start a mesh are there where the runner is installed."""
    if importlib.util.find_spec("deploy") and importlib.util.find_spec("deploy.local"):
        from deploy.local import cli as runner

        runner.mount(app)
    return app


def main() -> None:
    """Runs the command line."""
    build()()
