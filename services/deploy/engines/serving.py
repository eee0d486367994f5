"""What the handlers of a replica need."""

from __future__ import annotations

from dataclasses import dataclass, field

from opentelemetry.metrics import Counter, Histogram

from libs.common.ids import org_of
from libs.common.obs import meter
from services.deploy.engines.text_engine import TextEngine


@dataclass(frozen=True)
class ReplicaMetrics:
    """Instruments of a replica. Names follow the OpenTelemetry GenAI conventions."""

    first_token: Histogram = field(
        default_factory=lambda: meter().create_histogram("gen_ai.server.time_to_first_token", unit="s")
    )
    tokens: Counter = field(default_factory=lambda: meter().create_counter("argosy.replica.tokens", unit="{token}"))


@dataclass(frozen=True)
class Serving:
    """The model that a replica serves, and under which name.

    Args:
        engine: answers requests.
        audience: what a token must carry: the deployment, or the replica itself.
        model_version: resource name.
    """

    engine: TextEngine
    audience: str
    model_version: str
    metrics: ReplicaMetrics = field(default_factory=ReplicaMetrics)

    @property
    def org(self) -> str:
        """Organization whose model it is; nobody else may ask."""
        return org_of(self.audience)

    @property
    def attributes(self) -> dict[str, str]:
        """Attributes of every measurement."""
        return {"argosy.deployment": self.audience, "argosy.model_version": self.model_version}
