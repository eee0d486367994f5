"""What changes registered models and their versions: descriptions, tags, and their end."""

from __future__ import annotations

from argosy.training.v1 import model_service_pb2, training_pb2

from services.gateway.clients.outside_runs import OutsideRuns
from services.gateway.http.mlflow.given import Json
from services.gateway.http.mlflow.guard import Answer, Visit
from services.gateway.http.mlflow.models import Models, version_json

_LONGEST_TAG = 5_000


class ModelChanges:
    """Answers about changes of registered models.

    Args:
        backend: training.
        models: finds them.
    """

    def __init__(self, backend: OutsideRuns, models: Models) -> None:
        self._backend = backend
        self._models = models

    def answers(self) -> dict[str, dict[str, Answer]]:
        """Path below `/api/2.0/mlflow/` -> HTTP method -> answer."""
        return {
            "registered-models/update": {"PATCH": self.describe},
            "registered-models/delete": {"DELETE": self.delete},
            "registered-models/set-tag": {"POST": self.set_tag},
            "registered-models/delete-tag": {"DELETE": self.delete_tag},
            "model-versions/update": {"PATCH": self.describe_version},
            "model-versions/delete": {"DELETE": self.delete_version},
            "model-versions/set-tag": {"POST": self.set_version_tag},
            "model-versions/delete-tag": {"DELETE": self.delete_version_tag},
        }

    async def describe(self, visit: Visit) -> Json:
        """Another description of a model."""
        text = visit.given.text("description", most=1000)

        def describe(project: training_pb2.ModelProject) -> None:
            project.description = text

        project = await self._models.project(visit)
        project = await self._backend.change_project(project, "description", describe, visit.call)
        return {"registered_model": await self._models.shown(project, visit)}

    async def delete(self, visit: Visit) -> Json:
        """Softly."""
        request = model_service_pb2.DeleteModelProjectRequest(name=(await self._models.project(visit)).name)
        await self._backend.models.DeleteModelProject(request, **visit.call)
        return {}

    async def set_tag(self, visit: Visit) -> Json:
        """Sets a tag of a model, which is a label."""
        key, value = _tag(visit)

        def tag(project: training_pb2.ModelProject) -> None:
            project.labels[key] = value

        await self._backend.change_project(await self._models.project(visit), "labels", tag, visit.call)
        return {}

    async def delete_tag(self, visit: Visit) -> Json:
        """Takes a tag of a model away, if it is there."""
        key, _ = _tag(visit)

        def untag(project: training_pb2.ModelProject) -> None:
            project.labels.pop(key, None)

        await self._backend.change_project(await self._models.project(visit), "labels", untag, visit.call)
        return {}

    async def describe_version(self, visit: Visit) -> Json:
        """Another description of a version."""
        text = visit.given.text("description", most=60_000)

        def describe(version: training_pb2.ModelVersion) -> None:
            version.description = text

        version = await self._models.version(visit)
        version = await self._backend.change_version(version, "description", describe, visit.call)
        aliases = await self._backend.aliases(version.name.rpartition("/versions/")[0], visit.call)
        return {"model_version": version_json(version, aliases)}

    async def delete_version(self, visit: Visit) -> Json:
        """Softly; what an alias stands for, or answers somewhere, stays."""
        request = model_service_pb2.DeleteModelVersionRequest(name=(await self._models.version(visit)).name)
        await self._backend.models.DeleteModelVersion(request, **visit.call)
        return {}

    async def set_version_tag(self, visit: Visit) -> Json:
        """Sets a tag of a version, which is a label."""
        key, value = _tag(visit)

        def tag(version: training_pb2.ModelVersion) -> None:
            version.labels[key] = value

        await self._backend.change_version(await self._models.version(visit), "labels", tag, visit.call)
        return {}

    async def delete_version_tag(self, visit: Visit) -> Json:
        """Takes a tag of a version away, if it is there."""
        key, _ = _tag(visit)

        def untag(version: training_pb2.ModelVersion) -> None:
            version.labels.pop(key, None)

        await self._backend.change_version(await self._models.version(visit), "labels", untag, visit.call)
        return {}


def _tag(visit: Visit) -> tuple[str, str]:
    return visit.given.text("key", most=250, needed=True), visit.given.text("value", most=_LONGEST_TAG)
