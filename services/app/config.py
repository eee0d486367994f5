"""Settings of the application layer."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from libs.common.config import CommonSettings


class AppSettings(CommonSettings):
    """The common settings under the prefix of this service."""

    model_config = SettingsConfigDict(env_prefix="ARGOSY_APP_", extra="ignore", populate_by_name=True)

    # Whose certificate replicas show.
    replica_identity: str = "replica"
