"""Which gateway and which key: arguments, then the environment, then what `argosy login` kept."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Login:
    """What `argosy login` keeps."""

    url: str = ""
    api_key: str = ""
    # `orgs/{org}`: where commands work when nothing else is said.
    org: str = ""


def credentials_file() -> Path:
    """Where the login is kept."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "argosy" / "credentials.json"


def load() -> Login:
    """The kept login; empty if there is none."""
    try:
        data = json.loads(credentials_file().read_text())
        return Login(**{name: str(data.get(name, "")) for name in Login.__slots__})
    except (OSError, ValueError, AttributeError):
        return Login()


def keep(login: Login) -> Path:
    """Writes the login, for its owner only."""
    path = credentials_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(login), file)
    draft.replace(path)
    return path


def resolve(url: str | None, api_key: str | None) -> tuple[str, str]:
    """URL and key to use."""
    kept = load()
    chosen = url or os.environ.get("ARGOSY_URL") or kept.url or DEFAULT_URL
    key = api_key if api_key is not None else os.environ.get("ARGOSY_API_KEY", kept.api_key)
    return chosen.rstrip("/"), key


def headers(api_key: str) -> dict[str, str]:
    """Headers of every request."""
    try:
        agent = f"argosy-python/{version('argosy')}"
    except PackageNotFoundError:
        agent = "argosy-python"
    return {"user-agent": agent, **({"authorization": f"Bearer {api_key}"} if api_key else {})}
