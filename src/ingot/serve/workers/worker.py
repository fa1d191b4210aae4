"""What a worker process does: load one model, answer one real inference, then answer calls."""

import logging
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.core.errors import EngineError, IngotError
from ingot.data.data import Array
from ingot.models.model import Lineage, Model, Signature
from ingot.runtime.engine import EngineConfig, Session
from ingot.runtime.engines import open_session
from ingot.serve.warmup import still_answers, warm_up
from ingot.serve.workers.wire import (
    START,
    TO_WORKER,
    Answer,
    Call,
    Failure,
    Hello,
    Ready,
    Refused,
    Start,
    frame,
    pack,
    receive,
    unpack,
)

log = logging.getLogger(__name__)

TARGET = f"{__name__}:work"


def start_of(model: Model, config: EngineConfig) -> Start:
    """Return the message that makes a worker serve a model."""
    facts: dict[str, object] = {
        "path": str(model.path),
        "digest": model.digest,
        "name": model.name,
        "signature": model.signature.to_json(),
    }
    return Start(facts, dict(config.to_json()))


def work(connection: socket.socket) -> None:
    """Serve one model until the server closes the connection.

    Args:
        connection: To the server, which first says what is served; this side's alone.
    """
    connection.sendall(frame(Hello(os.getpid())))
    start = receive(connection, START)
    if start is None:
        return
    model = _model(start.model)
    config = EngineConfig.from_json(start.config)  # type: ignore[arg-type] # it was its to_json
    try:
        session = open_session(model, config)
        feeds, latency_ms = warm_up(session, model.signature, config)
    except (IngotError, OSError) as error:
        connection.sendall(frame(Refused(str(error))))
        return
    connection.sendall(frame(Ready(latency_ms, pack(feeds))))
    turns = _Turns(connection, session, feeds)
    others = [threading.Thread(target=turns.take, daemon=True) for _ in range(config.streams - 1)]
    for thread in others:
        thread.start()
    turns.take()


class _Turns:
    """Calls of one connection, answered by as many threads as the engine has streams."""

    def __init__(
        self, connection: socket.socket, session: Session, sample: Mapping[str, Array]
    ) -> None:
        self._connection, self._session, self._sample = connection, session, sample
        self._reading, self._writing = threading.Lock(), threading.Lock()

    def take(self) -> None:
        """Answer calls until the server is gone."""
        while True:
            with self._reading:
                call = receive(self._connection, TO_WORKER)
            if call is None:
                return
            answer = frame(self._answer(call))
            try:
                with self._writing:
                    self._connection.sendall(answer)
            except OSError:
                return  # the server is gone

    def _answer(self, call: Call) -> Answer | Failure:
        try:
            outputs = self._session.run(unpack(call.feeds, writable=True))
            return Answer(call.call, pack(outputs))
        except EngineError as error:
            return Failure(call.call, still_answers(self._session, self._sample), str(error))
        except Exception as error:  # a process edge: engines raise anything, a call gets its answer
            log.exception("a call failed")
            return Failure(call.call, False, repr(error))


def _model(facts: Mapping[str, Any]) -> Model:  # what `start_of` wrote
    signature = Signature.from_json(facts["signature"])
    return Model(Path(facts["path"]), facts["digest"], signature, Lineage("onnx"), facts["name"])
