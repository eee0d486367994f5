"""Short tokens: minted by identity, verified offline by every service.

A token is a JWT signed with Ed25519 (RFC 8037), its key named by `kid`, the public keys published as a JWKS (RFC
7517). Keys
overlap: a new key is published before it signs, an old one stays published until its last token has expired.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jwt
import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.common.auth.principal import Principal
from libs.common.errors import ArgosyError

ISSUER = "argosy"
ALGORITHM = "EdDSA"
TOKEN_SECONDS = 300.0
# Clocks of machines that keep time differ by less; a token lives this much longer at most.
LEEWAY_SECONDS = 10.0
# A token that names an unknown key makes us ask identity, but not more often than this: anybody can invent key ids.
REFRESH_SECONDS = 2.0
_CACHE_SIZE = 4096
# A token of the largest audience list is below this; longer ones are not worth hashing.
_MAX_TOKEN_LENGTH = 8192

Jwk = Mapping[str, str]
JwksSource = Callable[[], Awaitable[Sequence[Jwk]]]

_log = logging.getLogger(__name__)


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with its id.

    Attributes:
        kid: thumbprint of the public key, so that two keys never share an id.
        private: the key.
    """

    kid: str
    private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Reads what `to_pem` wrote. Raises ValueError for anything but an Ed25519 key."""
        private = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError("a signing key must be Ed25519")
        return cls._of(private)

    @classmethod
    def _of(cls, private: Ed25519PrivateKey) -> SigningKey:
        public = private.public_key().public_bytes_raw()
        return cls(_unpadded(hashlib.sha256(public).digest()[:12]), private)

    def to_pem(self) -> bytes:
        """PKCS 8, unencrypted: keep it in a 0600 file or seal it."""
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def jwk(self) -> dict[str, str]:
        """The public half for a JWKS."""
        public = _unpadded(self.private.public_key().public_bytes_raw())
        return {"kid": self.kid, "kty": "OKP", "crv": "Ed25519", "x": public, "alg": ALGORITHM, "use": "sig"}


def mint(
    key: SigningKey,
    *,
    org: str,
    subject: str,
    role: int,
    audience: Iterable[str],
    now: float,
    token_id: str,
    ttl: float = TOKEN_SECONDS,
    api_key: str = "",
    record_content: bool = False,
    department: str = "",
) -> str:
    """A signed token.

    Args:
        key: signs it.
        org: organization id, such as `acme`.
        subject: `users/<id>`, `serviceAccounts/<id>` or `services/<name>`.
        role: value of argosy.common.v1.Role.
        audience: services, or one deployment, that accept it.
        now: UNIX time in seconds.
        token_id: unique id (`jti`).
        ttl: life in seconds.
        api_key: resource name of the key behind it.
        record_content: what the organization chose.
        department: resource name of the subject's department.
    """
    claims: dict[str, object] = {
        "iss": ISSUER,
        "sub": subject,
        "org": org,
        "role": role,
        "aud": list(audience),
        "iat": now,
        "exp": now + ttl,
        "jti": token_id,
    }
    optional = {"key": api_key, "rec": record_content, "dep": department}
    claims.update({name: value for name, value in optional.items() if value})
    return jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"kid": key.kid})


class JwksCache:
    """The public keys that this process trusts, with a copy on disk for starts while identity is away.

    Args:
        path: file of the copy; None keeps keys in memory only.
        fetch: asks identity for the keys.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self, path: Path | None, fetch: JwksSource, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._fetch = fetch
        self._monotonic = monotonic
        self._next_refresh = 0.0
        self._refreshing = asyncio.Lock()
        self._keys: dict[str, Ed25519PublicKey] = {}
        if path is not None and path.exists():
            try:
                self._keys = _read_keys(orjson.loads(path.read_bytes())["keys"])
            except (ValueError, KeyError, TypeError):
                _log.warning("the cached signing keys cannot be read; asking identity again", extra={"path": str(path)})

    def known(self, kid: str) -> Ed25519PublicKey | None:
        """The key of this id if we have it already."""
        return self._keys.get(kid)

    async def find(self, kid: str) -> Ed25519PublicKey | None:
        """The key of this id; asks identity when it is unknown, at most every REFRESH_SECONDS.

        Raises ArgosyError(PEER_UNAVAILABLE) when identity would have to be asked and does not answer.
        """
        if kid not in self._keys:
            await self.refresh()
        return self._keys.get(kid)

    async def refresh(self) -> None:
        """Fetches the keys unless that happened within REFRESH_SECONDS."""
        async with self._refreshing:
            if self._monotonic() < self._next_refresh:
                return
            keys = list(await self._fetch())
            self._next_refresh = self._monotonic() + REFRESH_SECONDS
            self._keys = _read_keys(keys)
            if self._path is not None:
                _write_atomically(self._path, orjson.dumps({"keys": [dict(key) for key in keys]}))


