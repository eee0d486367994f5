"""Settings that every service process has. Read from the environment once, in the composition root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

_HIDDEN = "**********"


class CommonSettings(BaseSettings):
    """What the local runner, compose or Helm tells a service.

    A service subclasses it with `model_config = SettingsConfigDict(env_prefix="ARGOSY_<NAME>_")`: its own fields then
    read `ARGOSY_<NAME>_<FIELD>`, and the fields here that are common to the mesh still read `ARGOSY_<FIELD>`.
    """

    model_config = SettingsConfigDict(env_prefix="ARGOSY_", extra="ignore", populate_by_name=True)

    # Data folder of the mesh.
    home: Path = Field(default=Path("~/.local/share/argosy").expanduser(), validation_alias="ARGOSY_HOME")
    # Address of this service's gRPC port. Port 0: any free one.
    listen: str = "127.0.0.1:0"
    # `postgresql+asyncpg://...`; empty: the service keeps no rows.
    database_url: SecretStr = SecretStr("")
    # `file://...` or `s3://...`; empty: the service keeps no blobs.
    blob_root: str = Field(default="", validation_alias="ARGOSY_BLOB_ROOT")
    blob_key_file: Path | None = Field(default=None, validation_alias="ARGOSY_BLOB_KEY_FILE")
    # `nats://user:password@host:port`; empty: events wait in the outbox.
    nats_url: SecretStr = Field(default=SecretStr(""), validation_alias="ARGOSY_NATS_URL")
    # Holds ca.crt, <service>.crt and <service>.key, rotated in place.
    pki_dir: Path = Field(default=Path("~/.local/share/argosy/pki").expanduser(), validation_alias="ARGOSY_PKI_DIR")
    # Service name -> `host:port`.
    peers: dict[str, str] = Field(default_factory=dict, validation_alias="ARGOSY_PEERS")
    # `host:port` of an OTLP gRPC receiver; empty: telemetry stays in the process.
    otlp: str = Field(default="", validation_alias="ARGOSY_OTLP")
    # Address of the Ray head, for roles that run long work.
    ray_address: str = Field(default="", validation_alias="ARGOSY_RAY_ADDRESS")
    # Calls that one process serves at a time; more are refused with RetryInfo.
    max_concurrent_calls: int = Field(default=256, ge=1, validation_alias="ARGOSY_MAX_CONCURRENT_CALLS")
    # Server streams, which may last for hours, are counted apart.
    max_concurrent_streams: int = Field(default=1024, ge=1, validation_alias="ARGOSY_MAX_CONCURRENT_STREAMS")
    # Seconds that calls in flight get after SIGTERM.
    drain_seconds: float = Field(default=10.0, ge=0, validation_alias="ARGOSY_DRAIN_SECONDS")


def describe(settings: BaseSettings) -> dict[str, Any]:
    """The settings as plain values for the log, without secrets and without passwords inside URLs."""

    def shown(value: Any) -> Any:
        if isinstance(value, SecretStr):
            return _HIDDEN if value.get_secret_value() else ""
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, str) and "://" in value and "@" in value:
            scheme, rest = value.split("://", 1)
            return f"{scheme}://{_HIDDEN}@{rest.rsplit('@', 1)[1]}"
        return value

    return {name: shown(value) for name, value in settings}
