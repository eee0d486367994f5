"""What each process gets to know: its own password and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.credentials import Credentials
from deploy.local.layout import SERVICES, WITH_JOBS, Home, Ports
from deploy.local.topology import Part, topology


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.prepare()
    return home


@pytest.fixture(scope="module")
def parts(home: Home) -> dict[str, Part]:
    return {part.name: part for part in topology(home, Ports())}


def test_every_service_and_every_jobs_role_is_there(parts: dict[str, Part]) -> None:
    assert set(SERVICES) <= set(parts)
    assert {f"{name}-jobs" for name in WITH_JOBS} <= set(parts)
    assert {"postgres", "nats", "ray"} <= set(parts)


def test_no_process_knows_the_secrets_of_another_service(home: Home, parts: dict[str, Part]) -> None:
    credentials = Credentials(home)
    for part in parts.values():
        owner = part.name.removesuffix("-jobs")
        text = " ".join([*part.command, *part.environment.values()])
        for secrets in (credentials.database, credentials.bus):
            for name, secret in secrets.items():
                assert secret not in text or name == owner, f"{part.name} knows the secret of {name}"


def test_no_secret_is_an_argument(home: Home, parts: dict[str, Part]) -> None:
    credentials = Credentials(home)
    known = [*credentials.database.values(), *credentials.bus.values()]
    for part in parts.values():
        assert not any(secret in argument for argument in part.command for secret in known)


def test_ray_knows_no_password_at_all(home: Home, parts: dict[str, Part]) -> None:
    credentials = Credentials(home)
    text = " ".join(parts["ray"].environment.values())
    assert not any(secret in text for secret in [*credentials.database.values(), *credentials.bus.values()])
    assert parts["ray"].environment["RAY_AUTH_MODE"] == "token"


def test_secrets_are_for_their_owner_only(home: Home, parts: dict[str, Part]) -> None:
    files = [path for path in home.secrets.rglob("*") if path.is_file()]
    assert files
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_a_new_start_keeps_every_secret(home: Home) -> None:
    assert Credentials(home).database == Credentials(home).database


def test_services_stop_before_what_they_need(parts: dict[str, Part]) -> None:
    ranks = {name: part.rank for name, part in parts.items()}
    assert all(ranks[name] > ranks["ray"] > ranks["postgres"] for name in SERVICES)


def test_a_process_starts_from_what_the_runner_gives_and_not_from_the_shell(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ARGOSY_DRAIN_SECONDS", "0")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    environment = {part.name: part for part in topology(home, Ports())}["dataset"].environment
    assert "ARGOSY_DRAIN_SECONDS" not in environment
    assert "HTTPS_PROXY" not in environment


def test_an_operator_says_how_far_imports_reach(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_DATASET_IMPORT_NETWORKS", "10.20.0.0/16")
    environment = {part.name: part for part in topology(home, Ports())}["dataset-jobs"].environment
    assert environment["ARGOSY_DATASET_IMPORT_NETWORKS"] == "10.20.0.0/16"
