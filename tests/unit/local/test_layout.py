"""The data folder and its ports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from deploy.local.layout import FORMAT, Home, Ports, RunnerError, is_free


def test_a_prepared_folder_has_its_format_and_private_places(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    assert (home.root / "FORMAT").read_text() == f"{FORMAT}\n"
    for private in (home.secrets, home.run, home.logs):
        assert private.stat().st_mode & 0o077 == 0


def test_a_folder_of_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text(f"{FORMAT + 1}\n")
    with pytest.raises(RunnerError, match="newer Argosy"):
        Home(tmp_path).prepare()
    assert list(tmp_path.iterdir()) == [tmp_path / "FORMAT"]


def test_ports_are_kept_and_named_once() -> None:
    ports = Ports(base=21_000, http=21_090)
    numbers = [port for _, port in ports.named()]
    assert len(set(numbers)) == len(numbers)
    assert ports.service("identity") == 21_001
    assert ports.service("gateway") == 21_008


def test_ports_survive_a_round_trip(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    assert home.ports() is None
    home.keep_ports(Ports(base=21_000, http=21_090))
    assert home.ports() == Ports(base=21_000, http=21_090)


@pytest.mark.parametrize("base", [80, 9_950, 10_002, 19_999, 65_500])
def test_a_base_among_the_ports_of_rays_workers_is_refused(base: int) -> None:
    with pytest.raises(RunnerError, match="--port-base"):
        Ports(base=base).check()


def test_the_default_ports_are_accepted() -> None:
    Ports().check()


def test_a_port_with_a_listener_is_not_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)
