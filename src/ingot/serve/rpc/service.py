"""The gRPC server: on the event loop of the web server, answering through its application."""

import json
from typing import Any

from ingot.core.errors import ServeError
from ingot.core.extras import need
from ingot.serve.endpoint import Endpoint
from ingot.serve.problems import RequestError
from ingot.serve.rpc.door import Answer, App, Door
from ingot.serve.rpc.messages import SERVICE, messages
from ingot.serve.rpc.streams import Stream
from ingot.serve.rpc.translate import infer_answer, metadata_answer, model_path

# Any below: grpc is untyped, messages are classes made at run time.
_CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED", 413: "RESOURCE_EXHAUSTED", 422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip


class RpcServer:
    """A gRPC server beside a web server.

    Args:
        app: The web server's ASGI application.
        endpoint: Its host, gRPC port, limits and certificate.

    Attributes:
        port: Where it listens, once it is started.

    Raises:
        MissingExtraError: The extra `grpc` is not installed.
    """

    def __init__(self, app: App, endpoint: Endpoint) -> None:
        self._grpc = need("grpc", extra="grpc", what="Serving over gRPC")
        need("grpc.aio", extra="grpc", what="Serving over gRPC")
        self._door, self._endpoint = Door(app, endpoint), endpoint
        every = (endpoint, *endpoint.beside)
        self._texts = frozenset(one.version.name for one in every if one.generation is not None)
        self._server: Any = None
        self.port = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            ServeError: The port is taken.
        """
        limit = self._endpoint.max_body_bytes
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a taken port is an error, not a second listener
        ]
        self._server = self._grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((self._handlers(),))
        host, port = self._endpoint.host, self._endpoint.grpc_port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = self._listen(address)
        except RuntimeError as error:
            raise ServeError(
                f"gRPC must have a port of its own; {address} cannot be bound. Choose another "
                "--grpc-port, or 0 for a free one."
            ) from error
        await self._server.start()

    async def stop(self) -> None:
        """Refuse new calls and cut off those that are left: they have had their time to drain."""
        if self._server is not None:
            await self._server.stop(grace=None)

    def _listen(self, address: str) -> int:
        tls = self._endpoint.tls
        if tls is None:
            port: int = self._server.add_insecure_port(address)
        else:
            pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
            port = self._server.add_secure_port(address, self._grpc.ssl_server_credentials([pair]))
        if not port:
            raise RuntimeError("not bound")
        return port

    def _handlers(self) -> Any:
        methods = {
            "ServerLive": self._live, "ServerReady": self._ready, "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata, "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
        }  # fmt: skip
        kinds = messages()
        rpc = self._grpc.unary_unary_rpc_method_handler
        found = {
            name: rpc(
                method,
                request_deserializer=kinds[name + "Request"].FromString,
                response_serializer=kinds[name + "Response"].SerializeToString,
            )
            for name, method in methods.items()
        }
        found["ModelStreamInfer"] = self._grpc.stream_stream_rpc_method_handler(
            self._stream_infer,
            request_deserializer=kinds["ModelInferRequest"].FromString,
            response_serializer=kinds["ModelStreamInferResponse"].SerializeToString,
        )
        return self._grpc.method_handlers_generic_handler(SERVICE, found)

    async def _live(self, _request: Any, context: Any) -> Any:
        answer = await self._door.ask(context, "GET", "/v2/health/live")
        return messages()["ServerLiveResponse"](live=answer.status == 200)

    async def _ready(self, _request: Any, context: Any) -> Any:
        answer = await self._door.ask(context, "GET", "/v2/health/ready")
        return messages()["ServerReadyResponse"](ready=answer.status == 200)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        path = model_path(request.name, request.version) + "/ready"
        answer = await self._door.ask(context, "GET", path)
        if answer.status not in {200, 503}:
            await self._refuse(context, answer)
        return messages()["ModelReadyResponse"](ready=answer.status == 200)

    async def _server_metadata(self, _request: Any, context: Any) -> Any:
        found = json.loads((await self._door.ask(context, "GET", "/v2")).body)
        return messages()["ServerMetadataResponse"](**found)

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        answer = await self._door.ask(context, "GET", model_path(request.name, request.version))
        if answer.status != 200:
            await self._refuse(context, answer)
        return metadata_answer(json.loads(answer.body))

    async def _infer(self, request: Any, context: Any) -> Any:
        try:
            answer = await self._door.infer(request, context)
        except RequestError as error:
            await context.abort(self._grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if answer.status != 200:
            await self._refuse(context, answer)
        await context.send_initial_metadata(tuple(
            (name.decode(), answer.headers[name].decode())
            for name in (b"ingot-version", b"ingot-model", b"x-request-id", b"ingot-arm")
            if name in answer.headers
        ))  # fmt: skip
        return infer_answer(answer.body, answer.headers)

    async def _stream_infer(self, requests: Any, context: Any) -> None:
        await Stream(self._door, self._texts, context).run(requests)

    async def _refuse(self, context: Any, answer: Answer) -> None:
        name = _CODES.get(answer.status, "INTERNAL")
        await context.abort(getattr(self._grpc.StatusCode, name), answer.words)
