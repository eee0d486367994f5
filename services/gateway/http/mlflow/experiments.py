"""Experiments: trainings of outside runs, and, to be read, those whose runs Argosy starts."""

from __future__ import annotations

from argosy.training.v1 import training_pb2, training_service_pb2

from libs.common.errors import ArgosyError
from services.gateway.clients.outside_runs import OutsideRuns
from services.gateway.domain import mlflow_names as names
from services.gateway.http.mlflow.errors import MissingError, ParameterError, UnsupportedError
from services.gateway.http.mlflow.filters import Comparison, parse_filter, parse_order
from services.gateway.http.mlflow.given import Json
from services.gateway.http.mlflow.guard import Answer, Visit
from services.gateway.http.mlflow.matching import meets, page_of

_MOST_NAME = 100
_MOST_TAGS = 64
_USUAL_PAGE = 1000
_VIEWS = ("ACTIVE_ONLY", "DELETED_ONLY", "ALL")
_ATTRIBUTES = ("name", "experiment_id", "creation_time", "last_update_time")


class Experiments:
    """Answers about experiments.

    Args:
        backend: training.
    """

    def __init__(self, backend: OutsideRuns) -> None:
        self._backend = backend

    def answers(self) -> dict[str, dict[str, Answer]]:
        """Path below `/api/2.0/mlflow/` -> HTTP method -> answer."""
        return {
            "experiments/create": {"POST": self.create},
            "experiments/get": {"GET": self.get},
            "experiments/get-by-name": {"GET": self.get_by_name},
            "experiments/search": {"POST": self.search, "GET": self.search},
            "experiments/delete": {"POST": self.delete},
            "experiments/restore": {"POST": self.restore},
            "experiments/update": {"POST": self.update},
            "experiments/set-experiment-tag": {"POST": self.set_tag},
            "experiments/delete-experiment-tag": {"POST": self.delete_tag},
        }

    async def create(self, visit: Visit) -> Json:
        """Raises RESOURCE_ALREADY_EXISTS if there is one of this name, deleted or not."""
        name = visit.given.text("name", most=_MOST_NAME, needed=True)
        if visit.given.text("artifact_location"):
            raise ParameterError("artifact_location", "must be empty: files lie in the platform's own store")
        tags = visit.given.pairs("tags", _MOST_TAGS, 5_000)
        if await self._named(name, visit) is not None:
            raise ArgosyError("ALREADY_EXISTS", f"There is an experiment {name!r} already.", metadata={"name": name})
        training = training_pb2.Training(outside=True, display_name=name, labels=tags)
        made = await self._create(training, names.new_training_id(name), visit)
        return {"experiment_id": names.experiment_id(made.name)}

    async def get(self, visit: Visit) -> Json:
        """One by its id."""
        return {"experiment": experiment(await self.find(visit))}

    async def get_by_name(self, visit: Visit) -> Json:
        """One by its name."""
        name = visit.given.text("experiment_name", needed=True)
        found = await self._named(name, visit)
        if found is None:
            if name == names.DEFAULT_NAME:
                return {"experiment": experiment(await self.default(visit))}
            raise MissingError("experiment", name)
        return {"experiment": experiment(found)}

    async def search(self, visit: Visit) -> Json:
        """Those that meet a filter on name and tags."""
        given = visit.given
        conditions = parse_filter(given.text("filter"))
        orders = [parse_order(text[:500]) for text in given.texts("order_by", 5)] or [
            ("attribute", "last_update_time", True)
        ]
        view = given.text("view_type") or "ACTIVE_ONLY"
        if view not in _VIEWS:
            raise ParameterError("view_type", f"must be one of {', '.join(_VIEWS)}")
        found: list[Json] = []
        for training in await self._backend.all_trainings(visit.org, visit.call):
            deleted = training.HasField("delete_time")
            wanted = view == "ALL" or (view == "DELETED_ONLY") == deleted
            shown = experiment(training)
            if wanted and all(_meets(shown, condition) for condition in conditions):
                found.append(shown)
        for kind, key, descending in reversed(orders):
            if kind != "attribute" or key not in _ATTRIBUTES:
                raise ParameterError("order_by", f"{key[:100]!r} is not one of {', '.join(_ATTRIBUTES)}")
            found.sort(key=lambda one, key=key: one[key], reverse=descending)
        page, token = page_of(found, given, _USUAL_PAGE)
        return {"experiments": page, **({"next_page_token": token} if token else {})}

    async def delete(self, visit: Visit) -> Json:
        """Softly, with its runs."""
        training = await self._writable(visit)
        request = training_service_pb2.DeleteTrainingRequest(name=training.name)
        await self._backend.trainings.DeleteTraining(request, **visit.call)
        return {}

    async def restore(self, visit: Visit) -> Json:
        """Brings one back."""
        training = await self._writable(visit)
        request = training_service_pb2.UndeleteTrainingRequest(name=training.name)
        await self._backend.trainings.UndeleteTraining(request, **visit.call)
        return {}

    async def update(self, visit: Visit) -> Json:
        """Gives one another name."""
        name = visit.given.text("new_name", most=_MOST_NAME, needed=True)
        training = await self._writable(visit)
        other = await self._named(name, visit)
        if other is not None and other.name != training.name:
            raise ArgosyError("ALREADY_EXISTS", f"There is an experiment {name!r} already.", metadata={"name": name})

        def rename(training: training_pb2.Training) -> None:
            training.display_name = name

        await self._backend.change(training, "display_name", rename, visit.call)
        return {}

    async def set_tag(self, visit: Visit) -> Json:
        """Sets a tag, which is a label of the training."""
        key, value = visit.given.text("key", most=250, needed=True), visit.given.text("value", most=5_000)
        training = await self._writable(visit)

        def tag(training: training_pb2.Training) -> None:
            training.labels[key] = value

        await self._backend.change(training, "labels", tag, visit.call)
        return {}

    async def delete_tag(self, visit: Visit) -> Json:
        """Takes a tag away."""
        key = visit.given.text("key", most=250, needed=True)
        training = await self._writable(visit)
        if key not in training.labels:
            raise MissingError("tag", key)

        def untag(training: training_pb2.Training) -> None:
            training.labels.pop(key, None)

        await self._backend.change(training, "labels", untag, visit.call)
        return {}

    async def find(self, visit: Visit) -> training_pb2.Training:
        """The training that `experiment_id` names, deleted or not. The default one is made when needed."""
        given = visit.given.text("experiment_id", most=256, needed=True)
        name = names.training(visit.org, given)
        found = await self._backend.training(name, visit.call) if name else None
        if found is None:
            if given == names.DEFAULT:
                return await self.default(visit)
            raise MissingError("experiment", given)
        return found

    async def default(self, visit: Visit) -> training_pb2.Training:
        """Makes the experiment that is written to when nobody chose one."""
        training = training_pb2.Training(outside=True, display_name=names.DEFAULT_NAME)
        try:
            return await self._create(training, names.DEFAULT_TRAINING, visit)
        except ArgosyError as error:
            if not error.is_reason("ALREADY_EXISTS"):
                raise
        # Somebody else made it meanwhile.
        name = f"orgs/{visit.org}/trainings/{names.DEFAULT_TRAINING}"
        request = training_service_pb2.GetTrainingRequest(name=name)
        return await self._backend.trainings.GetTraining(request, **visit.call)

    async def _create(self, training: training_pb2.Training, training_id: str, visit: Visit) -> training_pb2.Training:
        request = training_service_pb2.CreateTrainingRequest(
            parent=f"orgs/{visit.org}", training_id=training_id, training=training
        )
        return await self._backend.trainings.CreateTraining(request, **visit.call)

    async def _named(self, name: str, visit: Visit) -> training_pb2.Training | None:
        """One by the name that it is shown under; of two the one that is not deleted."""
        everything = await self._backend.all_trainings(visit.org, visit.call)
        same = [training for training in everything if shown_name(training) == name]
        same.sort(key=lambda training: training.HasField("delete_time"))
        return same[0] if same else None

    async def _writable(self, visit: Visit) -> training_pb2.Training:
        training = await self.find(visit)
        if not training.outside:
            message = f"{training.name} is a training whose runs Argosy starts; MLflow's clients can only read it."
            raise UnsupportedError(message)
        return training


