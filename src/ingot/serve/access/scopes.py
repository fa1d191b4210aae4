"""What a caller is allowed: scopes such as `infer:digits`, `read:*`, `operate:*` and `metrics`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ingot.core.errors import ServeError
from ingot.serve.endpoint import Rate

_SCOPE = re.compile(r"\*|metrics|(infer|read|operate):(\*|[A-Za-z0-9][\w.-]*\*?)")


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller who has proved who it is.

    Attributes:
        name: Name of the key, or subject of the token.
        scopes: What it is allowed.
        id: What tells it from others of its name.
        rate: How often it may ask; None for what the server says.
    """

    name: str
    scopes: frozenset[str]
    id: str = field(default="", compare=False)
    rate: Rate | None = field(default=None, compare=False)

    def may(self, action: str, model: str = "") -> bool:
        """Say whether it may do something.

        Args:
            action: `infer`, `read` (metadata of a model), `operate` (its traffic) or `metrics`.
            model: Name of the model, for all but the last.

        Examples:
            >>> caller = Principal("robot", frozenset({"infer:arm-*"}))
            >>> caller.may("infer", "arm-left"), caller.may("read", "arm-left")
            (True, True)
            >>> caller.may("infer", "leg"), caller.may("metrics")
            (False, False)
        """
        wanted = {"read": ("read", "infer", "operate")}.get(action, (action,))
        return any(_allows(scope, wanted, model) for scope in self.scopes)


def check_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """Return the scopes as a set.

    Raises:
        ServeError: There is none, or one is not a scope.
    """
    found = frozenset(scopes)
    for scope in sorted(found) or [""]:
        if not _SCOPE.fullmatch(scope):
            raise ServeError(
                "A scope must be infer:MODEL, read:MODEL, operate:MODEL, metrics or *, where MODEL "
                f"may end in or be *; got {scope!r}. For one model: infer:digits."
            )
    return found


def _allows(scope: str, actions: tuple[str, ...], model: str) -> bool:
    if scope == "*":
        return True
    action, colon, name = scope.partition(":")
    if action not in actions:
        return False
    if not colon:
        return not model
    return model.startswith(name[:-1]) if name.endswith("*") else model == name
