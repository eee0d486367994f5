"""Registered models: model projects, their versions and aliases."""

from __future__ import annotations

import hashlib
import re

from argosy.common.v1 import task_pb2
from argosy.training.v1 import model_registry_service_pb2, model_service_pb2, training_pb2

from libs.common.errors import ArgosyError
from services.gateway.clients.outside_runs import OutsideRuns
from services.gateway.domain import mlflow_names as names
from services.gateway.http.mlflow.errors import MissingError, ParameterError, UnsupportedError
from services.gateway.http.mlflow.filters import Comparison, parse_filter, parse_order
from services.gateway.http.mlflow.given import Json
from services.gateway.http.mlflow.guard import Answer, Visit
from services.gateway.http.mlflow.matching import meets, page_of
from services.gateway.http.mlflow.runs import ADVICE

_SOURCE = re.compile(r"(?:runs:/+([^/]+)|mlflow-artifacts:/+[^/]+/([^/]+)/artifacts)(?:/(.*))?\Z", re.DOTALL)
_WEIGHTS = ".safetensors"
_PICKLED = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".ckpt", ".h5", ".keras")
# MLflow's client gives up after two minutes.
_IMPORT_SECONDS = 90.0
_RUN_NAME = re.compile(r"orgs/[^/]+/trainings/[^/]+/runs/[^/]+\Z")
# The client asks for models that are no prompts.
_NO_PROMPT = {"mlflow.prompt.is_prompt": "false"}
_USUAL_MODELS, _USUAL_VERSIONS = 100, 200
_LATEST = "latest"


