"""A fuzzer that reads the OpenAPI document of a server and asks it whatever that allows."""

import os
import subprocess
import sys

# Left out are two. That what fits a schema is accepted: no schema can say that the count of a
# tensor's values is the product of its shape. And that all else is refused: a header that nobody
# knows is ignored, as HTTP asks.
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "unsupported_method",
    "missing_required_header", "ignored_auth",
)  # fmt: skip


def fuzz(folder, url, *words):
    """Return the finished run of the fuzzer; it fails where the server is not as it says."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", url + "/openapi.json", "--seed", "1",
        "--checks", ",".join(CHECKS), "--suppress-health-check", "all", "--max-examples", "15",
        "--request-timeout", "20", "--no-color", *words,
    ]  # fmt: skip
    keep = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=keep, cwd=folder
    )
