"""The gate in front of every page that is not about health."""

from ingot.serve.access.keys import PREFIX, KeyRing
from ingot.serve.access.scopes import Principal
from ingot.serve.access.tokens import TokenVerifier
from ingot.serve.endpoint import Access
from ingot.serve.problems import RequestError

_BEARER = "Bearer "
_KEY = _BEARER + PREFIX


class Gate:
    """Asks callers who they are and what they may.

    Args:
        access: Which proofs are taken.

    Raises:
        MissingExtraError: Tokens are to be taken and the extra `oidc` is not installed.
        ServeError: The keys of the identity provider cannot be read.
    """

    def __init__(self, access: Access) -> None:
        self._tokens = TokenVerifier(access.tokens) if access.tokens is not None else None
        self._ring = KeyRing(access.keys) if access.keys is not None else None

    async def admit(self, authorization: str, action: str, model: str = "") -> Principal:
        """Return the caller.

        Args:
            authorization: The header of that name, empty if there is none.
            action: What it wants; see `Principal.may`.
            model: Of which model.

        Raises:
            RequestError: No valid proof (401), or it does not allow this (403).
        """
        return _allowed(await self.identify(authorization), action, model)

    def admit_key(self, authorization: str, action: str, model: str = "") -> Principal | None:
        """Return the caller if a key is shown, without waiting; None if something else is.

        Args:
            authorization: The header of that name, empty if there is none.
            action: What it wants; see `Principal.may`.
            model: Of which model.

        Raises:
            RequestError: The caller may not (403).
        """
        if self._ring is None or not authorization.startswith(_KEY):
            return None
        caller = self._ring.find(authorization.removeprefix(_BEARER))
        return None if caller is None else _allowed(caller, action, model)

    async def identify(self, authorization: str) -> Principal:
        """Return the caller, whatever it may.

        Args:
            authorization: The header of that name, empty if there is none.

        Raises:
            RequestError: No valid proof (401).
        """
        scheme, _, proof = authorization.partition(" ")
        caller = await self._find(proof.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise RequestError(
                "A request must prove who sends it; this one has no valid key or token. Send "
                "'Authorization: Bearer ...' with one that is neither expired nor revoked.",
                status=401,
            )
        return caller

    def close(self) -> None:
        """Close the store of keys."""
        if self._ring is not None:
            self._ring.close()

    async def _find(self, proof: str) -> Principal | None:
        if proof.startswith(PREFIX):
            return self._ring.find(proof) if self._ring is not None else None
        return await self._tokens.find(proof) if self._tokens is not None else None


def _allowed(caller: Principal, action: str, model: str) -> Principal:
    if not caller.may(action, model):
        scope = f"{action}:{model}" if model else action
        raise RequestError(
            f"The caller must be allowed {scope}; {caller.name!r} is not. Ask for a key with "
            "that scope.",
            status=403,
        )
    return caller
