"""`argosy bootstrap`, `argosy login`, `argosy whoami`: getting and keeping a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from argosy.cli import session
from argosy.client import Client
from argosy.client.settings import Login, keep, load, resolve


def bootstrap(
    token_file: Annotated[
        Path | None, typer.Option(help="File with the one-time token; else that of the mesh on this machine.")
    ] = None,
    user: Annotated[str, typer.Option(help="Id of the first administrator.")] = "admin",
    url: Annotated[str | None, typer.Option(help="Of the gateway.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Create the first administrator of a new mesh from its one-time token, and log in as him."""
    path = (
        token_file
        or Path(os.environ.get("ARGOSY_HOME", "~/.local/share/argosy")).expanduser() / "secrets/bootstrap-token"
    )
    address, _ = resolve(url, "")
    with session.session(), Client(address, api_key="") as client:
        answer = client.identity.bootstrap(token=path.read_text().strip(), user_id=user)
        keep(Login(address, answer.api_key.secret, "orgs/system"))
        session.show({"user": answer.user.name, "kept": "the key is in the credentials of this account"}, as_json)


def login(
    key: Annotated[str, typer.Option(help="API key.", prompt=True, hide_input=True)],
    url: Annotated[str | None, typer.Option(help="Of the gateway.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Check an API key and keep it for the commands that follow."""
    address, _ = resolve(url, key)
    with session.session(), Client(address, api_key="") as client:
        token = client.identity.exchange_key(key=key)
        path = keep(Login(address, key, token.org))
        session.show({"subject": f"{token.org}/{token.subject}", "url": address, "kept_in": str(path)}, as_json)


def whoami(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show whose key is kept, and what it may do."""
    address, key = resolve(None, None)
    with session.session() as client:
        if not key:
            raise session.Misuse("nobody is logged in: run `argosy login`")
        token = client.identity.exchange_key(key=key)
        shown = session.plain(token)
        session.show(
            {
                "url": address,
                "org": shown.get("org", load().org),
                "subject": shown.get("subject", ""),
                "role": shown.get("role", ""),
            },
            as_json,
        )


def mount(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (bootstrap, login, whoami):
        app.command(rich_help_panel="Access")(command)
