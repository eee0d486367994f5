"""Settings of aiops."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from libs.common.config import CommonSettings


class AiopsSettings(CommonSettings):
    """What aiops needs beside the common settings."""

    model_config = SettingsConfigDict(env_prefix="ARGOSY_AIOPS_", extra="ignore", populate_by_name=True)

    # Folder of the telemetry store; empty: `<home>/aiops`.
    store_dir: Path | None = None
    # `host:port` of OTLP/HTTP; empty: only OTLP/gRPC on the service's own port.
    http_listen: str = ""
    bytes_per_signal: int = Field(default=256 << 20, ge=1 << 20)
    seconds_in_memory: float = Field(default=60.0, gt=0)

    @property
    def store_path(self) -> Path:
        return self.store_dir or self.home / "aiops"
