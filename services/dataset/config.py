"""Settings of the dataset service."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from libs.common.config import CommonSettings

_PREFIX = "ARGOSY_DATASET_"


class DatasetSettings(CommonSettings):
    """What every service has, and how far imports reach outside."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore", populate_by_name=True)

    # Networks beside the public ones that links, databases and language models may lead to:
    # `10.20.0.0/16,fd00:20::/32`.
    import_networks: str = ""
    # Of one file that is fetched.
    import_max_bytes: int = Field(default=100 << 30, ge=1)
    # For fetching one file, or reading one query.
    import_max_seconds: float = Field(default=6 * 3600.0, gt=0, le=7 * 86400.0)
    # Folder with the SQLite files that may be read; None: none.
    import_sqlite_folder: Path | None = None
    # Whose certificate replicas show.
    replica_identity: str = "replica"

    @field_validator("import_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        for network in networks(text):
            ip_network(network)
        return text


def networks(text: str) -> list[str]:
    """The CIDR blocks of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]
