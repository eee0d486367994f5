"""Settings of training."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from libs.common.config import CommonSettings


class TrainingSettings(CommonSettings):
    """What every service has, the key of its signatures, and where models may come from."""

    model_config = SettingsConfigDict(env_prefix="ARGOSY_TRAINING_", extra="ignore", populate_by_name=True)

    # Keys that seal the keys which sign model versions; empty: `<home>/secrets/training-key`, made at the first start.
    key_file: Path | None = None
    # Folders that models may be imported from, separated by colons; empty: none.
    model_folders: str = ""
    # Hub that models may be imported from, such as `https://huggingface.co`; empty: none.
    model_hub: str = ""
    # Networks beside the public ones that the hub may lie in: `10.20.0.0/16,fd00:20::/32`.
    model_hub_networks: str = ""
    # Of all files of one imported model.
    model_max_bytes: int = Field(default=1 << 40, ge=1)

    # Of one file of an outside run.
    artifact_max_bytes: int = Field(default=10 << 30, ge=1)

    @property
    def key_path(self) -> Path:
        return self.key_file or self.home / "secrets" / "training-key"

    @property
    def open_folders(self) -> list[str]:
        """Those of `model_folders`."""
        return [folder for folder in self.model_folders.split(":") if folder]
