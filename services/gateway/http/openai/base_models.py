"""The model version that a name at the door stands for, where a model is to be trained further and not asked."""

from __future__ import annotations

import re

from argosy.training.v1 import training_pb2

from libs.common.errors import ArgosyError
from libs.inference.replicas import Replicas
from services.gateway.clients.applications import Metadata
from services.gateway.clients.deployments import Deployments
from services.gateway.clients.trainings import Trainings
from services.gateway.domain import openai_names as names
from services.gateway.http.caller import Caller
from services.gateway.http.openai.errors import MissingError

_ID = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PLAIN = re.compile(rf"{_ID}\Z")
_PROJECT = re.compile(rf"orgs/{_ID}/modelProjects/{_ID}\Z")
_VERSION = re.compile(rf"orgs/{_ID}/modelProjects/{_ID}/versions/{_ID}\Z")


class BaseModels:
    """Finds model versions.

    Args:
        trainings: know model projects and their versions.
        replicas: know what is live.
        deployments: know what is not live yet, or no more.
    """

    def __init__(self, trainings: Trainings, replicas: Replicas, deployments: Deployments) -> None:
        self._trainings = trainings
        self._replicas = replicas
        self._deployments = deployments

    async def find(self, model: str, caller: Caller, metadata: Metadata) -> training_pb2.ModelVersion:
        """The version behind a name.

        Args:
            model: `ft:...`, a model version, a model project (its live version, else its newest), or the id of a
                deployment or of a model project.

        Raises:
            MissingError: There is none.
        """
        name = await self._name(model, caller, metadata)
        version = await self._trainings.version(name, caller, metadata) if name else None
        if version is None:
            raise MissingError("model", "model", model)
        return version

    async def _name(self, model: str, caller: Caller, metadata: Metadata) -> str:
        tuned = names.parse_model(model)
        if tuned is not None:
            return tuned.model_version if tuned.org == caller.org else ""
        if _VERSION.match(model):
            return model
        if _PROJECT.match(model):
            return await self._trainings.newest_version(model, caller, metadata)
        if not _PLAIN.match(model):
            return ""
        return await self._deployed(f"orgs/{caller.org}/deployments/{model}", caller, metadata) or (
            await self._trainings.newest_version(f"orgs/{caller.org}/modelProjects/{model}", caller, metadata)
        )

    async def _deployed(self, name: str, caller: Caller, metadata: Metadata) -> str:
        live = self._replicas.find(name)
        if live is not None:
            return live.endpoint.model_version
        try:
            found = await self._deployments.find(name, caller, metadata)
        except ArgosyError as error:
            # A model project can be trained further while deploy is away.
            if error.is_reason("PEER_UNAVAILABLE", "DEADLINE_EXCEEDED"):
                return ""
            raise
        return found.model_version if found is not None else ""


def base_name(version: str) -> str:
    """What the name of a model says of the version that it was made from: the id of its project."""
    return version.split("/")[3]
