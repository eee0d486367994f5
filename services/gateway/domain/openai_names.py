"""Ids of the OpenAI routes. They say themselves what they stand for, so that the gateway keeps no table of them.

| id | stands for |
|---|---|
| `file-{id}` | the dataset of the same id |
| `ftjob-{id}` | the training of the same id with its run `1`, and the model project that its version goes to |
| `file-results-{id}` | the metrics of the job `ftjob-{id}` as CSV |
| `ft:{base}:{org}:{suffix}:{id}` | version `1` of the model project of `ftjob-{id}` |
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

_ID = r"[a-z0-9]{8,32}"
_FILE = re.compile(rf"file-({_ID})\Z")
_RESULTS = re.compile(rf"file-results-({_ID})\Z")
_JOB = re.compile(rf"ftjob-({_ID})\Z")
_MODEL = re.compile(rf"ft:([a-z0-9-]{{1,63}}):([a-z0-9-]{{1,63}}):([A-Za-z0-9._-]{{0,64}}):({_ID})\Z")
# Runs of a training are numbered from 1, and a job has one.
RUN = "1"
_VERSION = re.compile(rf"orgs/[^/]+/modelProjects/ftjob-{_ID}/versions/1\Z")


@dataclass(frozen=True)
class FineTuned:
    """What the name of a fine-tuned model says."""

    base: str
    org: str
    suffix: str
    job: str

    def __str__(self) -> str:
        return f"ft:{self.base}:{self.org}:{self.suffix}:{self.job.removeprefix('ftjob-')}"

    @property
    def model_version(self) -> str:
        """Resource name of the model version."""
        return f"{model_project(self.org, self.job)}/versions/1"


def new_id(prefix: str, owner: str, key: str) -> str:
    """An id that nobody can guess, or the same one for the same idempotency key.

    Args:
        prefix: `file` or `ftjob`.
        owner: organization and subject; the keys of two callers have nothing to do with each other.
        key: of the caller; empty: each id is new.
    """
    digest = hashlib.sha256(f"{prefix}\n{owner}\n{key}".encode()).hexdigest() if key else secrets.token_hex(12)
    return f"{prefix}-{digest[:24]}"


def is_file(file_id: str) -> bool:
    """Whether this may be the id of an uploaded file."""
    return _FILE.match(file_id) is not None


def is_job(job_id: str) -> bool:
    """Whether this may be the id of a fine-tuning job."""
    return _JOB.match(job_id) is not None


def is_tuned(model_version: str) -> bool:
    """Whether this may be the model version that a job made."""
    return _VERSION.match(model_version) is not None


def job_of_results(file_id: str) -> str | None:
    """The job whose results a file id stands for; None for other files."""
    matched = _RESULTS.match(file_id)
    return f"ftjob-{matched[1]}" if matched else None


def results_file(job_id: str) -> str:
    """The file id of the results of a job."""
    return f"file-results-{job_id.removeprefix('ftjob-')}"


def dataset(org: str, file_id: str) -> str:
    """Resource name of the dataset of a file."""
    return f"orgs/{org}/datasets/{file_id}"


def training(org: str, job_id: str) -> str:
    """Resource name of the training of a job."""
    return f"orgs/{org}/trainings/{job_id}"


def model_project(org: str, job_id: str) -> str:
    """Resource name of the project that the model of a job goes to."""
    return f"orgs/{org}/modelProjects/{job_id}"


def parse_model(name: str) -> FineTuned | None:
    """A name of a fine-tuned model; None for every other name."""
    matched = _MODEL.match(name)
    return FineTuned(matched[1], matched[2], matched[3], f"ftjob-{matched[4]}") if matched else None
