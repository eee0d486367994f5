"""Settings of evaluation."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from libs.common.config import CommonSettings


class EvalSettings(CommonSettings):
    """The common settings under the prefix of this service."""

    model_config = SettingsConfigDict(env_prefix="ARGOSY_EVAL_", extra="ignore", populate_by_name=True)