def shown_name(training: training_pb2.Training) -> str:
    """Under which an experiment is found. Titles of trainings of ours need not differ; their ids do."""
    return (training.display_name if training.outside else "") or training.name.rpartition("/")[2]


def experiment(training: training_pb2.Training) -> Json:
    """A training as MLflow's clients read an experiment."""
    experiment_id = names.experiment_id(training.name)
    return {
        "experiment_id": experiment_id,
        "name": shown_name(training),
        "artifact_location": f"mlflow-artifacts:/{experiment_id}",
        "lifecycle_stage": "deleted" if training.HasField("delete_time") else "active",
        "creation_time": training.create_time.ToMilliseconds(),
        "last_update_time": training.update_time.ToMilliseconds(),
        "tags": [{"key": key, "value": value} for key, value in sorted(training.labels.items())],
    }


def _meets(shown: Json, condition: Comparison) -> bool:
    if condition.kind == "tag":
        tags = {tag["key"]: tag["value"] for tag in shown["tags"]}
        return condition.key in tags and meets(tags[condition.key], condition)
    if condition.kind != "attribute" or condition.key not in _ATTRIBUTES:
        raise ParameterError("filter", f"{condition.key[:100]!r} is not tags.* or one of {', '.join(_ATTRIBUTES)}")
    return meets(shown[condition.key], condition)
