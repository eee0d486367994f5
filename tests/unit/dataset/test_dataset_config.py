"""Settings of the service that a typing error must not make harmless."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.dataset.config import DatasetSettings, networks
from services.dataset.domain.sources import NETWORKS_SETTING


def test_networks_are_read_from_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NETWORKS_SETTING, " 10.20.0.0/16, fd00:20::/32,")
    assert networks(DatasetSettings().import_networks) == ["10.20.0.0/16", "fd00:20::/32"]
    assert networks("") == []


@pytest.mark.parametrize("text", ["10.20.0.1/16", "everywhere", "10.0.0.0/8;172.16.0.0/12"])
def test_what_is_no_network_stops_the_start(text: str) -> None:
    with pytest.raises(ValidationError, match="import_networks"):
        DatasetSettings(import_networks=text)
