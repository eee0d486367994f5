"""One mesh for the tests that share it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mesh import Mesh, new_mesh, remove


@pytest.fixture(scope="package")
def mesh() -> Iterator[Mesh]:
    """A mesh that is ready."""
    mesh = new_mesh("e2e")
    try:
        mesh.up()
        yield mesh
        mesh.argosy("down")
        assert mesh.left() == []
    finally:
        remove(mesh)
