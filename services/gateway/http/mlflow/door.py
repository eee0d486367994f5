"""`/api/2.0/mlflow/...`: what `MLFLOW_TRACKING_URI` asks for. https://mlflow.org/docs/latest/rest-api.html"""

from __future__ import annotations

from services.gateway.clients.outside_runs import OutsideRuns
from services.gateway.http.caller import Authenticator
from services.gateway.http.door import Handler
from services.gateway.http.exchange import Exchange
from services.gateway.http.mlflow.artifacts import Artifacts
from services.gateway.http.mlflow.errors import UnsupportedError
from services.gateway.http.mlflow.experiments import Experiments
from services.gateway.http.mlflow.guard import Answer, admit, endpoint, guarded
from services.gateway.http.mlflow.model_changes import ModelChanges
from services.gateway.http.mlflow.models import Models
from services.gateway.http.mlflow.runs import Runs

PREFIX = "/api/2.0/mlflow/"
# What lies beside it in MLflow's server and is answered in its words.
_OTHERS = ("/api/2.0/mlflow", "/api/3.0/mlflow", "/ajax-api/")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_LOGGED_MODELS = "logged-models"


class Mlflow:
    """Handlers of all MLflow routes.

    Args:
        authenticator: knows keys and tokens.
        backend: training.
    """

    def __init__(self, authenticator: Authenticator, backend: OutsideRuns) -> None:
        self._authenticator = authenticator
        self._artifacts = Artifacts(authenticator, backend)
        experiments = Experiments(backend)
        self._runs = Runs(backend, experiments)
        models = Models(backend)
        parts = (experiments, self._runs, models, ModelChanges(backend, models), self._artifacts)
        self._answers: dict[str, dict[str, Answer]] = {
            path: one for part in parts for path, one in part.answers().items()
        }

    def handlers(self) -> dict[str, dict[str, Handler]]:
        """Path -> HTTP method -> handler."""
        by_path = {
            PREFIX + path: {method: endpoint(self._authenticator, answer) for method, answer in by_method.items()}
            for path, by_method in self._answers.items()
        }
        return {**by_path, **self._artifacts.handlers()}

    def prefixed(self) -> dict[str, dict[str, Handler]]:
        """Path prefix -> HTTP method -> handler; the first that fits counts."""
        unknown: dict[str, Handler] = dict.fromkeys(_METHODS, self._unknown)
        return {**self._artifacts.prefixed(), **dict.fromkeys(_OTHERS, unknown)}

    async def _unknown(self, exchange: Exchange) -> None:
        exchange.route = "MLflow, unsupported"
        await guarded(exchange, self._refuse(exchange))

    async def _refuse(self, exchange: Exchange) -> None:
        visit = await admit(exchange, self._authenticator)
        if exchange.path.startswith(PREFIX + _LOGGED_MODELS):
            await self._runs.refuse_model(visit)
        raise UnsupportedError(
            f"{exchange.method} {exchange.path[:200]} is not supported by Argosy; it has experiments, runs, metrics, "
            "artifacts, registered models, model versions and aliases."
        )