class Models:
    """Answers about registered models.

    Args:
        backend: training.
    """

    def __init__(self, backend: OutsideRuns) -> None:
        self._backend = backend

    def answers(self) -> dict[str, dict[str, Answer]]:
        """Path below `/api/2.0/mlflow/` -> HTTP method -> answer."""
        alias: dict[str, Answer] = {"GET": self.version_by_alias, "POST": self.set_alias, "DELETE": self.delete_alias}
        return {
            "registered-models/create": {"POST": self.create},
            "registered-models/get": {"GET": self.get},
            "registered-models/search": {"GET": self.search},
            "registered-models/get-latest-versions": {"POST": self.latest, "GET": self.latest},
            "registered-models/alias": alias,
            "model-versions/create": {"POST": self.create_version},
            "model-versions/get": {"GET": self.get_version},
            "model-versions/search": {"GET": self.search_versions},
            "model-versions/get-download-uri": {"GET": self.refuse_download},
            "model-versions/transition-stage": {"POST": self.refuse_stage},
        }

    async def create(self, visit: Visit) -> Json:
        """Makes a model project."""
        name = visit.given.text("name", needed=True)
        request = model_service_pb2.CreateModelProjectRequest(
            parent=f"orgs/{visit.org}",
            model_project_id=_id_of(name, visit).rpartition("/")[2],
            model_project=training_pb2.ModelProject(
                display_name=name,
                description=visit.given.text("description", most=1000),
                labels=visit.given.pairs("tags", 64, 5_000),
            ),
        )
        project = await self._backend.models.CreateModelProject(request, **visit.call)
        return {"registered_model": _model(project, {}, [])}

    async def get(self, visit: Visit) -> Json:
        """One with its aliases and its newest version."""
        project = await self.project(visit)
        return {"registered_model": await self.shown(project, visit)}

    async def search(self, visit: Visit) -> Json:
        """Those that meet a filter on their name."""
        given = visit.given
        conditions = parse_filter(given.text("filter"))
        orders = [parse_order(text[:500]) for text in given.texts("order_by", 5)] or [("attribute", "name", False)]
        projects = {
            project.name.rpartition("/")[2]: project
            for project in await self._backend.all_projects(visit.org, visit.call)
        }
        found: list[Json] = [
            _model(project, {}, []) for project in projects.values() if all(_meets(project, one) for one in conditions)
        ]
        keys = {
            "name": "name",
            "timestamp": "last_updated_timestamp",
            "last_updated_timestamp": "last_updated_timestamp",
        }
        for kind, key, descending in reversed(orders):
            if kind != "attribute" or key not in keys:
                raise ParameterError("order_by", f"{key[:100]!r} is not one of {', '.join(keys)}")
            found.sort(key=lambda one, key=keys[key]: one[key], reverse=descending)
        page, token = page_of(found, given, _USUAL_MODELS)
        shown = [await self.shown(projects[one["name"]], visit) for one in page]
        return {"registered_models": shown, **({"next_page_token": token} if token else {})}

    async def latest(self, visit: Visit) -> Json:
        """The newest version; there are no stages of MLflow."""
        project = await self.project(visit)
        return {"model_versions": (await self.shown(project, visit))["latest_versions"]}

    async def create_version(self, visit: Visit) -> Json:
        """Takes a model among the files of a run into the registry, checked as every model from outside."""
        given, project = visit.given, await self.project(visit)
        run, path = self._source(visit)
        files = await self._backend.files(run, path, visit.call)
        if not any(file.path.endswith(_WEIGHTS) for file in files):
            pickled = next((file.path for file in files if file.path.endswith(_PICKLED)), "")
            raise UnsupportedError(f"{pickled or path or 'This run'} has no weights as safetensors. {ADVICE}")
        request = model_registry_service_pb2.ImportModelRequest(
            parent=project.name,
            run=run,
            run_path=path,
            labels=given.pairs("tags", 64, 255),
            description=given.text("description", most=60_000),
        )
        # The client sends again what was not answered. The same files asked for in the same words are the same version.
        told = hashlib.sha256(request.SerializeToString(deterministic=True))
        for file in files:
            told.update(file.SerializeToString(deterministic=True))
        request.request_id = told.hexdigest()
        task = await self._backend.imported(request, _IMPORT_SECONDS, visit.call)
        if task.state == task_pb2.Task.STATE_FAILED:
            raise ParameterError("source", task.error.message)
        if task.state != task_pb2.Task.STATE_SUCCEEDED:
            message = f"The model is still being checked by {task.name}; it becomes a version of {project.name} then."
            raise ArgosyError("STATE_CONFLICT", message, metadata={"name": task.name, "state": "running", "wanted": ""})
        version = model_service_pb2.GetModelVersionRequest(name=str(task.result["model_version"]))
        return {"model_version": version_json(await self._backend.models.GetModelVersion(version, **visit.call), {})}

    def _source(self, visit: Visit) -> tuple[str, str]:
        """Run and path of `runs:/{run}/{path}` or `mlflow-artifacts:/{experiment}/{run}/artifacts/{path}`."""
        source = visit.given.text("source", most=1500, needed=True)
        matched = _SOURCE.match(source)
        run = names.run(visit.org, matched[1] or matched[2]) if matched else None
        if matched is None or run is None:
            raise UnsupportedError(f"source: {source[:200]!r} is not runs:/<run id>/<path>. {ADVICE}")
        return run, (matched[3] or "").strip("/")

    async def get_version(self, visit: Visit) -> Json:
        """One version."""
        version = await self.version(visit)
        aliases = await self._backend.aliases(version.name.rpartition("/versions/")[0], visit.call)
        return {"model_version": version_json(version, aliases)}

    async def search_versions(self, visit: Visit) -> Json:
        """Those of one model, or of one run."""
        given = visit.given
        conditions = parse_filter(given.text("filter"))
        wanted = {one.key: one for one in conditions if one.kind == "attribute"}
        named = wanted.get("name")
        if named is not None and named.operator == "=" and len(named.texts) == 1:
            one = await self._found(named.texts[0], visit)
            projects = [one] if one is not None else []
        else:
            projects = await self._backend.all_projects(visit.org, visit.call)
        found: list[Json] = []
        for project in projects:
            aliases = await self._backend.aliases(project.name, visit.call)
            for version in await self._backend.versions(project.name, visit.call):
                shown = version_json(version, aliases)
                if all(_version_meets(shown, one) for one in conditions):
                    found.append(shown)
        page, token = page_of(found, given, _USUAL_VERSIONS)
        return {"model_versions": page, **({"next_page_token": token} if token else {})}

    async def version_by_alias(self, visit: Visit) -> Json:
        """The version that an alias stands for."""
        project, alias = await self.project(visit), visit.given.text("alias", most=255, needed=True)
        aliases = await self._backend.aliases(project.name, visit.call)
        if alias not in aliases:
            raise MissingError("alias", alias)
        request = model_service_pb2.GetModelVersionRequest(name=aliases[alias])
        version = await self._backend.models.GetModelVersion(request, **visit.call)
        return {"model_version": version_json(version, aliases)}

    async def set_alias(self, visit: Visit) -> Json:
        """Makes or moves an alias."""
        version = await self.version(visit)
        request = model_registry_service_pb2.SetModelAliasRequest(
            name=_alias_name(version.name.rpartition("/versions/")[0], visit), model_version=version.name
        )
        await self._backend.registry.SetModelAlias(request, **visit.call)
        return {}

    async def delete_alias(self, visit: Visit) -> Json:
        """Deletes an alias."""
        name = _alias_name((await self.project(visit)).name, visit)
        request = model_registry_service_pb2.DeleteModelAliasRequest(name=name)
        await self._backend.registry.DeleteModelAlias(request, **visit.call)
        return {}

    async def refuse_download(self, visit: Visit) -> Json:
        """The files of a version are not where they came from: those may have changed since."""
        version = await self.version(visit)
        raise UnsupportedError(
            f"The files of {version.name} are downloaded with their digests checked, by DownloadModelFile: GET "
            f"/v1/{version.name}:download?path=config.json. They came from {version.origin or version.training_run}."
        )

    async def refuse_stage(self, visit: Visit) -> Json:
        """Stages of MLflow."""
        raise UnsupportedError(
            "Stages are those of the model project's life-cycle, with gates: use TransitionModelVersion, or an alias."
        )

    async def shown(self, project: training_pb2.ModelProject, visit: Visit) -> Json:
        """A project with its aliases and its newest version."""
        aliases = await self._backend.aliases(project.name, visit.call)
        request = model_service_pb2.ListModelVersionsRequest(parent=project.name, page_size=1)
        page = await self._backend.models.ListModelVersions(request, **visit.call)
        return _model(project, aliases, [version_json(version, aliases) for version in page.model_versions])

    async def project(self, visit: Visit) -> training_pb2.ModelProject:
        """The project that `name` names."""
        name = visit.given.text("name", needed=True)
        found = await self._found(name, visit)
        if found is None:
            raise MissingError("registered model", name)
        return found

    async def _found(self, name: str, visit: Visit) -> training_pb2.ModelProject | None:
        project = names.project(visit.org, name)
        if project is None:
            return None
        try:
            request = model_service_pb2.GetModelProjectRequest(name=project)
            return await self._backend.models.GetModelProject(request, **visit.call)
        except ArgosyError as error:
            if error.is_reason("NOT_FOUND"):
                return None
            raise

    async def version(self, visit: Visit) -> training_pb2.ModelVersion:
        """The version that `name` and `version` name."""
        project = names.project(visit.org, visit.given.text("name", needed=True))
        number = visit.given.text("version", most=63, needed=True)
        name = names.project(visit.org, number)
        if project is None or name is None:
            raise MissingError("model version", number)
        request = model_service_pb2.GetModelVersionRequest(name=f"{project}/versions/{number}")
        return await self._backend.models.GetModelVersion(request, **visit.call)


