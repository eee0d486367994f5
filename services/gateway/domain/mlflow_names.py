"""Ids of the MLflow routes. They say themselves what they stand for, so that the gateway keeps no table of them.

| id | stands for |
|---|---|
| experiment `{training}` | the training of the same id |
| experiment `0`, `Default` | the training `mlflow-default` |
| run `{training}_{run}` | a run of a training; no id of ours has an underscore |
| registered model `{project}` | the model project of the same id |
"""

from __future__ import annotations

import hashlib
import re

# What MLflow's client writes to when nobody chose an experiment.
DEFAULT, DEFAULT_NAME, DEFAULT_TRAINING = "0", "Default", "mlflow-default"
_ID = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ONE_ID = re.compile(rf"{_ID}\Z")
_CHOSEN = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_RUN = re.compile(rf"({_ID})_({_ID})\Z")
_NO_ID = re.compile(r"[^a-z0-9]+")


def training(org: str, experiment_id: str) -> str | None:
    """Resource name of the training of an experiment; None for what is no id of one."""
    if experiment_id == DEFAULT:
        return f"orgs/{org}/trainings/{DEFAULT_TRAINING}"
    return f"orgs/{org}/trainings/{experiment_id}" if _ONE_ID.match(experiment_id) else None


def experiment_id(name: str) -> str:
    """Id of the experiment of a training, or of the training of a run."""
    found = name.split("/")[3]
    return DEFAULT if found == DEFAULT_TRAINING else found


def new_training_id(experiment_name: str) -> str:
    """Id of the training of a new experiment: its name where that is an id, else what is like it, with a digest."""
    if _CHOSEN.match(experiment_name):
        return experiment_name
    like = _NO_ID.sub("-", experiment_name.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(experiment_name.encode()).hexdigest()[:10]
    return f"exp-{like}-{digest}" if like else f"exp-{digest}"


def run(org: str, run_id: str) -> str | None:
    """Resource name of a run; None for what is no id of one."""
    matched = _RUN.match(run_id)
    return f"orgs/{org}/trainings/{matched[1]}/runs/{matched[2]}" if matched else None


def run_id(name: str) -> str:
    """Id of a run."""
    _, _, _, training_id, _, number = name.split("/")
    return f"{training_id}_{number}"


def project(org: str, model: str) -> str | None:
    """Resource name of a registered model; None for what is no id of one."""
    return f"orgs/{org}/modelProjects/{model}" if _ONE_ID.match(model) else None


def artifact_root(name: str) -> str:
    """Where the client keeps the files of a run."""
    return f"mlflow-artifacts:/{experiment_id(name)}/{run_id(name)}/artifacts"
