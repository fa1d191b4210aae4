"""A collector of OpenTelemetry spans on loopback, for tests that send them for real."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Collected:
    """What arrived."""

    url: str
    posts: list = field(default_factory=list)  # path, content type, body

    @property
    def groups(self):
        """Every group of spans with its resource."""
        for _, _, body in self.posts:
            yield from ExportTraceServiceRequest.FromString(body).resource_spans

    @property
    def spans(self):
        """Every span."""
        return [
            span for group in self.groups for scope in group.scope_spans for span in scope.spans
        ]


@contextmanager
def collecting() -> Iterator[Collected]:
    """Give a collector that runs."""

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            found.posts.append((self.path, self.headers["content-type"], body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    found = Collected(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
