"""What an engine that asks other services does when they are away."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.common.config import CommonSettings
from libs.common.errors import ArgosyError
from libs.common.testing.mesh import Mesh
from libs.compute.context import EngineInterrupted
from libs.compute.mesh import MeshAccess


@pytest.mark.parametrize(("reason", "raised"), [("PEER_UNAVAILABLE", EngineInterrupted), ("NOT_FOUND", ArgosyError)])
async def test_an_absent_peer_interrupts_and_a_refusal_does_not(
    tmp_path: Path, reason: str, raised: type[Exception]
) -> None:
    settings = CommonSettings(home=tmp_path, pki_dir=Mesh(tmp_path).pki)
    with pytest.raises(raised):
        async with MeshAccess.of(settings).channels("eval"):
            raise ArgosyError(reason, "No.")
