"""THIRD_PARTY.md names what the lock holds."""

from __future__ import annotations

from deploy.local import notices


def test_the_notices_are_those_of_the_lock() -> None:
    assert notices.TARGET.read_text() == notices.render()


def test_every_locked_package_is_named_with_a_licence() -> None:
    text = notices.TARGET.read_text()
    for name, version in notices.locked():
        assert f"| {name} | {version} |" in text
    assert "not installed" not in text
