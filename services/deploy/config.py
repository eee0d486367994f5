"""Settings of deploy."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from libs.common.config import CommonSettings


class DeploySettings(CommonSettings):
    """Read from the environment; own fields have the prefix `ARGOSY_DEPLOY_`."""

    model_config = SettingsConfigDict(env_prefix="ARGOSY_DEPLOY_", extra="ignore", populate_by_name=True)

    # Address on which replicas listen. The machine's own for one machine; that of the node in a cluster.
    replica_host: str = "127.0.0.1"
    # Seconds between two looks at what is wanted and what there is.
    reconcile_seconds: float = Field(default=1.0, gt=0)
    # Seconds between two health checks of a replica.
    health_seconds: float = Field(default=2.0, gt=0)
    # A replica that has not become ready after this is started again.
    start_seconds: float = Field(default=600.0, gt=0)
    # WatchEndpoints sends the whole set at least this often.
    endpoints_seconds: float = Field(default=10.0, gt=0)
