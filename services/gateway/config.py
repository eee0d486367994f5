"""Settings of the gateway, from the environment: `ARGOSY_GATEWAY_*`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from libs.common.config import CommonSettings


class Settings(CommonSettings):
    """What the gateway is told."""

    model_config = SettingsConfigDict(env_prefix="ARGOSY_GATEWAY_", extra="ignore", populate_by_name=True)

    # Address of the HTTP door.
    http_listen: str = "127.0.0.1:8080"
    # Requests served at a time, streams included.
    max_requests: int = Field(default=2048, ge=1)
    # A minute's allowance of a key that names none.
    requests_per_minute: int = Field(default=6000, ge=1)
    tokens_per_minute: int = Field(default=1_000_000, ge=1)
    # Folder of the journal of the usage ledger; unset: `<home>/gateway`.
    journal_dir: Path | None = None
    # Name in the certificates that replicas show.
    replica_identity: str = "replica"
    # Whether every request gets a log line.
    access_log: bool = True

    @property
    def journal(self) -> Path:
        """Where the journal lies."""
        return self.journal_dir or self.home / "gateway"
