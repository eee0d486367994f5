"""Settings of the dataset service."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from libs.common.config import CommonSettings


class DatasetSettings(CommonSettings):
    """Nothing beyond what every service has."""

    model_config = SettingsConfigDict(env_prefix="ARGOSY_DATASET_", extra="ignore", populate_by_name=True)
