"""A mesh that can be hurt, and how the main job goes on it when nobody does."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos import books, job
from tests.chaos.injuries import small_disks
from tests.mesh import Mesh, new_mesh, remove


@dataclass(frozen=True)
class Trial:
    """One way to try.

    Attributes:
        short: whether the short job is run.
        seed: of the moments.
        limit: seconds in which a run must end.
    """

    short: bool
    seed: int
    limit: float


@dataclass(frozen=True)
class Ward:
    """A mesh on small disks.

    Attributes:
        mesh: it runs.
        limited: whether its stores have disks of their own.
    """

    mesh: Mesh
    limited: bool


@pytest.fixture(scope="package")
def trial() -> Trial:
    """ARGOSY_CHAOS=full runs the full job with a new seed; ARGOSY_CHAOS_SEED repeats one."""
    full = os.environ.get("ARGOSY_CHAOS") == "full"
    seed = int(os.environ.get("ARGOSY_CHAOS_SEED") or (secrets.randbelow(1_000_000) if full else 1))
    print(f"ARGOSY_CHAOS_SEED={seed} repeats this")
    return Trial(short=not full, seed=seed, limit=3600.0 if full else 600.0)


@pytest.fixture(scope="package")
def ward() -> Iterator[Ward]:
    """Comes up, and goes down without an orphan."""
    mesh = new_mesh("chaos")
    with small_disks(mesh.home) as limited:
        try:
            mesh.up()
            yield Ward(mesh, limited)
            mesh.argosy("down")
            assert mesh.left() == []
        finally:
            remove(mesh)


@dataclass(frozen=True)
class Calm:
    """A run that nobody disturbed, and what the databases say about it."""

    outcome: job.Outcome
    books: books.Books


@pytest.fixture(scope="package")
def calm(ward: Ward, trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """What every other run must come to."""
    folder: Path = tmp_path_factory.mktemp("calm")
    outcome = job.run(ward.mesh, folder, short=trial.short, plan=[], undisturbed=[], limit=trial.limit)
    return Calm(outcome, books.read(ward.mesh, outcome.summary["run"]))