def _read_keys(keys: Iterable[Jwk]) -> dict[str, Ed25519PublicKey]:
    read: dict[str, Ed25519PublicKey] = {}
    for key in keys:
        if key["kty"] == "OKP" and key["crv"] == "Ed25519":
            raw = base64.urlsafe_b64decode(key["x"] + "=" * (-len(key["x"]) % 4))
            read[key["kid"]] = Ed25519PublicKey.from_public_bytes(raw)
    return read


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    audience: frozenset[str]
    issued: float
    expires: float


class TokenVerifier:
    """Verifies tokens without asking anybody, and remembers those that it verified until they expire.

    Args:
        keys: the public keys.
        audience: name that a token must carry, such as `dataset`, or the deployment of a replica.
        now: UNIX time in seconds.
    """

    def __init__(self, keys: JwksCache, audience: str, *, now: Callable[[], float]) -> None:
        self._keys = keys
        self._audience = audience
        self._now = now
        self._seen: OrderedDict[str, _Verified] = OrderedDict()
        self._revoked: dict[str, float] = {}

    def revoke(self, name: str, at: float) -> None:
        """Refuses from now on every token of this key or subject that was issued until then.

        Args:
            name: `orgs/{org}/apiKeys/{key}`, `orgs/{org}/users/{user}`, `orgs/{org}/serviceAccounts/{account}` or
                `orgs/{org}`.
            at: UNIX time of the revocation.
        """
        self._revoked[name] = max(at, self._revoked.get(name, 0.0))
        for token, verified in list(self._seen.items()):
            if self._is_revoked(verified):
                del self._seen[token]

    def forget_revocations_before(self, time_: float) -> None:
        """Drops revocations that only concern tokens that have expired by themselves."""
        self._revoked = {name: at for name, at in self._revoked.items() if at >= time_}

    def cached(self, token: str, audience: str | None = None) -> Principal | None:
        """The principal of a token that was verified before and is still good; None: call `verify`."""
        verified = self._seen.get(token)
        if verified is None or self._now() >= verified.expires or (audience or self._audience) not in verified.audience:
            return None
        return verified.principal

    async def verify(self, token: str, audience: str | None = None) -> Principal:
        """The principal of a token.

        Raises ArgosyError: TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_AUDIENCE or TOKEN_REVOKED.
        """
        known = self.cached(token, audience)
        if known is not None:
            return known
        verified = await self._check(token)
        wanted = audience or self._audience
        if wanted not in verified.audience:
            raise ArgosyError("TOKEN_AUDIENCE", "The token is for another audience.", metadata={"audience": wanted})
        if self._is_revoked(verified):
            raise ArgosyError("TOKEN_REVOKED", "The key behind the token was revoked.")
        self._seen[token] = verified
        if len(self._seen) > _CACHE_SIZE:
            self._seen.popitem(last=False)
        return verified.principal

    async def _check(self, token: str) -> _Verified:
        if len(token) > _MAX_TOKEN_LENGTH:
            raise _invalid()
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.InvalidTokenError:
            raise _invalid() from None
        key = await self._keys.find(kid) if isinstance(kid, str) and len(kid) <= 64 else None
        if key is None:
            raise _invalid()
        options = {
            "require": ["exp", "iat", "iss", "aud", "sub"],
            "verify_aud": False,
            "verify_exp": False,
            "verify_iat": False,
        }
        try:
            claims = jwt.decode(token, key, algorithms=[ALGORITHM], issuer=ISSUER, options=options)  # type: ignore[arg-type]
        except jwt.InvalidTokenError:
            raise _invalid() from None
        return self._read(token, claims)

    def _read(self, token: str, claims: Mapping[str, object]) -> _Verified:
        """Times are checked here, against the injected clock; the library would read the wall clock itself."""
        audience, issued, expires = claims.get("aud"), claims.get("iat"), claims.get("exp")
        org, subject, role = claims.get("org"), claims.get("sub"), claims.get("role")
        audience = [audience] if isinstance(audience, str) else audience
        if not (isinstance(issued, int | float) and isinstance(expires, int | float) and isinstance(audience, list)):
            raise _invalid()
        if not (isinstance(org, str) and org and isinstance(subject, str) and subject and type(role) is int):
            raise _invalid()
        now = self._now()
        if now >= expires + LEEWAY_SECONDS:
            raise ArgosyError("TOKEN_EXPIRED", "The token has expired.")
        if issued > now + LEEWAY_SECONDS:
            raise _invalid()
        principal = Principal(
            org=org,
            subject=subject,
            role=role,
            token=token,
            api_key=str(claims.get("key", "")),
            record_content=claims.get("rec") is True,
            department=str(claims.get("dep", "")),
        )
        return _Verified(principal, frozenset(audience), float(issued), expires + LEEWAY_SECONDS)

    def _is_revoked(self, verified: _Verified) -> bool:
        principal = verified.principal
        names = (principal.api_key, principal.name, f"orgs/{principal.org}")
        return any(verified.issued <= self._revoked.get(name, -1.0) for name in names)


def _invalid() -> ArgosyError:
    return ArgosyError("TOKEN_INVALID", "The token is not valid.")
