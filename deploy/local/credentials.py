"""Secrets of one mesh: made once, each in a file of its own that only its owner reads."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from deploy.local.layout import SERVICES, Home
from libs.common.secrets import Keyring

# 32 random bytes: beyond guessing, so the stores behind it need no slow hash.
_TOKEN_BYTES = 32
BOOTSTRAP = "bootstrap-token"


def token(folder: Path, name: str) -> str:
    """The secret in `folder/name`, made now if there is none. Letters, digits, `-` and `_`."""
    path = folder / name
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        value = secrets.token_urlsafe(_TOKEN_BYTES)
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    return value


class Credentials:
    """Every secret that the runner hands out.

    Args:
        home: data folder; what is missing in `secrets/` is made.
    """

    def __init__(self, home: Home) -> None:
        self._folder = home.secrets
        self.database = {name: token(self._folder, f"postgres-{name}") for name in ("postgres", *SERVICES)}
        self.bus = {name: token(self._folder, f"nats-{name}") for name in ("runner", *SERVICES)}
        # For the first administrator, once. Identity looks for it here.
        token(self._folder, BOOTSTRAP)
        # Encrypts blobs at rest.
        self.blob_key_file = self._folder / "blob-key"
        Keyring.create_file(self.blob_key_file)

    def database_file(self, role: str) -> Path:
        """The file with the password of a database role."""
        return self._folder / f"postgres-{role}"
