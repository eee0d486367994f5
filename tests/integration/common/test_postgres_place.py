"""PostgreSQL where its own user may not go: a checkout and a data folder in the closed home of root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import postgres
from tests.conftest import free_port

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs the server himself")


@pytest.fixture
def closed(server_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like /root, with an installation in it."""
    folder = server_folder / "closed"
    folder.mkdir(mode=0o700)
    installed = postgres.binaries()
    package = installed.parents[1]
    for part in (Path(package.name, installed.parent.name), Path(f"{package.name}.libs")):
        shutil.copytree(package.parent / part, folder / part, symlinks=True)
    monkeypatch.setattr(postgres, "binaries", lambda: folder / package.name / installed.parent.name / "bin")
    monkeypatch.setattr(postgres, "_ROOT_FOLDER", server_folder / "open")
    yield folder
    shutil.rmtree(folder)


def test_the_cluster_lies_elsewhere_and_is_found_again(closed: Path, server_folder: Path) -> None:
    for _ in range(2):
        server = postgres.Server(closed / "pg", free_port(), "secret", server_folder / "placed.log")
        server.start()
        try:
            assert postgres.probe(server.port) == ""
            assert server.place.folder.parent == server_folder / "open"
            assert (closed / "pg").resolve() == server.place.folder
        finally:
            server.stop()
    assert closed.stat().st_mode & 0o777 == 0o700, "nobody opened what root had closed"


def test_data_that_cannot_be_reached_is_not_overlooked(closed: Path, server_folder: Path) -> None:
    (closed / "pg").mkdir()
    (closed / "pg" / "PG_VERSION").write_text("18")
    with pytest.raises(postgres.PostgresError, match="move the data folder"):
        postgres.Server(closed / "pg", free_port(), "secret", server_folder / "placed.log")
