"""Tokens: what is accepted, for how long, and what happens to keys."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest

from libs.common.auth.tokens import LEEWAY_SECONDS, REFRESH_SECONDS, JwksCache, SigningKey, TokenVerifier, mint
from libs.common.errors import ArgosyError

NOW = 1_800_000_000.0


class Trust:
    """A verifier whose clock and keys the test moves."""

    def __init__(self, path: Path | None = None) -> None:
        self.key = SigningKey.generate()
        self.published = [self.key]
        self.now = NOW
        self.monotonic = 0.0
        self.fetches = 0
        self.keys = JwksCache(path, self.fetch, monotonic=lambda: self.monotonic)
        self.verifier = TokenVerifier(self.keys, "dataset", now=lambda: self.now)

    async def fetch(self) -> list[dict[str, str]]:
        self.fetches += 1
        return [key.jwk() for key in self.published]

    def token(self, **claims: Any) -> str:
        given: dict[str, Any] = {
            "org": "acme",
            "subject": "users/alice",
            "role": 2,
            "audience": ["dataset", "training"],
            "now": self.now,
            "token_id": "t1",
        }
        return mint(claims.pop("key", self.key), **given | claims)


async def reason(trust: Trust, token: str, audience: str | None = None) -> str:
    try:
        await trust.verifier.verify(token, audience)
    except ArgosyError as error:
        return error.reason
    return "ok"


async def test_claims_become_a_principal() -> None:
    trust = Trust()
    token = trust.token(api_key="orgs/acme/apiKeys/k", record_content=True, department="orgs/acme/departments/d")
    principal = await trust.verifier.verify(token)
    assert (principal.org, principal.subject, principal.role) == ("acme", "users/alice", 2)
    assert (principal.name, principal.api_key) == ("orgs/acme/users/alice", "orgs/acme/apiKeys/k")
    assert principal.record_content
    assert principal.token == token


async def test_verified_once_then_remembered_until_it_expires() -> None:
    trust = Trust()
    token = trust.token(ttl=60)
    assert trust.verifier.cached(token) is None
    await trust.verifier.verify(token)
    assert trust.verifier.cached(token) is not None
    assert trust.verifier.cached(token, "eval") is None
    trust.now += 60 + LEEWAY_SECONDS
    assert trust.verifier.cached(token) is None
    assert await reason(trust, token) == "TOKEN_EXPIRED"


async def test_other_audience() -> None:
    trust = Trust()
    assert await reason(trust, trust.token(audience=["eval"])) == "TOKEN_AUDIENCE"
    deployment = "orgs/acme/deployments/d"
    assert await reason(trust, trust.token(audience=[deployment]), deployment) == "ok"


async def test_token_from_the_future() -> None:
    trust = Trust()
    assert await reason(trust, trust.token(now=NOW + 5)) == "ok"
    assert await reason(trust, trust.token(now=NOW + 60)) == "TOKEN_INVALID"


async def test_key_rotation_overlaps() -> None:
    trust = Trust()
    old = trust.token()
    assert await reason(trust, old) == "ok"
    new = SigningKey.generate()
    trust.published = [trust.key, new]
    trust.monotonic += REFRESH_SECONDS
    assert await reason(trust, trust.token(key=new)) == "ok"
    assert await reason(trust, trust.token(token_id="t2")) == "ok"


async def test_unknown_key_ids_do_not_storm_identity() -> None:
    trust = Trust()
    for _ in range(20):
        assert await reason(trust, trust.token(key=SigningKey.generate())) == "TOKEN_INVALID"
    assert trust.fetches == 1


async def test_keys_survive_on_disk_while_identity_is_away(tmp_path: Path) -> None:
    trust = Trust(tmp_path / "jwks.json")
    assert await reason(trust, trust.token()) == "ok"

    async def away() -> list[dict[str, str]]:
        raise ArgosyError("PEER_UNAVAILABLE", "identity does not answer")

    restarted = TokenVerifier(JwksCache(tmp_path / "jwks.json", away), "dataset", now=lambda: NOW)
    assert (await restarted.verify(trust.token())).subject == "users/alice"
    (tmp_path / "jwks.json").write_text("{broken")
    with pytest.raises(ArgosyError) as raised:
        await TokenVerifier(JwksCache(tmp_path / "jwks.json", away), "dataset", now=lambda: NOW).verify(trust.token())
    assert raised.value.reason == "PEER_UNAVAILABLE"


@pytest.mark.parametrize("name", ["orgs/acme/apiKeys/k", "orgs/acme/users/alice", "orgs/acme"])
async def test_revocation_reaches_tokens_issued_before(name: str) -> None:
    trust = Trust()
    token = trust.token(api_key="orgs/acme/apiKeys/k")
    assert await reason(trust, token) == "ok"
    trust.verifier.revoke(name, NOW + 1)
    assert trust.verifier.cached(token) is None
    assert await reason(trust, token) == "TOKEN_REVOKED"
    trust.now = NOW + 2
    assert await reason(trust, trust.token(api_key="orgs/acme/apiKeys/k")) == "ok"
    trust.verifier.revoke(name, NOW)
    assert await reason(trust, token) == "TOKEN_REVOKED", "an older revocation does not take back a newer one"


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"x") -> str:
    parts = [orjson.dumps(header), orjson.dumps(claims), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def test_forgeries() -> None:
    trust = Trust()
    claims = jwt.decode(trust.token(), options={"verify_signature": False})
    kid = trust.key.kid
    public = trust.key.private.public_key().public_bytes_raw()
    for token in (
        "",
        "a.b.c",
        "\x00",
        forged({"alg": "none", "kid": kid}, claims, b""),
        forged({"alg": "EdDSA", "kid": kid}, claims),
        forged({"alg": "EdDSA"}, claims),
        forged({"alg": "EdDSA", "kid": {"a": 1}}, claims),
        forged({"alg": "EdDSA", "kid": "k" * 5000}, claims),
        # The public key as an HMAC secret.
        jwt.encode(claims, public, algorithm="HS256", headers={"kid": kid}),
        trust.token(org=""),
        trust.token(subject=""),
        trust.token(role="5"),
        trust.token(role=True),
    ):
        assert await reason(trust, token) == "TOKEN_INVALID", token


def test_signing_key_survives_its_file() -> None:
    key = SigningKey.generate()
    assert SigningKey.from_pem(key.to_pem()).kid == key.kid
    assert set(key.jwk()) == {"kid", "kty", "crv", "x", "alg", "use"}
