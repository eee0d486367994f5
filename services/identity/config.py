"""Settings of identity."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import SettingsConfigDict

from libs.common.config import CommonSettings


class IdentitySettings(CommonSettings):
    """What identity needs beside the common settings."""

    model_config = SettingsConfigDict(env_prefix="ARGOSY_IDENTITY_", extra="ignore", populate_by_name=True)

    # Holds the one-time token for the first administrator; empty: `<home>/secrets/bootstrap-token`.
    bootstrap_token_file: Path | None = None
    # Keys that seal signing keys and secrets; empty: `<home>/secrets/identity-key`, made at the first start.
    key_file: Path | None = None

    @property
    def bootstrap_token_path(self) -> Path:
        return self.bootstrap_token_file or self.home / "secrets" / "bootstrap-token"

    @property
    def key_path(self) -> Path:
        return self.key_file or self.home / "secrets" / "identity-key"
