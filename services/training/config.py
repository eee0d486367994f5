"""Settings of training."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from libs.common.config import CommonSettings


class TrainingSettings(CommonSettings):
    """Nothing beyond what every service has."""

    model_config = SettingsConfigDict(env_prefix="ARGOSY_TRAINING_", extra="ignore", populate_by_name=True)