def _id_of(name: str, visit: Visit) -> str:
    project = names.project(visit.org, name)
    if project is None:
        raise ParameterError("name", "must be lower-case letters, digits and dashes, at most 63")
    return project


def _alias_name(project: str, visit: Visit) -> str:
    alias = visit.given.text("alias", most=255, needed=True)
    if names.project(visit.org, alias) is None:
        raise ParameterError("alias", "must be lower-case letters, digits and dashes, at most 63")
    return f"{project}/aliases/{alias}"


def _meets(project: training_pb2.ModelProject, condition: Comparison) -> bool:
    """Whether a project has the name or the tag that a condition wants."""
    if condition.kind == "tag":
        tags = _NO_PROMPT | dict(project.labels)
        return condition.key in tags and meets(tags[condition.key], condition)
    if (condition.kind, condition.key) != ("attribute", "name"):
        raise ParameterError("filter", f"{condition.key[:100]!r} is not name or tags.*")
    return meets(project.name.rpartition("/")[2], condition)


def _version_meets(shown: Json, condition: Comparison) -> bool:
    """Whether a version has what a condition wants."""
    if condition.kind == "tag":
        tags = _NO_PROMPT | {tag["key"]: tag["value"] for tag in shown["tags"]}
        return condition.key in tags and meets(tags[condition.key], condition)
    if condition.kind != "attribute" or condition.key not in _VERSION_KEYS:
        raise ParameterError("filter", f"{condition.key[:100]!r} is not tags.* or one of {', '.join(_VERSION_KEYS)}")
    return meets(_VERSION_KEYS[condition.key](shown), condition)


def _model(project: training_pb2.ModelProject, aliases: dict[str, str], latest: list[Json]) -> Json:
    """A model project as MLflow's clients read a registered model."""
    return {
        "name": project.name.rpartition("/")[2],
        "creation_timestamp": project.create_time.ToMilliseconds(),
        "last_updated_timestamp": project.update_time.ToMilliseconds(),
        "user_id": project.creator,
        "description": project.description or project.display_name,
        "latest_versions": latest,
        "tags": [{"key": key, "value": value} for key, value in sorted(project.labels.items())],
        "aliases": [
            {"alias": alias, "version": version.rpartition("/")[2]} for alias, version in sorted(aliases.items())
        ],
    }


def version_json(version: training_pb2.ModelVersion, aliases: dict[str, str]) -> Json:
    """A model version."""
    _, _, _, project, _, number = version.name.split("/")
    outside = (parent.name for parent in version.lineage.parents if _RUN_NAME.match(parent.name))
    run = version.training_run or next(outside, "")
    tags = {**version.labels, "argosy.stage": version.stage, "argosy.manifest_digest": version.manifest_digest}
    return {
        "name": project,
        "version": number,
        "creation_timestamp": version.create_time.ToMilliseconds(),
        "last_updated_timestamp": version.update_time.ToMilliseconds(),
        "user_id": version.creator,
        "current_stage": "None",
        "description": version.description,
        "source": version.origin or f"argosy:/{version.name}",
        "run_id": names.run_id(run) if run else "",
        "status": "READY",
        "tags": [{"key": key, "value": value} for key, value in sorted(tags.items())],
        "aliases": sorted(alias for alias, name in aliases.items() if name == version.name),
    }


_VERSION_KEYS = {
    "name": lambda shown: shown["name"],
    "run_id": lambda shown: shown["run_id"],
    "version_number": lambda shown: float(shown["version"]),
    "source_path": lambda shown: shown["source"],
}
