"""An endpoint as a Ray Serve application: each replica answers with the application of the server.

Keys, limits, problem documents, metrics and observations are therefore those of `ingot serve`.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ingot.core.errors import ServeError
from ingot.core.extras import need
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.serve.assembly import assemble
from ingot.serve.endpoint import Endpoint
from ingot.serve.routing import Receive, Scope, Send
from ingot.serve.server import check_endpoints
from ingot.serve.workers.pool import shared_threads

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ingot.serve.assembly import Parts

log = logging.getLogger(__name__)

NAME = "ingot"
_FEWEST = 2
_MOST_REPLICAS = 1000


@dataclass(frozen=True, slots=True)
class RayServe:
    """How an endpoint runs on Ray.

    Attributes:
        endpoint: What is served, where, and with which limits; its `workers` are the replicas.
        replicas: Processes that answer; at least two, so that one can fail.
        cpus: Processors that Ray reserves for each.

    Raises:
        ServeError: It cannot run there; raised when it is built.
    """

    endpoint: Endpoint
    replicas: int = 2
    cpus: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot run there."""
        if not _FEWEST <= self.replicas <= _MOST_REPLICAS:
            raise ServeError(
                f"Replicas must be {_FEWEST} to {_MOST_REPLICAS}; got {self.replicas}. One alone "
                "loses requests whenever it fails: use at least two."
            )
        if not self.cpus > 0:
            raise ServeError(f"cpus must be above 0; got {self.cpus}. Raise it.")
        check_endpoints((self.endpoint,))
        if self.endpoint.beside or self.endpoint.traffic is not None:
            raise ServeError(
                f"An application on Ray must be one version; got {len(self.endpoint.beside)} more, "
                "or traffic to deal among them. Deploy each by itself."
            )
        if self.endpoint.grpc_port is not None:
            raise ServeError(
                "An endpoint on Ray must speak HTTP alone; got gRPC. Leave it out, or use: "
                "ingot serve --grpc-port."
            )
        if self.endpoint.generation is not None:
            raise ServeError(
                "Texts are written by one server of their own; drop generation, or serve without "
                "Ray."
            )
        if self.endpoint.workers:
            raise ServeError(
                f"workers must be 0 on Ray; got {self.endpoint.workers}. Ask for replicas instead."
            )


class Replica:
    """One process that answers.

    Args:
        endpoint: What is served.
        config: How its model is run beside other replicas.
    """

    def __init__(self, endpoint: Endpoint, config: EngineConfig) -> None:
        self._endpoint, self._config, self._stack = endpoint, config, ExitStack()
        self._parts: Parts | None = None

    # the names of the two methods below are Ray's
    async def __serve_build_asgi_app__(self) -> "Starlette":
        """Return the application once the model has answered a real inference."""
        _keep_to_loopback()
        session = open_session(self._endpoint.model, self._config)
        self._stack.callback(session.close)
        self._parts = assemble(self._endpoint, self._stack, session)
        await self._parts.workforce.start()
        self._parts.app.add_middleware(_OneId)
        return self._parts.app

    async def check_health(self) -> None:
        """Say whether requests should be sent here.

        Raises:
            ServeError: They should not.
        """
        if self._parts is None or not all(state.is_ready for state in self._parts.states):
            raise ServeError("A replica must be ready to answer; this one is not. It is replaced.")

    async def __del__(self) -> None:
        """Close what was opened, after the last request."""
        if self._parts is not None:
            await self._parts.workforce.close()
        self._stack.close()


class _OneId:
    """Leaves out our `x-request-id`: Ray adds the same one to every answer."""

    def __init__(self, app: Any) -> None:  # an ASGI application of the framework
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def once(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                pairs = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                message = message | {"headers": pairs}
            await send(message)

        await self._app(scope, receive, once)


def _keep_to_loopback() -> None:
    """Let the port that replicas of Ray keep for each other listen on this machine alone.

    It takes pickles from whoever reaches it, Ray opens it on every address and has no setting for
    that, and applications of one deployment never use it.
    """
    inside = need("ray.serve._private.replica", extra="ray", what="Serving on Ray")
    add_port = getattr(inside, "add_port_to_grpc_server", None)
    if add_port is None:
        log.warning("this Ray opens the port between replicas in a way that cannot be narrowed")
        return
    inside.add_port_to_grpc_server = lambda server, address: add_port(  # type: ignore[attr-defined]
        server, address.replace("[::]", "127.0.0.1")
    )


def build_ray_app(settings: RayServe) -> Any:  # ray is untyped here
    """Return the application for `ray.serve.run`.

    Args:
        settings: How it runs.

    Raises:
        MissingExtraError: The extra `ray` is not installed.
    """
    serve = need("ray.serve", extra="ray", what="Serving on Ray")
    endpoint = settings.endpoint
    config = shared_threads(endpoint.version.config, settings.replicas)
    deployment = serve.deployment(
        name=endpoint.version.name,
        num_replicas=settings.replicas,
        # the application itself refuses what is too much, with an answer that says so
        max_ongoing_requests=2 * endpoint.max_waiting + 16,
        ray_actor_options={"num_cpus": settings.cpus},
        graceful_shutdown_timeout_s=endpoint.drain_s,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
    )(serve.ingress()(Replica))
    return deployment.bind(endpoint, config)
