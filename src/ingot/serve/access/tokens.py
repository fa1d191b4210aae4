"""Tokens of an identity provider (OpenID Connect): signed, for us, and not expired."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ingot.core.errors import ServeError
from ingot.core.extras import need
from ingot.serve.access.scopes import Principal
from ingot.serve.endpoint import Tokens

# Signed with a private key of the provider. A symmetric algorithm would let a public key pass for
# a secret.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_OLD_S = 3600.0
_REFRESH_S, _PATIENCE_S, _LEEWAY_S = 60.0, 5.0, 10.0
_MOST_KEPT = 1024
_MOST_BYTES = 1 << 20


class TokenVerifier:
    """Verifies tokens against the provider's published keys (JWKS).

    Args:
        settings: Issuer, audience, and where the keys are.
        clock: UTC seconds since 1970.

    Raises:
        MissingExtraError: The extra `oidc` is not installed.
        ServeError: The keys cannot be read.
    """

    def __init__(self, settings: Tokens, *, clock: Callable[[], float] = time.time) -> None:
        self._jwt = need("jwt", extra="oidc", what="Verifying tokens")
        need("cryptography", extra="oidc", what="Verifying tokens")
        self._settings, self._clock = settings, clock
        self._kept: dict[str, tuple[Principal, float]] = {}
        self._keys: dict[str, Any] = {}  # the library's keys by id
        self._read = 0.0
        self._load()

    async def find(self, token: str) -> Principal | None:
        """Return whose token this is; None if it is not valid here and now."""
        now = self._clock()
        kept = self._kept.get(token)
        if kept is not None and now < kept[1]:
            return kept[0]
        self._kept.pop(token, None)
        try:
            header = self._jwt.get_unverified_header(token)
        except self._jwt.PyJWTError:
            return None
        id = str(header.get("kid", ""))
        age_s = now - self._read
        # once an hour in any case: a key that the provider withdrew must not stay good for ever
        if age_s > _OLD_S or (id not in self._keys and age_s > _REFRESH_S):
            self._read = now  # also when it fails: nobody makes us ask more often
            await asyncio.to_thread(self._reload)
        return self._verify(token, self._keys.get(id), now)

    # Any: a key and claims of an untyped library
    def _verify(self, token: str, key: Any, now: float) -> Principal | None:
        if key is None:
            return None
        try:
            claims = self._jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (self._jwt.PyJWTError, ValueError, TypeError):
            return None
        caller = Principal(str(claims["sub"]), _scopes(claims), f"{claims['iss']} {claims['sub']}")
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[token] = caller, min(float(claims["exp"]), now + _REFRESH_S)
        return caller

    def _reload(self) -> None:
        try:
            self._load()
        except ServeError:
            return  # the keys that were read before stay; a token of an unknown key is refused

    def _load(self) -> None:
        where = self._settings.jwks
        try:
            found = json.loads(_fetch(where))
            rows = [row for row in found["keys"] if row.get("use", "sig") == "sig"]
            keys = {str(row.get("kid", "")): key for row in rows if (key := self._key(row))}
            if not keys:
                raise ValueError("no key that can be used")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServeError(
                f"--oidc-jwks must be a file, or an https address, of a JSON Web Key Set; {where!r}"
                f" gives {error}. Copy jwks_uri from the provider's discovery document."
            ) from error
        self._keys, self._read = keys, self._clock()

    def _key(self, row: Mapping[str, Any]) -> Any:  # of an untyped library
        try:
            return self._jwt.PyJWK(row)
        except self._jwt.PyJWTError:
            return None  # of a kind that this library does not know; another may be for us


def _fetch(where: str) -> bytes:
    parts = urlsplit(where)
    if parts.scheme in {"http", "https"}:
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError("an address that is not https")
        with urllib.request.urlopen(where, timeout=_PATIENCE_S) as answer:  # noqa: S310 # checked
            body: bytes = answer.read(_MOST_BYTES)
            return body
    return Path(where).read_bytes()


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    value = claims.get("scope", claims.get("scp", ()))
    words = value.split() if isinstance(value, str) else value
    return (
        frozenset(str(word) for word in words) if isinstance(words, list | tuple) else frozenset()
    )
