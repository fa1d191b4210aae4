"""What a page is: a path, a template, and one object that its HTML and its JSON are made of."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ingot.serve.access.scopes import Principal
from ingot.serve.console.charts import Chart
from ingot.serve.problems import RequestError

ROOT = "/console"


class Content(Protocol):
    """What a page shows: a dataclass, so that it is also its JSON."""

    @property
    def title(self) -> str:
        """Its heading."""
        ...

    @property
    def summary(self) -> str:
        """One sentence, read aloud when it changes."""
        ...

    @property
    def charts(self) -> Sequence[Chart]:
        """What changes over time."""
        ...


@dataclass(frozen=True, slots=True)
class Visit:
    """One visitor asking for one page.

    Attributes:
        caller: Who asks; None where everybody may.
        path: Values of the path.
        query: Values of the query.
        base_url: Where the server answers, as the visitor names it.
        since: Charts show only what is after this time, UTC seconds since 1970.
    """

    caller: Principal | None
    path: Mapping[str, Any] = field(default_factory=dict)  # Any: what path convertors return
    query: Mapping[str, str] = field(default_factory=dict)
    base_url: str = ""
    since: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether there is access control."""
        return self.caller is not None

    def may(self, action: str, model: str = "") -> bool:
        """Say whether the visitor may do something; see `Principal.may`."""
        return self.caller is None or self.caller.may(action, model)

    def need(self, action: str, model: str) -> None:
        """Refuse a visitor who may not.

        Raises:
            RequestError: With status 403.
        """
        if self.caller is not None and not self.caller.may(action, model):
            raise RequestError(
                f"The caller must be allowed {action}:{model}; {self.caller.name!r} is not. Sign "
                "in with a key that has that scope.",
                status=403,
            )


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a console.

    Attributes:
        path: Below `/console`, with the convertors of the router.
        template: File in `templates`.
        read: Makes its content.
        section: Which entry of the navigation it belongs to.
        is_live: Whether it is kept up to date by a stream.
    """

    path: str
    template: str
    read: Callable[[Visit], Awaitable[Content]]
    section: str
    is_live: bool = True


@dataclass(frozen=True, slots=True)
class Action:
    """One button of a console.

    Attributes:
        path: Below `/console`, with the convertors of the router.
        act: Does it and returns the path below `/console` of the page to show then.
    """

    path: str
    act: Callable[[Visit], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Section:
    """One entry of the navigation.

    Attributes:
        label: Its words.
        path: Its page, below `/console`.
    """

    label: str
    path: str
